//! Tests of `node.yaml`: the shipped example, each kind of source, exact messages.

use aivillage_base::wire::NodeType;
use aivillage_engine::data::{Bundled, Column, DataTask, Origin, Source};
use expect_test::{Expect, expect};

use crate::config::node::*;

fn node(text: &str) -> NodeConfig {
    parse("node.yaml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(text: &str, message: Expect) {
    message.assert_eq(&parse("node.yaml", text).expect_err("must be refused").to_string());
}

#[test]
fn the_shipped_example_is_valid() {
    let config = node(EXAMPLE);
    assert_eq!(config.name.as_deref(), Some("clinic-north"));
    assert_eq!(
        config.data,
        [Source {
            name: "digits".into(),
            task: DataTask::Classification,
            classes: None,
            test_fraction: 0.0,
            origin: Origin::Shard { dataset: Bundled::Digits, index: 0, of: 6, alpha: 0.3, seed: 1 },
        }]
    );
    assert_eq!(config.node_types, Some(vec![NodeType::Edge]));
    assert_eq!(config.privacy.max_rounds, Some(1000));
    assert!(config.privacy.require_secure_aggregation);
    assert_eq!(config.privacy.hours.as_deref().map(<[_]>::len), Some(2));
}

#[test]
fn the_commented_sources_of_the_example_are_valid_too() {
    let text: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("  # ") {
            Some(rest) if rest.starts_with("- ") || rest.starts_with("  ") => format!("  {rest}\n"),
            Some(_) | None => format!("{line}\n"),
        })
        .collect();
    let config = node(&text);
    assert_eq!(config.data.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["digits", "patients", "images"]);
}

#[test]
fn the_commented_roster_of_the_example_is_valid_too() {
    let start = EXAMPLE.find("# roster:").unwrap();
    let text: String =
        EXAMPLE[start..].lines().take_while(|line| !line.is_empty()).map(|line| format!("{}\n", &line[2..])).collect();
    let roster = node(&text).roster.unwrap();
    assert_eq!((roster.file, roster.signers.len()), ("roster.yaml".into(), 1));
}

#[test]
fn half_a_roster_is_refused() {
    refused(
        "roster: {file: r.yaml, signer: [x]}\n",
        expect![[r#"
        error: `roster` lacks `signers`
         --> node.yaml:1:9
          |
        1 | roster: {file: r.yaml, signer: [x]}
          |         ^
          = give a list of node keys of 64 hexadecimal characters, at least one

        error: unknown key `roster.signer`
         --> node.yaml:1:24
          |
        1 | roster: {file: r.yaml, signer: [x]}
          |                        ^^^^^^
          = did you mean `signers`?

        configuration: 2 faults; nothing was started"#]],
    );
    refused(
        "roster: {signers: [\"01\"], file: r.yaml}\n",
        expect![[r#"
        error: `roster.signers` item 1 is the text `01`, but must be a node's key of 64 hexadecimal characters, in quotes
         --> node.yaml:1:20
          |
        1 | roster: {signers: ["01"], file: r.yaml}
          |                    ^^^^

        configuration: 1 fault; nothing was started"#]],
    );
    refused(
        "serve: true\nroster:\n",
        expect![[r#"
        error: `roster` lacks `file`
         --> node.yaml:2:7
          |
        2 | roster:
          |       ^
          = give a path

        error: `roster` lacks `signers`
         --> node.yaml:2:7
          |
        2 | roster:
          |       ^
          = give a list of node keys of 64 hexadecimal characters, at least one

        configuration: 2 faults; nothing was started"#]],
    );
}

#[test]
fn nothing_said_is_a_node_that_serves_and_never_trains() {
    for text in ["", "# nothing\n", "data:\n", "data: []\nprivacy:\n"] {
        assert_eq!(node(text), NodeConfig::default(), "{text:?}");
    }
    let default = NodeConfig::default();
    assert!(default.serve && default.data.is_empty() && default.privacy == Default::default());
}

#[test]
fn a_single_source_needs_no_list() {
    let config = node("data:\n  kind: csv\n  path: my data/heart.csv\n  label: 13\n  task: regression\n");
    assert_eq!(
        config.data,
        [Source {
            name: "heart".into(),
            task: DataTask::Regression,
            classes: None,
            test_fraction: 0.0,
            origin: Origin::Csv { path: "my data/heart.csv".into(), label: Some(Column::Index(13)), features: None },
        }]
    );
}

#[test]
fn arrays_and_deals_have_their_usual_names() {
    let config = node("data: [{kind: npz, path: a.npz}, {kind: shard, dataset: breast_cancer, index: 2, of: 3}]");
    let origins: Vec<Origin> = config.data.into_iter().map(|source| source.origin).collect();
    assert_eq!(
        origins,
        [
            Origin::Npz { path: "a.npz".into(), features: "x".into(), label: "y".into() },
            Origin::Shard { dataset: Bundled::BreastCancer, index: 2, of: 3, alpha: 0.3, seed: 1 },
        ]
    );
}

#[test]
fn a_folder_without_the_file_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.yaml");
    assert_eq!(load(&path).unwrap(), None);
    std::fs::write(&path, "threads: 2000").unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("node.yaml:1:10") && error.contains("from 0 to 1024"), "{error}");
}

#[test]
fn the_words_for_data_are_those_of_the_engine() {
    for set in Bundled::ALL {
        let text = format!("data: {{kind: shard, dataset: {}, index: 0, of: 1}}", set.name());
        assert_eq!(node(&text).data[0].name, set.name());
    }
}

#[test]
fn the_bundled_example_loads_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let source = &node("data: {kind: shard, dataset: digits, index: 1, of: 3}").data[0];
    let loaded = aivillage_engine::data::load(source, dir.path()).unwrap();
    assert!(loaded.held_out.is_none(), "nothing was asked to be held out");
}

#[test]
fn every_fault_of_a_source_is_shown_at_its_place() {
    refused(
        "data:\n  - kind: shard\n    dataset: digit\n    index: 6\n    of: 6\n  - kind: csv\n    lable: 3\n  - kind: parquet\n    path: x\n  - path: y\n  - 7\n",
        expect![[r#"
            error: `data.dataset` is the text `digit`, but must be one of digits, breast_cancer
             --> node.yaml:3:14
              |
            3 |     dataset: digit
              |              ^^^^^
              = did you mean `digits`?

            error: `index` is 6, but of 6 parts the last is 5
             --> node.yaml:4:12
              |
            4 |     index: 6
              |            ^
              = parts are counted from 0

            error: this data source lacks `path`
             --> node.yaml:6:5
              |
            6 |   - kind: csv
              |     ^^^^
              = give a path

            error: unknown key `data.lable`
             --> node.yaml:7:5
              |
            7 |     lable: 3
              |     ^^^^^
              = did you mean `label`?

            error: `data.kind` is the text `parquet`, but must be one of npz, csv, shard
             --> node.yaml:8:11
              |
            8 |   - kind: parquet
              |           ^^^^^^^

            error: this data source lacks `kind`
              --> node.yaml:10:5
               |
            10 |   - path: y
               |     ^^^^
               = say `kind: csv`, `kind: npz` or `kind: shard`

            error: a data source is the number 7, but must be a section of keys
              --> node.yaml:11:5
               |
            11 |   - 7
               |     ^
               = begin it with `kind: csv`, `npz` or `shard`

            configuration: 7 faults; nothing was started"#]],
    );
    refused(
        "data: {kind: shard, dataset: digits, index: 6, of: 6}\n",
        expect![[r#"
        error: `index` is 6, but of 6 parts the last is 5
         --> node.yaml:1:45
          |
        1 | data: {kind: shard, dataset: digits, index: 6, of: 6}
          |                                             ^
          = parts are counted from 0

        configuration: 1 fault; nothing was started"#]],
    );
}

#[test]
fn two_sources_of_one_name_are_refused() {
    refused(
        "data:\n  - {kind: csv, path: a/x.csv}\n  - {kind: npz, path: b/x.npz}\n",
        expect![[r#"
        error: two data sources are called "x"
         --> node.yaml:3:5
          |
        3 |   - {kind: npz, path: b/x.npz}
          |     ^
          = give each its own `name`

        configuration: 1 fault; nothing was started"#]],
    );
}

#[test]
fn the_section_that_was_renamed_names_each_new_key() {
    refused(
        "serve: true\npolicy:\n  allow_plain_updates: false\n  allow_retained_updates: true\n  max_rounds: 3\n",
        expect![[r#"
            error: the section `policy` is called `privacy` now
             --> node.yaml:2:1
              |
            2 | policy:
              | ^^^^^^
              = `allow_plain_updates: false` is `privacy.require_secure_aggregation: true`; `allow_retained_updates: true` is `privacy.retain_updates: if_asked`; `max_rounds` is `privacy.max_rounds`

            configuration: 1 fault; nothing was started"#]],
    );
    refused(
        "policy:\n",
        expect![[r#"
        error: the section `policy` is called `privacy` now
         --> node.yaml:1:1
          |
        1 | policy:
          | ^^^^^^
          = write the node's rules below `privacy`

        configuration: 1 fault; nothing was started"#]],
    );
}

#[test]
fn bounds_of_rules_are_checked() {
    refused(
        "privacy:\n  min_cohort: 2\n  max_clip: 0\n  allowed_publishers: ada\n  allowed_job_types: [standart]\n  retain_updates: always\n  hours: [\"22-06\"]\n",
        expect![[r#"
            error: `privacy.min_cohort` is the number 2, but must be a whole number from 3 to 100000 (updates in a sum)
             --> node.yaml:2:15
              |
            2 |   min_cohort: 2
              |               ^

            error: `privacy.max_clip` is the number 0, but must be a number above 0, at most 1000000000 (L2 norm)
             --> node.yaml:3:13
              |
            3 |   max_clip: 0
              |             ^

            error: `privacy.allowed_publishers` is the text `ada`, but must be a list of names of 1 to 200 characters
             --> node.yaml:4:23
              |
            4 |   allowed_publishers: ada
              |                       ^^^

            error: `privacy.allowed_job_types` item 1 is the text `standart`, but must be one of standard, evaluation, statistics, privacy_audit
             --> node.yaml:5:23
              |
            5 |   allowed_job_types: [standart]
              |                       ^^^^^^^^
              = did you mean `standard`?

            error: `privacy.retain_updates` is the text `always`, but must be one of never, withheld, if_asked
             --> node.yaml:6:19
              |
            6 |   retain_updates: always
              |                   ^^^^^^

            error: `privacy.hours` item 1 is the text `22-06`, but must be hours such as 22:00-06:00 (UTC) or 22:00-06:00+02:00
             --> node.yaml:7:11
              |
            7 |   hours: ["22-06"]
              |           ^^^^^^^

            configuration: 6 faults; nothing was started"#]],
    );
}

#[test]
fn a_policy_is_never_guessed() {
    refused(
        "privacy:\n  require_secure_agregation: true\n  allowed_recipes: [mlp, simple_cn]\n  max_rounds: -1\nnode_types: [edge, edge]\nserve: yes\n",
        expect![[r#"
            error: unknown key `privacy.require_secure_agregation`
             --> node.yaml:2:3
              |
            2 |   require_secure_agregation: true
              |   ^^^^^^^^^^^^^^^^^^^^^^^^^
              = did you mean `require_secure_aggregation`?

            error: `privacy.allowed_recipes` item 2 is the text `simple_cn`, but must be one of logistic_regression, linear_regression, mlp, simple_cnn, residual_cnn, text_classifier, layers
             --> node.yaml:3:26
              |
            3 |   allowed_recipes: [mlp, simple_cn]
              |                          ^^^^^^^^^
              = did you mean `simple_cnn`?

            error: `privacy.max_rounds` is the number -1, but must be a whole number from 1 to 100000 (rounds)
             --> node.yaml:4:15
              |
            4 |   max_rounds: -1
              |               ^^

            error: `node_types` names "edge" twice
             --> node.yaml:5:20
              |
            5 | node_types: [edge, edge]
              |                    ^^^^
              = leave one of them

            error: `serve` is the text `yes`, but must be `true` or `false`
             --> node.yaml:6:8
              |
            6 | serve: yes
              |        ^^^

            configuration: 5 faults; nothing was started"#]],
    );
}

#[test]
fn every_kind_of_node_can_be_named() {
    let words: Vec<&str> = NodeType::ALL.iter().map(|(word, _)| *word).collect();
    let text = format!("node_types: [{}]", words.join(", "));
    assert_eq!(node(&text).node_types.map(|types| types.len()), Some(words.len()));
}
