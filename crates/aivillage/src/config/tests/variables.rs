//! Tests of the environment, over pairs: names, types, secrets.

use expect_test::{Expect, expect};

use super::super::*;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    Environment::from_pairs(pairs.iter().copied()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(pairs: &[(&str, &str)], message: Expect) {
    message.assert_eq(&Environment::from_pairs(pairs.iter().copied()).expect_err("must be refused").to_string());
}

#[test]
fn every_key_can_be_set_by_a_variable_that_stands_above_the_file() {
    let environment = environment(&[
        ("AIVILLAGE_TRAINING__DEFAULT_ROUNDS", "7"),
        ("AIVILLAGE_TRAINING__PRIVACY__ENABLE_SECURE_AGGREGATION", "false"),
        ("AIVILLAGE_TRAINING__PRIVACY__DEFAULT_DELTA", "1e-6"),
        ("AIVILLAGE_TRAINING__COORDINATOR_ID", "12"),
        ("AIVILLAGE_GATEWAY__HTTP_LISTEN", "127.0.0.1:0"),
        ("AIVILLAGE_GATEWAY__CORS_ORIGINS", "[https://a.example]"),
        ("PATH", "/usr/bin"),
    ]);
    let loaded = resolve(
        Some((Path::new("f.yaml"), "federated_systems: {training: {default_rounds: 5, max_concurrent_jobs: 3}}")),
        &environment.overrides,
    )
    .unwrap();
    let config = &loaded.config;
    assert_eq!((config.training.default_rounds, config.training.max_concurrent_jobs), (7, 3));
    assert!(!config.training.privacy.enable_secure_aggregation);
    assert_eq!(config.training.privacy.default_delta, 1e-6);
    assert_eq!(config.training.coordinator_id, "12");
    assert_eq!(config.gateway.http_listen.port(), 0);
    assert_eq!(config.gateway.cors_origins, ["https://a.example"]);
    assert!(
        loaded.describe().starts_with("f.yaml, with AIVILLAGE_GATEWAY__CORS_ORIGINS, AIVILLAGE_GATEWAY__HTTP_LISTEN")
    );
}

#[test]
fn each_key_of_the_table_has_its_own_variable() {
    let mut names: Vec<String> = table::KEYS.iter().map(|key| variable(key.path)).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), table::KEYS.len());
    let defaults = to_json(&Config::default());
    for key in table::KEYS {
        let value = effect::at(&defaults, key.path);
        let text = match value {
            Json::String(text) => text.clone(),
            Json::Null => String::new(),
            Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_) => value.to_string(),
        };
        let set = environment(&[(&variable(key.path), &text)]);
        assert_eq!((set.overrides[0].path, &set.overrides[0].value), (key.path, value));
    }
}

#[test]
fn unknown_variables_are_refused_with_the_nearest_name() {
    refused(
        &[
            ("AIVILLAGE_TRAINING__DEFUALT_ROUNDS", "1"),
            ("AIVILLAGE_DEFAULT_ROUNDS", "1"),
            ("AIVILLAGE_FEDERATED_SYSTEMS__TRAINING__ENABLED", "1"),
            ("AIVILLAGE_URI", "http://a"),
            ("AIVILLAGE_COLOUR", "red"),
        ],
        expect![[r#"
            error: unknown variable `AIVILLAGE_COLOUR`
             --> environment variable AIVILLAGE_COLOUR
              = AIVILLAGE_URL, or AIVILLAGE_<SECTION>__<KEY> for a key of `aivillage config show`

            error: unknown variable `AIVILLAGE_DEFAULT_ROUNDS`
             --> environment variable AIVILLAGE_DEFAULT_ROUNDS
              = did you mean AIVILLAGE_TRAINING__DEFAULT_ROUNDS?

            error: unknown variable `AIVILLAGE_FEDERATED_SYSTEMS__TRAINING__ENABLED`
             --> environment variable AIVILLAGE_FEDERATED_SYSTEMS__TRAINING__ENABLED
              = the section `federated_systems` is implied: write AIVILLAGE_TRAINING__ENABLED

            error: unknown variable `AIVILLAGE_TRAINING__DEFUALT_ROUNDS`
             --> environment variable AIVILLAGE_TRAINING__DEFUALT_ROUNDS
              = did you mean AIVILLAGE_TRAINING__DEFAULT_ROUNDS?

            error: unknown variable `AIVILLAGE_URI`
             --> environment variable AIVILLAGE_URI
              = did you mean AIVILLAGE_URL?

            configuration: 5 faults; nothing was started"#]],
    );
}

#[test]
fn values_that_do_not_fit_are_refused_with_the_range() {
    refused(
        &[
            ("AIVILLAGE_TRAINING__DEFAULT_ROUNDS", "0"),
            ("AIVILLAGE_TRAINING__ENABLED", "perhaps"),
            ("AIVILLAGE_GATEWAY__MAX_BODY_MB", ""),
            ("AIVILLAGE_URL", "localhost:8000"),
            ("ENVIRONMENT", "prodution"),
            ("ENABLE_FEDERATED", "maybe"),
        ],
        expect![[r#"
            error: `gateway.max_body_mb` has no value
             --> environment variable AIVILLAGE_GATEWAY__MAX_BODY_MB
              = give a whole number from 1 to 1024, or unset the variable

            error: `training.default_rounds` is the number 0, but must be a whole number from 1 to 100000 (rounds)
             --> environment variable AIVILLAGE_TRAINING__DEFAULT_ROUNDS

            error: `training.enabled` is the text `perhaps`, but must be `true` or `false`
             --> environment variable AIVILLAGE_TRAINING__ENABLED

            error: `localhost:8000` is no address of a gateway
             --> environment variable AIVILLAGE_URL
              = write it like http://127.0.0.1:8000

            error: `maybe` is neither true nor false
             --> environment variable ENABLE_FEDERATED
              = write true or false

            error: unknown ENVIRONMENT `prodution`: did you mean `production`? (valid: production, staging, development, test)
             --> environment variable ENVIRONMENT

            configuration: 6 faults; nothing was started"#]],
    );
}

#[test]
fn contradictions_made_by_a_variable_name_it() {
    let environment = environment(&[("AIVILLAGE_TRAINING__PARTICIPANT_SELECTION__MIN_PARTICIPANTS", "60")]);
    let error = resolve(None, &environment.overrides).unwrap_err().to_string();
    assert!(
        error.contains("environment variable AIVILLAGE_TRAINING__PARTICIPANT_SELECTION__MIN_PARTICIPANTS"),
        "{error}"
    );
    assert!(error.contains("`min_participants` (60) is above `max_participants` (50)"), "{error}");
}

#[test]
fn the_guides_variables_are_understood() {
    let production = environment(&[
        ("ENVIRONMENT", "production"),
        ("ENABLE_FEDERATED", "false"),
        ("API_KEY", "0123456789abcdef"),
        ("SECRET_KEY", "fedcba9876543210"),
        ("AIVILLAGE_URL", "http://127.0.0.1:8000"),
    ]);
    assert!(production.production && !production.enable_federated);
    assert_eq!(production.api_key.as_ref().unwrap().expose(), "0123456789abcdef");
    assert_eq!(production.url.as_deref(), Some("http://127.0.0.1:8000"));
    assert!(production.overrides.is_empty());
    let nothing = environment(&[("API_KEY", ""), ("ENVIRONMENT", ""), ("ENABLE_FEDERATED", "")]);
    assert_eq!(nothing, Environment::default());
    assert!(nothing.enable_federated && !nothing.production);
}

#[test]
fn a_secret_is_never_shown() {
    let kept = environment(&[("API_KEY", "0123456789abcdef")]);
    assert!(!format!("{kept:?}").contains("0123456789abcdef"));
    let error = Environment::from_pairs([("SECRET_KEY", "tooweak")]).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("tooweak"));
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_text_is_refused() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let error = Environment::from_pairs([("AIVILLAGE_URL", OsString::from_vec(vec![0xff]))]).unwrap_err();
    assert!(error.to_string().contains("the value is not UTF-8 text"));
    let unset = Environment::from_pairs([("OTHER", OsString::from_vec(vec![0xff]))]).unwrap();
    assert_eq!(unset, Environment::default());
}
