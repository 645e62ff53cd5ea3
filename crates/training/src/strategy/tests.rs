use super::*;

#[test]
fn names_are_found_and_slips_are_named() {
    let none = Map::new();
    assert_eq!(named("federated_averaging", &none).unwrap().strategy.name(), "fedavg");
    let Err(StrategyFault::Name(text)) = named("fedavgg", &none) else { panic!("not a name") };
    assert!(text.contains("did you mean `fedavg`"), "{text}");
}

/// Settings that are enough.
fn example(name: &str) -> Map<String, Value> {
    let needed = (!WITHOUT_SETTINGS.contains(&name)).then(|| ("byzantine".to_owned(), Value::from(1)));
    needed.into_iter().collect()
}

#[test]
fn a_record_of_a_strategy_reads_back() {
    for name in BUILT {
        let config = example(name);
        let strategy = named(name, &config).unwrap().strategy;
        let text = serde_json::to_string(&strategy).unwrap();
        assert_eq!(serde_json::from_str::<Strategy>(&text).unwrap(), strategy, "{text}");
    }
}
