//! Tests of the configuration through its public door: shipped files, real YAML texts, exact messages.

use std::collections::BTreeSet;
use std::path::Path;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

mod node_file;
mod variables;

const GUIDE: &str = include_str!("tests/guide.yaml");

fn resolve_text(text: &str) -> Result<Loaded, ConfigError> {
    resolve(Some((Path::new("federated.yaml"), text)), &[])
}

fn config(text: &str) -> Config {
    resolve_text(text).unwrap_or_else(|error| panic!("{error}")).config
}

fn refused(text: &str, message: Expect) {
    message.assert_eq(&resolve_text(text).expect_err("must be refused").to_string());
}

/// Paths of all leaves.
fn leaves(value: &Json) -> BTreeSet<String> {
    fn walk(value: &Json, path: &str, out: &mut BTreeSet<String>) {
        match value {
            Json::Object(map) => map.iter().for_each(|(name, value)| walk(value, &check::join(path, name), out)),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
                out.insert(path.to_owned());
            }
        }
    }
    let mut out = BTreeSet::new();
    walk(value, "", &mut out);
    out
}

#[test]
fn the_shipped_file_is_the_default() {
    assert_eq!(config(SHIPPED), Config::default());
}

#[test]
fn the_guides_file_loads_unchanged_and_is_the_default() {
    assert_eq!(config(GUIDE), Config::default());
}

#[test]
fn every_key_and_value_of_the_guide_stands_in_the_shipped_file() {
    let guide: Json = serde_saphyr::from_str(GUIDE).unwrap();
    let shipped: Json = serde_saphyr::from_str(SHIPPED).unwrap();
    let paths = leaves(&guide["federated_systems"]);
    assert_eq!(paths.len(), 66);
    for path in paths {
        let at = |root: &Json| effect::at(&root["federated_systems"], &path).clone();
        assert_eq!(at(&guide), at(&shipped), "{path}");
    }
}

#[test]
fn the_table_and_the_structs_have_the_same_keys() {
    let table: Vec<String> = table::KEYS.iter().map(|key| key.path.to_owned()).collect();
    let unique: BTreeSet<String> = table.iter().cloned().collect();
    assert_eq!(table.len(), unique.len(), "a key stands twice in the table");
    assert_eq!(unique, leaves(&to_json(&Config::default())));
}

#[test]
fn the_shipped_file_annotates_every_key() {
    for (index, line) in SHIPPED.lines().enumerate() {
        let is_section = line.trim_end().ends_with(':') && !line.contains("cert:") && !line.contains("key:");
        if line.trim().is_empty() || line.trim_start().starts_with('#') || is_section {
            continue;
        }
        let above = SHIPPED.lines().nth(index - 1).unwrap_or_default().trim_start();
        assert!(above.starts_with('#'), "line {}: {line}", index + 1);
    }
}

#[test]
fn the_shipped_file_says_not_yet_where_the_table_does() {
    let lines: Vec<&str> = SHIPPED.lines().collect();
    let tree = tree::parse(SHIPPED).unwrap();
    let mut checked = check::Checked::new("federated.yaml", SHIPPED);
    let tree::Value::Map(root) = &tree.value else { panic!("a map") };
    checked.section(&root[0].1, "", table::KEYS);
    for key in table::KEYS {
        let line = checked.places[key.path].line - 1;
        let comment = lines[..line]
            .iter()
            .rev()
            .take_while(|l| l.trim_start().starts_with('#'))
            .any(|l| l.to_lowercase().contains("not yet"));
        assert_eq!(comment, key.status != table::Status::InEffect, "{}", key.path);
    }
}

#[test]
fn a_part_of_the_keys_leaves_the_rest_at_its_defaults() {
    let config = config("federated_systems:\n  training:\n    default_rounds: 7\n    privacy:\n  inference:\n");
    let mut expected = Config::default();
    expected.training.default_rounds = 7;
    assert_eq!(config, expected);
}

#[test]
fn an_empty_file_is_the_default() {
    for text in ["", "# nothing\n", "federated_systems:\n"] {
        assert_eq!(config(text), Config::default(), "{text:?}");
    }
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest_name() {
    refused(
        "federated_systems:\n  training:\n    defualt_rounds: 10\n",
        expect![[r#"
            error: unknown key `training.defualt_rounds`
             --> federated.yaml:3:5
              |
            3 |     defualt_rounds: 10
              |     ^^^^^^^^^^^^^^
              = did you mean `default_rounds`?

            configuration: 1 fault; nothing was started"#]],
    );
}

#[test]
fn a_key_in_the_wrong_section_is_told_where_it_belongs() {
    refused(
        "federated_systems:\n  inference:\n    default_rounds: 10\n",
        expect![[r#"
        error: unknown key `inference.default_rounds`
         --> federated.yaml:3:5
          |
        3 |     default_rounds: 10
          |     ^^^^^^^^^^^^^^
          = `default_rounds` belongs at `training.default_rounds`

        configuration: 1 fault; nothing was started"#]],
    );
    refused(
        "training:\n  default_rounds: 10\n",
        expect![[r#"
        error: unknown key `training`
         --> federated.yaml:1:1
          |
        1 | training:
          | ^^^^^^^^
          = every key stands below `federated_systems:`

        configuration: 1 fault; nothing was started"#]],
    );
}

#[test]
fn all_faults_of_a_file_are_reported_together() {
    refused(
        "federated_systems:\n  training:\n    default_rounds: 0\n    enabled: \"true\"\n    default_rounds: 5\n  monitoring:\n    alerts:\n      high_failure_rate_threshold: 30\n",
        expect![[r#"
            error: `training.default_rounds` is the number 0, but must be a whole number from 1 to 100000 (rounds)
             --> federated.yaml:3:21
              |
            3 |     default_rounds: 0
              |                     ^

            error: `training.enabled` is the text `true`, but must be `true` or `false`
             --> federated.yaml:4:14
              |
            4 |     enabled: "true"
              |              ^^^^^^
              = take the quotes off

            error: key `training.default_rounds` is given twice
             --> federated.yaml:5:5
              |
            5 |     default_rounds: 5
              |     ^^^^^^^^^^^^^^
              = it is already given on line 3: leave one of them

            error: `monitoring.alerts.high_failure_rate_threshold` is the number 30, but must be a number from 0 to 1 (share)
             --> federated.yaml:8:36
              |
            8 |       high_failure_rate_threshold: 30
              |                                    ^^

            configuration: 4 faults; nothing was started"#]],
    );
}

#[test]
fn wrong_types_are_named_with_what_is_expected() {
    refused(
        "federated_systems:\n  gateway:\n    http_listen: localhost:8000\n    cors_origins: [https://a.org, \"*\"]\n  training:\n    max_concurrent_jobs: ten\n    coordinator_id: 12\n    round_timeout_minutes:\n    privacy: strict\n",
        expect![[r#"
            error: `gateway.http_listen` is the text `localhost:8000`, but must be an IP address and port such as 127.0.0.1:8000 (port 0 = any free)
             --> federated.yaml:3:18
              |
            3 |     http_listen: localhost:8000
              |                  ^^^^^^^^^^^^^^
              = for localhost write 127.0.0.1

            error: `gateway.cors_origins` item 2 is the text `*`, but must be a web origin such as https://example.org, without path and `*`
             --> federated.yaml:4:35
              |
            4 |     cors_origins: [https://a.org, "*"]
              |                                   ^^^

            error: `training.max_concurrent_jobs` is the text `ten`, but must be a whole number from 1 to 10000 (jobs)
             --> federated.yaml:6:26
              |
            6 |     max_concurrent_jobs: ten
              |                          ^^^

            error: `training.coordinator_id` is the number 12, but must be a name of 1 to 64 characters a-z A-Z 0-9 . _ -, the first a letter or digit
             --> federated.yaml:7:21
              |
            7 |     coordinator_id: 12
              |                     ^^
              = put it in quotes to make it text

            error: `training.round_timeout_minutes` has no value
             --> federated.yaml:8:5
              |
            8 |     round_timeout_minutes:
              |     ^^^^^^^^^^^^^^^^^^^^^
              = give a whole number from 1 to 10080, or delete the line to keep the default

            error: `training.privacy` is the text `strict`, but must be a section of keys
             --> federated.yaml:9:14
              |
            9 |     privacy: strict
              |              ^^^^^^
              = write keys below it: default_epsilon, default_delta, max_privacy_budget, enable_secure_aggregation, differential_privacy_adaptive

            configuration: 6 faults; nothing was started"#]],
    );
}

#[test]
fn a_word_is_matched_exactly_and_its_neighbour_suggested() {
    refused(
        "federated_systems:\n  inference:\n    load_balancing_strategy: least_load\n",
        expect![[r#"
        error: `inference.load_balancing_strategy` is the text `least_load`, but must be one of capability_aware, latency_optimized, least_loaded, round_robin, random, power_of_two, cost_aware, sticky
         --> federated.yaml:3:30
          |
        3 |     load_balancing_strategy: least_load
          |                              ^^^^^^^^^^
          = did you mean `least_loaded`?

        configuration: 1 fault; nothing was started"#]],
    );
}

#[test]
fn a_caret_stands_under_text_that_is_not_ascii() {
    refused(
        "federated_systems:\n  training: {coordinator_id: \"Köln\", enabled: vielleicht}\n",
        expect![[r#"
        error: `training.coordinator_id` is the text `Köln`, but must be a name of 1 to 64 characters a-z A-Z 0-9 . _ -, the first a letter or digit
         --> federated.yaml:2:30
          |
        2 |   training: {coordinator_id: "Köln", enabled: vielleicht}
          |                              ^^^^^^

        error: `training.enabled` is the text `vielleicht`, but must be `true` or `false`
         --> federated.yaml:2:47
          |
        2 |   training: {coordinator_id: "Köln", enabled: vielleicht}
          |                                               ^^^^^^^^^^

        configuration: 2 faults; nothing was started"#]],
    );
}

#[test]
fn text_that_is_no_yaml_is_shown_at_its_place() {
    refused(
        "federated_systems:\n  training:\n\tenabled: true\n",
        expect![[r#"
            error: cannot be read as YAML: tabs disallowed within this context (block indentation)
             --> federated.yaml:3:2
              |
            3 |  enabled: true
              |  ^

            configuration: 1 fault; nothing was started"#]],
    );
    refused(
        "federated_systems: [1, 2\n",
        expect![[r#"
            error: cannot be read as YAML: unclosed bracket '['
             --> federated.yaml:1:20
              |
            1 | federated_systems: [1, 2
              |                    ^

            configuration: 1 fault; nothing was started"#]],
    );
    refused(
        "hello\n",
        expect![[r#"
        error: the file is the text `hello`, but must begin with `federated_systems:`
         --> federated.yaml:1:1
          |
        1 | hello
          | ^^^^^

        configuration: 1 fault; nothing was started"#]],
    );
}

#[test]
fn keys_that_contradict_each_other_are_refused_at_the_key_that_was_written() {
    refused(
        "federated_systems:\n  training:\n    participant_selection:\n      max_participants: 2\n",
        expect![[r#"
            error: `min_participants` (3) is above `max_participants` (2): no round could ever count
             --> federated.yaml:4:25
              |
            4 |       max_participants: 2
              |                         ^
              = raise the one or lower the other

            configuration: 1 fault; nothing was started"#]],
    );
    refused(
        "federated_systems:\n  gateway:\n    tls:\n      cert: a.pem\n",
        expect![[r#"
        error: `gateway.tls.cert` is given without `gateway.tls.key`
         --> federated.yaml:4:13
          |
        4 |       cert: a.pem
          |             ^^^^^
          = give both, or leave `cert` empty for plain HTTP

        configuration: 1 fault; nothing was started"#]],
    );
    refused(
        "federated_systems:\n  gateway:\n    link_listen: 127.0.0.1:8000\n",
        expect![[r#"
        error: `http_listen` and `link_listen` are both 127.0.0.1:8000
         --> federated.yaml:3:18
          |
        3 |     link_listen: 127.0.0.1:8000
          |                  ^^^^^^^^^^^^^^
          = give each its own port

        configuration: 1 fault; nothing was started"#]],
    );
}

#[test]
fn bounds_are_inside_and_one_step_further_is_not() {
    for (text, valid) in [
        ("default_delta: 0", false),
        ("default_delta: 1", false),
        ("default_delta: 1e-300", true),
        ("default_epsilon: 0", false),
        ("default_epsilon: 1000", true),
        ("default_epsilon: 1000.001", false),
        ("default_epsilon: .nan", false),
        ("default_epsilon: .inf", false),
    ] {
        let text = format!("federated_systems:\n  training:\n    privacy:\n      {text}\n");
        assert_eq!(resolve_text(&text).is_ok(), valid, "{text}");
    }
}

#[test]
fn the_ends_of_every_range_and_every_word_fit_the_structs() {
    for key in table::KEYS {
        let ends: Vec<Json> = match key.kind {
            Kind::Bool => vec![json!(true), json!(false)],
            Kind::Whole { min, max } => vec![json!(min), json!(max)],
            Kind::Real { min, max } => vec![json!(min), json!(max)],
            Kind::Above { max, .. } => vec![json!(f64::MIN_POSITIVE), json!(max)],
            Kind::Chance => vec![json!(f64::MIN_POSITIVE), json!(1.0 - f64::EPSILON)],
            Kind::Word(words) => words.iter().map(|word| json!(word)).collect(),
            Kind::Words(words) => vec![json!([]), json!(words)],
            Kind::Id => vec![json!("a"), json!("b".repeat(64))],
            Kind::Address => vec![json!("[::]:0"), json!("255.255.255.255:65535")],
            Kind::Path => vec![Json::Null, json!("/a")],
            Kind::Column => vec![json!(0), json!("a")],
            Kind::Columns => vec![json!([]), json!([0, "a"])],
            Kind::Hosts => vec![json!([]), json!(["a.example"])],
            Kind::Origins => vec![json!([]), json!(["http://a:1"])],
            Kind::Keys | Kind::Texts | Kind::Hours => unreachable!("no key of federated.yaml is of this kind"),
        };
        for end in ends {
            let mut values = to_json(&Config::default());
            set_at(&mut values, key.path, end.clone());
            let config: Config = serde_json::from_value(values).unwrap_or_else(|e| panic!("{} = {end}: {e}", key.path));
            assert_eq!(effect::at(&to_json(&config), key.path), &end, "{}", key.path);
        }
    }
}

#[test]
fn anchors_are_followed_and_second_documents_refused() {
    let text = "federated_systems:\n  network:\n    fog: {enabled: &no false}\n    p2p: {enabled: *no}\n";
    assert!(!config(text).network.p2p.enabled);
    refused(
        "federated_systems:\n---\nfederated_systems:\n",
        expect![[r#"
            error: cannot be read as YAML: a second document begins here, and only one is read
             --> federated.yaml:3:1
              |
            3 | federated_systems:
              | ^

            configuration: 1 fault; nothing was started"#]],
    );
    refused(
        "federated_systems:\n  training: {enabled: *missing}\n",
        expect![[r#"
            error: cannot be read as YAML: alias references unknown anchor
             --> federated.yaml:2:23
              |
            2 |   training: {enabled: *missing}
              |                       ^

            configuration: 1 fault; nothing was started"#]],
    );
    refused(
        "federated_systems:\nfederated_systems:\n",
        expect![[r#"
        error: key `federated_systems` is given twice
         --> federated.yaml:2:1
          |
        2 | federated_systems:
          | ^^^^^^^^^^^^^^^^^
          = it is already given on line 1: put the keys under one

        configuration: 1 fault; nothing was started"#]],
    );
}

#[test]
fn the_shown_configuration_reads_back_as_the_same() {
    let mut config = config(SHIPPED);
    config.training.default_rounds = 12;
    config.gateway.cors_origins = vec!["https://a.example".into()];
    config.gateway.tls = Tls { cert: Some("a b.pem".into()), key: Some("true".into()) };
    assert_eq!(resolve_text(&show(&config)).unwrap_or_else(|e| panic!("{e}")).config, config);
}

#[test]
fn the_schema_has_every_key_with_its_words() {
    let schema = schema();
    for key in table::KEYS {
        let path = format!("/properties/federated_systems/properties/{}", key.path.replace('.', "/properties/"));
        let property = schema.pointer(&path).unwrap_or_else(|| panic!("{path}"));
        assert!(property["description"].as_str().unwrap().starts_with(key.effect), "{path}");
        assert_eq!(property["default"], *effect::at(&to_json(&Config::default()), key.path), "{path}");
    }
    let rounds = &schema["properties"]["federated_systems"]["properties"]["training"]["properties"]["default_rounds"];
    assert_eq!(
        *rounds,
        json!({"type": "integer", "minimum": 1, "maximum": 100_000, "default": 100,
               "description": "Rounds of a job that names none. Unit: rounds."})
    );
}

#[test]
fn promises_that_are_not_kept_are_named_with_the_way_out() {
    let named = not_in_effect(&Config::default());
    let of = |key: &str| named.iter().find(|n| n.key == key).unwrap_or_else(|| panic!("{key} is not named"));
    for key in [
        "inference.cache_size_gb",
        "inference.integration.betanet_privacy",
        "training.privacy.differential_privacy_adaptive",
        "training.aggregation.enable_compression",
        "training.mobile.min_battery_percent",
        "network.p2p.enabled",
        "network.betanet.privacy_mode",
    ] {
        of(key);
    }
    expect!["network.p2p.discovery_interval_seconds = 300: there is no mesh yet: nodes talk to the gateway only (set `network.p2p.enabled: false`)"].assert_eq(&of("network.p2p.discovery_interval_seconds").to_string());
    expect!["inference.cache_size_gb = 10.0: there is no result cache yet: every request is computed (set `cache_size_gb: 0`)"].assert_eq(&of("inference.cache_size_gb").to_string());
    for kept in [
        "training.default_rounds",
        "training.privacy.enable_secure_aggregation",
        "training.aggregation.byzantine_tolerance",
        "training.aggregation.hierarchical_clusters",
        "training.mobile.require_charging",
        "inference.load_balancing_strategy",
    ] {
        assert!(named.iter().all(|n| n.key != kept), "{kept}");
    }
}

#[test]
fn promises_fit_on_a_screen_section_by_section() {
    let sections = by_section(&not_in_effect(&Config::default()));
    let p2p = sections.iter().find(|(section, _)| *section == "network.p2p").unwrap();
    assert_eq!(p2p.1.len(), 6);
    assert_eq!(sections.iter().map(|(_, keys)| keys.len()).sum::<usize>(), not_in_effect(&Config::default()).len());
    assert!(sections.len() < 20);
}

#[test]
fn a_word_that_is_not_built_is_named_and_a_built_one_is_not() {
    let named =
        |text: &str| not_in_effect(&config(text)).into_iter().map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    let text = named(
        "federated_systems:\n  inference:\n    load_balancing_strategy: sticky\n    privacy:\n      default_privacy_level: ultra\n",
    );
    assert!(
        text.contains(
            "load_balancing_strategy = \"sticky\": `sticky` is known, but not built yet (use capability_aware or least_loaded or round_robin)"
        ),
        "{text}"
    );
    assert!(text.contains("default_privacy_level = \"ultra\""), "{text}");
    assert!(
        !named("federated_systems:\n  inference:\n    load_balancing_strategy: round_robin\n")
            .contains("load_balancing")
    );
}

#[test]
fn the_table_calls_built_what_the_rooms_build() {
    let built = |path: &str| match table::find(path).unwrap().status {
        table::Status::Words(words) => words.to_vec(),
        table::Status::InEffect | table::Status::NotYet { .. } => panic!("{path} has words"),
    };
    let router: Vec<&str> = aivillage_inference::LoadBalancingStrategy::ALL
        .iter()
        .filter(|(_, strategy)| strategy.built().is_some())
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(built("inference.load_balancing_strategy"), router);
}

#[test]
fn the_rooms_get_what_the_file_says() {
    let mut config = Config::default();
    config.training.round_timeout_minutes = 2;
    config.gateway.result_retention_minutes = 3;
    config.training.participant_selection.selection_timeout_ms = 4;
    let training = training_room(&config);
    assert_eq!((training.round_timeout.as_secs(), training.selection_timeout.as_millis()), (120, 4));
    assert!(training.enable_secure_aggregation);
    assert_eq!(training.default_rounds, 100);
    let inference = inference_room(&config);
    assert_eq!(inference.result_retention.as_secs(), 180);
    config.gateway.tls = Tls { cert: Some("c".into()), key: Some("k".into()) };
    config.monitoring.export_prometheus = false;
    let gateway = gateway_room(&config, false);
    assert_eq!((gateway.max_body_bytes, gateway.max_model_bytes), (8 << 20, 512 << 20));
    assert_eq!((gateway.header_timeout.as_secs(), gateway.idempotency_retention.as_secs()), (10, 86_400));
    assert!(gateway.tls.is_some() && !gateway.export_metrics && !gateway.require_authentication);
    assert!(gateway_room(&config, true).require_authentication, "production demands keys");
    assert_eq!((inference.max_concurrent_requests, inference.request_timeout_ms), (1000, 30_000));
}

#[test]
fn following_every_way_out_leaves_only_what_has_none() {
    let mut values = to_json(&Config::default());
    for named in not_in_effect(&Config::default()) {
        if named.value.is_boolean() {
            set_at(&mut values, named.key, json!(false));
        } else if named.way_out.ends_with(": 0`") {
            set_at(&mut values, named.key, json!(0.0));
        } else if let Some(switch) = named.way_out.strip_prefix("set `").and_then(|rest| rest.strip_suffix(": false`"))
        {
            set_at(&mut values, switch, json!(false));
        } else {
            assert!(named.way_out.starts_with("nothing to do: "), "{named}");
        }
    }
    let left: Vec<_> = not_in_effect(&serde_json::from_value(values).unwrap()).into_iter().map(|n| n.key).collect();
    assert_eq!(
        left,
        [
            "inference.performance.model_distribution_timeout_ms",
            "inference.performance.result_aggregation_timeout_ms",
            "training.privacy.default_epsilon",
            "training.privacy.default_delta",
            "training.privacy.max_privacy_budget",
        ]
    );
}

#[test]
fn the_named_file_wins_and_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, absent] = ["a.yaml", "b.yaml", "c.yaml"].map(|name| dir.path().join(name));
    std::fs::write(&first, "federated_systems: {training: {default_rounds: 1}}").unwrap();
    std::fs::write(&second, "federated_systems: {training: {default_rounds: 2}}").unwrap();
    let environment = Environment::default();
    let rounds = |flag: Option<&Path>, search: &[&Path]| {
        load_from(flag, search, &environment).map(|l| (l.config.training.default_rounds, l.source))
    };
    assert_eq!(rounds(None, &[&absent, &second, &first]).unwrap(), (2, Source::File(second.clone())));
    assert_eq!(rounds(Some(&first), &[&second]).unwrap(), (1, Source::File(first)));
    assert_eq!(rounds(None, &[&absent]).unwrap(), (100, Source::Defaults));
    let error = rounds(Some(&absent), &[&second]).unwrap_err();
    assert!(
        error.to_string().ends_with("c.yaml: not found; check `--config`, or leave it out to use the built-in values")
    );
    std::fs::write(&second, b"federated_systems: \xff").unwrap();
    assert!(rounds(None, &[&second]).unwrap_err().to_string().contains("byte 19 is not UTF-8 text"));
    assert!(matches!(rounds(Some(dir.path()), &[]), Err(ConfigError::Unreadable { .. })), "a folder");
}

proptest! {
    /// No text, however broken, does more than give an error.
    #[test]
    fn any_text_is_understood_or_refused(cut in 0usize..SHIPPED.len(), junk in "[ -~\\n\\t]{0,12}") {
        let cut = (0..=cut).rev().find(|i| SHIPPED.is_char_boundary(*i)).unwrap_or(0);
        let text = format!("{}{junk}{}", &SHIPPED[..cut], &SHIPPED[cut..]);
        if let Err(error) = resolve_text(&text) {
            prop_assert!(error.to_string().contains("nothing was started"));
        }
        let _ = node::parse("node.yaml", &text);
    }
}
