//! What may be asked, what is refused, and in which words.

use serde_json::json;

use aivillage_base::fixed::Grid;

use super::*;
use crate::error::TrainingError;
use crate::testing::{linear, request};

fn ask(request: &JobRequest, config: &TrainingConfig) -> Result<JobSpec, Vec<Fault>> {
    resolve(request, config, |_| None, JobId::new("job").unwrap(), 7)
}

/// Changes a good request and expects exactly this fault.
#[track_caller]
fn check(change: impl FnOnce(&mut JobRequest), pointer: &str, says: &str) {
    let mut request = request();
    change(&mut request);
    let faults = ask(&request, &TrainingConfig::default()).expect_err("it is to be refused");
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].pointer, pointer);
    assert!(faults[0].detail.contains(says), "{}", faults[0].detail);
}

fn hyper(key: &str, value: Value) -> impl FnOnce(&mut JobRequest) {
    let key = key.to_owned();
    move |request| {
        request.hyperparameters.insert(key, value);
    }
}

#[test]
fn what_is_not_said_takes_the_operators_defaults() {
    let config =
        TrainingConfig { default_rounds: 9, min_participants: 4, max_participants: 2, ..TrainingConfig::default() };
    let spec = ask(&request(), &config).unwrap();
    assert_eq!((spec.total_rounds, spec.min_participants, spec.max_participants), (9, 4, 4));
    assert_eq!(spec.round_timeout_ms, 30 * 60 * 1000);
    assert_eq!((spec.training.epochs, spec.training.batch_size), (1, 32));
    assert_eq!(spec.start, Start::Recipe(Recipe::Mlp { hidden: vec![128] }));
    assert_eq!((spec.strategy.name(), spec.seed), ("fedavg", 7));
}

#[test]
fn what_is_said_is_taken() {
    let mut request = request();
    request.hyperparameters = serde_json::from_value(json!({
        "local_epochs": 3, "batch_size": 16, "learning_rate": 0.3, "optimizer": "sgd", "momentum": 0.9,
        "weight_decay": 0.01, "hidden": [32, 16], "max_examples": 500, "round_timeout_s": 1.5
    }))
    .unwrap();
    request.strategy = Some(StrategyChoice { name: "federated_averaging".into(), config: Map::new() });
    let spec = ask(&request, &TrainingConfig::default()).unwrap();
    assert_eq!(spec.training.momentum, 0.9);
    assert_eq!(spec.start, Start::Recipe(Recipe::Mlp { hidden: vec![32, 16] }));
    assert_eq!((spec.round_timeout_ms, spec.max_examples), (1_500, 500));
    assert_eq!(spec.strategy.name(), "fedavg");
}

#[test]
fn names_that_nobody_knows_are_answered_with_the_nearest() {
    let named = |name: &str| ModelChoice::Named(name.to_owned());
    check(|r| r.model_architecture = named("mpl"), "/model_architecture", "did you mean `mlp`");
    check(|r| r.job_type = Some("standart".into()), "/job_type", "did you mean `standard`");
    check(
        |r| r.strategy = Some(StrategyChoice { name: "fedavgg".into(), config: Map::new() }),
        "/strategy/name",
        "did you mean `fedavg`",
    );
    check(
        |r| r.privacy_techniques = Some(vec!["secure_agregation".into()]),
        "/privacy_techniques/0",
        "did you mean `secure_aggregation`",
    );
    check(hyper("learning_rat", json!(1)), "/hyperparameters/learning_rat", "did you mean `learning_rate`");
}

#[test]
fn what_is_known_and_not_built_is_refused_with_the_way_out() {
    let named = |name: &str| ModelChoice::Named(name.to_owned());
    check(|r| r.model_architecture = named("residual_cnn"), "/model_architecture", "not build it yet");
    check(|r| r.job_type = Some("statistics".into()), "/job_type", "use `standard`");
    check(hyper("optimizer", json!("adam")), "/hyperparameters/optimizer", "`sgd`");
    check(
        |r| {
            let config = [("beta".to_owned(), json!(0.1))].into_iter().collect();
            r.strategy = Some(StrategyChoice { name: "fedavg".into(), config });
        },
        "/strategy/config/beta",
        "unknown fedavg setting `beta`",
    );
}

fn strategy(name: &str, config: Value) -> impl FnOnce(&mut JobRequest) {
    let choice = StrategyChoice { name: name.to_owned(), config: serde_json::from_value(config).unwrap() };
    move |request| request.strategy = Some(choice)
}

#[test]
fn a_strategy_says_what_it_needs_of_settings_cohort_and_training() {
    check(strategy("krum", json!({})), "/strategy/config/byzantine", "is missing; how many nodes may be dishonest");
    check(strategy("bulyan", json!({"byzantine": 1})), "/min_participants", "n >= 4f + 3 with byzantine f = 1");
    check(strategy("trimmed_mean", json!({"bta": 0.4})), "/strategy/config/bta", "did you mean `beta`");
    check(strategy("fedprox", json!({"mu": 10})), "/strategy/config", "mu 10 with learning_rate 0.1 overshoots");
    check(
        |r| {
            strategy("scaffold", json!({}))(r);
            r.hyperparameters.insert("momentum".into(), json!(0.5));
        },
        "/strategy/config",
        "leave momentum out",
    );
    check(
        |r| {
            strategy("krum", json!({"byzantine": 0}))(r);
            r.max_participants = Some(2_001);
        },
        "/max_participants",
        "2000",
    );
}

#[test]
fn jobs_that_name_no_strategy_take_the_operators_and_a_robust_one_where_he_wants_it() {
    let of = |default: &str, byzantine_tolerance: bool| {
        let config =
            TrainingConfig { default_strategy: default.into(), byzantine_tolerance, ..TrainingConfig::default() };
        ask(&request(), &config).map(|spec| spec.strategy.name())
    };
    assert_eq!(of("federated_averaging", false), Ok("fedavg"));
    assert_eq!(of("fedadam", false), Ok("fedadam"));
    assert_eq!(of("federated_averaging", true), Ok("geometric_median"));
    assert_eq!(of("fedadam", true), Ok("geometric_median"));
    assert_eq!(of("median", true), Ok("median"), "a robust default is the operator's own choice");
    assert_eq!(of("median", false), Ok("median"));
    let faults = of("meden", true).unwrap_err();
    assert!(faults[0].detail.starts_with("training.aggregation.default_strategy: "), "{faults:?}");
    assert!(faults[0].detail.contains("did you mean `median`"), "{faults:?}");
    let mut named = request();
    strategy("fedavg", json!({}))(&mut named);
    let config = TrainingConfig { byzantine_tolerance: true, ..TrainingConfig::default() };
    assert_eq!(ask(&named, &config).unwrap().strategy.name(), "fedavg", "a job's own word wins");
}

#[test]
fn privacy_that_cannot_be_given_is_refused_as_such() {
    for technique in TECHNIQUES.into_iter().filter(|name| *name != crate::secure::TECHNIQUE) {
        let mut asked = request();
        asked.privacy_techniques = Some(vec![technique.to_owned()]);
        let faults = ask(&asked, &TrainingConfig::default()).unwrap_err();
        assert_eq!((faults.len(), faults[0].kind), (1, ErrorKind::PrivacyUnsupported), "{technique}");
        assert_eq!(TrainingError::Refused(faults).kind(), ErrorKind::PrivacyUnsupported);
    }
    check(
        |r| {
            r.privacy.insert("epsilon".into(), json!(1.0));
        },
        "/privacy/epsilon",
        "unknown privacy parameter `epsilon`",
    );
}

#[test]
fn a_job_that_says_nothing_of_privacy_gets_what_is_promised() {
    let promising = TrainingConfig { enable_secure_aggregation: true, ..TrainingConfig::default() };
    let silent = JobRequest { privacy_techniques: None, ..request() };
    assert_eq!(ask(&silent, &promising).unwrap().secure, Some(crate::secure::WITHSTANDS));
    assert_eq!(ask(&silent, &TrainingConfig::default()).unwrap().secure, None, "nothing is promised");
    assert_eq!(ask(&request(), &promising).unwrap().secure, None, "an empty list asks for none");
    // Robustness without seeing updates is a bound of their norm.
    let robust = TrainingConfig { byzantine_tolerance: true, ..promising };
    let spec = ask(&silent, &robust).unwrap();
    assert_eq!((spec.strategy.name(), spec.clip), ("fedavg", Some(10.0)));
    let plain = ask(&request(), &robust).unwrap();
    assert_eq!((plain.strategy.name(), plain.clip), ("geometric_median", None));
}

#[test]
fn numbers_outside_their_range_are_named_with_it() {
    check(|r| r.total_rounds = Some(0), "/total_rounds", "0 is outside 1 to 100000");
    check(|r| r.job_name = "  ".into(), "/job_name", "1 to 200 characters");
    check(
        |r| (r.min_participants, r.max_participants) = (Some(5), Some(4)),
        "/max_participants",
        "4 is less than min_participants, 5",
    );
    check(hyper("local_epochs", json!(1.5)), "/hyperparameters/local_epochs", "a whole number from 1 to 10000");
    check(hyper("learning_rate", json!("0.1")), "/hyperparameters/learning_rate", "a number from");
    check(hyper("learning_rate", json!(0)), "/hyperparameters/learning_rate", "0 was given");
    check(hyper("momentum", json!(1.0)), "/hyperparameters/momentum", "from 0 to 0.999999");
    check(hyper("hidden", json!([0])), "/hyperparameters/hidden", "widths from 1 to 65536");
    check(hyper("hidden", json!(vec![1; 33])), "/hyperparameters/hidden", "at most 32");
    check(hyper("round_timeout_s", json!(1e6)), "/hyperparameters/round_timeout_s", "86400");
}

#[test]
fn a_cohort_whose_sum_could_overflow_is_refused_before_a_member_is_blamed_for_it() {
    let mut large = request();
    large.max_participants = Some(100_000);
    large.hyperparameters.insert("max_examples".into(), json!(MAX_EXAMPLES));
    let faults = ask(&large, &TrainingConfig::default()).unwrap_err();
    assert_eq!(faults[0].pointer, "/hyperparameters/max_examples");
    let advice = faults[0].detail.split("at most ").nth(1).unwrap();
    let most: u64 = advice.split(' ').next().unwrap().parse().unwrap();
    assert!(faults[0].detail.contains("14073747157811200000"), "the sum in numbers: {}", faults[0].detail);
    large.hyperparameters.insert("max_examples".into(), json!(most));
    assert!(ask(&large, &TrainingConfig::default()).is_ok(), "the advice helps");
    let bound = u128::from(Grid::default().bound.unsigned_abs());
    assert!(bound * u128::from(most) * 100_000 <= u128::from(i64::MAX.unsigned_abs()));
}

#[test]
fn all_faults_are_told_together_names_before_privacy() {
    let mut asked = request();
    asked.privacy_techniques = Some(vec!["differential_privacy".into(), "magic".into()]);
    asked.privacy.insert("epsilon".into(), json!(1));
    asked.model_architecture = ModelChoice::Named("mpl".into());
    asked.total_rounds = Some(0);
    asked.job_type = Some("audit".into());
    asked.hyperparameters = serde_json::from_value(json!({"epochs": 1, "batch_size": 0})).unwrap();
    let faults = ask(&asked, &TrainingConfig::default()).unwrap_err();
    let mut pointers: Vec<_> = faults.iter().map(|f| f.pointer.as_str()).collect();
    let privacy = pointers.split_off(6);
    pointers.sort_unstable();
    assert_eq!(
        pointers,
        [
            "/hyperparameters/batch_size",
            "/hyperparameters/epochs",
            "/job_type",
            "/model_architecture",
            "/privacy_techniques/1",
            "/total_rounds",
        ]
    );
    assert_eq!(privacy, ["/privacy_techniques/0", "/privacy/epsilon"]);
    assert_eq!(TrainingError::Refused(faults).kind(), ErrorKind::Invalid);
}

#[test]
fn a_catalogue_model_serves_as_a_start_and_a_recipes_name_is_never_looked_up() {
    let model = CatalogueModel { id: ModelId::new("ours").unwrap(), architecture: linear(), bundle: None };
    let mut asked = request();
    asked.model_architecture = ModelChoice::Named("ours".into());
    let find = |id: &ModelId| (id.as_str() == "ours").then(|| model.clone());
    let job = JobId::new("job").unwrap();
    let spec = resolve(&asked, &TrainingConfig::default(), find, job.clone(), 1).unwrap();
    assert_eq!(spec.start, Start::Model(model));
    assert_eq!(spec.recipe_name(), "ours");
    let never = |id: &ModelId| panic!("{id} was looked up");
    assert!(resolve(&request(), &TrainingConfig::default(), never, job, 1).is_ok());
}

#[test]
fn layers_are_taken_as_they_are() {
    let layers = vec![LayerSpec::Dense { units: 2 }];
    let asked = JobRequest { model_architecture: ModelChoice::Layers(layers.clone()), ..request() };
    let spec = ask(&asked, &TrainingConfig::default()).unwrap();
    assert_eq!(spec.start, Start::Recipe(Recipe::Layers(layers)));
}

#[test]
fn room_for_updates_is_reckoned_with_planes_state_and_rounds() {
    let mut job = crate::testing::spec(2, 10, 100);
    let mib = |n: u64| n << 20;
    let parameters = 1 << 18;
    assert_eq!(job.space_fault(parameters, mib(10 + 3)), None);
    assert_eq!(job.space_fault(parameters, mib(10 + 3) - 1).unwrap().pointer, "/max_participants");
    job.retain_updates = true;
    let fault = job.space_fault(parameters, mib(1_000)).unwrap();
    assert_eq!(fault.pointer, "/retain_updates");
    assert!(fault.detail.contains("100 rounds of 10 updates"), "{}", fault.detail);
    assert_eq!(job.space_fault(parameters, mib(1_000 + 3)), None);
    job.retain_updates = false;
    job.strategy = crate::strategy::named("scaffold", &Map::new()).unwrap().strategy;
    assert_eq!(job.space_fault(parameters, mib(20 + 6)), None);
    assert!(job.space_fault(parameters, mib(20 + 6) - 1).is_some());
}

#[test]
fn personal_tensors_that_mean_nothing_are_refused_where_the_model_is_known() {
    let named = |pattern: &str| StrategyChoice {
        name: "fedavg".into(),
        config: json!({"personal_tensors": [pattern]}).as_object().unwrap().clone(),
    };
    let known = |r: &mut JobRequest| {
        r.dataset_requirements.input = Some(vec![3]);
        r.dataset_requirements.classes = Some(2);
    };
    check(
        |r| {
            known(r);
            r.strategy = Some(named("layer000.weigth"));
        },
        "/strategy/config/personal_tensors",
        "did you mean `layer000.weight`",
    );
    check(
        |r| {
            known(r);
            r.strategy = Some(named("*"));
        },
        "/strategy/config/personal_tensors",
        "nothing would be trained together",
    );
    let mut later = request();
    later.strategy = Some(named("anything"));
    assert!(ask(&later, &TrainingConfig::default()).is_ok(), "the first cohort decides");
}

#[test]
fn an_asynchronous_job_needs_as_many_members_as_its_buffer_holds() {
    let asked = |min: Option<u32>| {
        let config = json!({"buffer_size": 4}).as_object().unwrap().clone();
        let strategy = Some(StrategyChoice { name: "fedbuff".into(), config });
        JobRequest { min_participants: min, strategy, ..request() }
    };
    for min in [None, Some(4)] {
        assert_eq!(ask(&asked(min), &TrainingConfig::default()).unwrap().min_participants, 4);
    }
    check(|r| *r = asked(Some(3)), "/min_participants", "set buffer_size to 3");
}

#[test]
fn a_norm_goes_with_recipes_that_have_hidden_layers() {
    let mut asked = request();
    let plain = ask(&asked, &TrainingConfig::default()).unwrap();
    asked.hyperparameters.insert("norm".into(), json!("none"));
    assert_eq!(ask(&asked, &TrainingConfig::default()).unwrap(), plain);
    asked.hyperparameters.insert("norm".into(), json!("batch"));
    let spec = ask(&asked, &TrainingConfig::default()).unwrap();
    let want = Recipe::Mlp { hidden: vec![128] }.with_norm(Norm::Batch).unwrap();
    assert_eq!((spec.start.clone(), spec.recipe_name()), (Start::Recipe(want), "mlp"));
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), spec);
    check(hyper("norm", json!("bach")), "/hyperparameters/norm", "did you mean `batch`");
    check(hyper("norm", json!(true)), "/hyperparameters/norm", "`none` or `batch`");
    for choice in
        [ModelChoice::Named("logistic_regression".into()), ModelChoice::Layers(vec![LayerSpec::Dense { units: 2 }])]
    {
        let normalised = |r: &mut JobRequest| {
            r.model_architecture = choice;
            r.hyperparameters.insert("norm".into(), json!("batch"));
        };
        check(normalised, "/hyperparameters/norm", "an option of `mlp` and `simple_cnn`");
    }
    let model = CatalogueModel { id: ModelId::new("ours").unwrap(), architecture: linear(), bundle: None };
    asked.model_architecture = ModelChoice::Named("ours".into());
    let job = JobId::new("job").unwrap();
    let faults = resolve(&asked, &TrainingConfig::default(), |_| Some(model), job, 1).unwrap_err();
    assert_eq!(faults[0].pointer, "/hyperparameters/norm");
}

#[test]
fn who_asks_for_clipped_examples_is_told_that_batch_norm_mixes_them() {
    let mut asked = request();
    asked.privacy_techniques = Some(vec!["secure_aggregation".into(), "differential_privacy".into()]);
    let mixed = |asked: &JobRequest| -> Vec<Fault> {
        let faults = ask(asked, &TrainingConfig::default()).unwrap_err();
        faults.into_iter().filter(|f| f.detail.contains("no example has a gradient of its own")).collect()
    };
    assert_eq!(mixed(&asked), []);
    asked.hyperparameters.insert("norm".into(), json!("batch"));
    let found = mixed(&asked);
    assert_eq!(
        (found.len(), found[0].kind, found[0].pointer.as_str()),
        (1, ErrorKind::Invalid, "/privacy_techniques/1")
    );
    assert!(found[0].detail.contains("`norm: none`"), "{}", found[0].detail);
    asked.hyperparameters.remove("norm");
    asked.model_architecture = ModelChoice::Layers(vec![LayerSpec::Dense { units: 2 }, LayerSpec::BatchNorm {}]);
    assert!(mixed(&asked)[0].detail.contains("layer 1: batch_norm"));
}
