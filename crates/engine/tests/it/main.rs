//! The engine through its doors: training as a node does it, predicting as a worker does it, and the same bits twice.

use std::sync::Arc;

use aivillage_base::arch::{Architecture, LayerSpec, Recipe, Task};
use aivillage_base::time::{Clock, Now, SystemClock};
use aivillage_base::wire::{BlobRef, DataRequirements, Invitation, LocalRule, LocalTraining, RoundKey};
use aivillage_base::{Digest, bundle};
use aivillage_engine::data::{Bundled, Dataset, bundled, split};
use aivillage_engine::{
    Engine, LocalJob, NodeTrainer, TrainBench, bench_recipes, bench_train, evaluate, initial_values, local,
};

use aivillage_inference::predictor::{PredictError, Predictor};
use aivillage_training::trainer::{Initialiser, LocalOutcome, LocalTerms, TrainError, Trainer};

mod norm;
mod terms;

/// A clock that moves by 7 ms at each reading.
#[derive(Debug, Default)]
struct Ticks(std::sync::atomic::AtomicU64);

impl Clock for Ticks {
    fn now(&self) -> Now {
        let ms = self.0.fetch_add(7, std::sync::atomic::Ordering::Relaxed);
        Now { monotonic_ms: ms, wall_ms: 0 }
    }
}

fn recipe() -> LocalTraining {
    LocalTraining { epochs: 3, batch_size: 32, learning_rate: 0.3, momentum: 0.0, weight_decay: 0.0, proximal_mu: 0.0 }
}

fn digits_mlp() -> Architecture {
    Recipe::Mlp { hidden: vec![32] }.build(&[64], Task::Classification { classes: 10 }).expect("a fitting recipe")
}

fn train(
    arch: &Architecture,
    training: &LocalTraining,
    node: &str,
    round: u32,
    data: &Dataset,
) -> Result<LocalOutcome, TrainError> {
    let job = LocalJob { architecture: arch, training, seed: 1, round, node };
    local(job, &initial_values(arch, 1).expect("a whole architecture"), data, &Ticks::default())
}

fn digest(values: &[f32]) -> Digest {
    Digest::of(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

#[test]
fn training_gives_the_same_bits_twice_and_on_every_thread() {
    let data = bundled(Bundled::Digits);
    let cnn = Recipe::SimpleCnn.build(&[64], Task::Classification { classes: 10 }).unwrap();
    let heavy = LocalTraining { momentum: 0.9, weight_decay: 1e-3, learning_rate: 0.02, epochs: 1, ..recipe() };
    let norms = [norm::mlp(), norm::normalised(Recipe::SimpleCnn)].map(|arch| (arch, heavy.clone()));
    for (arch, training) in [(digits_mlp(), recipe()), (cnn, heavy)].into_iter().chain(norms) {
        let once = train(&arch, &training, "a", 1, &data).unwrap();
        std::thread::scope(|scope| {
            let again = || digest(&train(&arch, &training, "a", 1, &data).unwrap().values);
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(again)).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), digest(&once.values));
            }
        });
        for (node, round) in [("b", 1), ("a", 2)] {
            let other = train(&arch, &training, node, round, &data).unwrap();
            assert_ne!(digest(&other.values), digest(&once.values), "node {node} round {round}");
        }
    }
}

#[test]
fn a_node_learns_and_says_how_good_the_received_model_was() {
    let data = bundled(Bundled::Digits);
    let arch = digits_mlp();
    let before = evaluate(&arch, &initial_values(&arch, 1).unwrap(), &data).unwrap();
    let first = train(&arch, &LocalTraining { epochs: 10, ..recipe() }, "a", 1, &data).unwrap();
    let after = evaluate(&arch, &first.values, &data).unwrap();
    assert_eq!((first.examples, first.metrics.accuracy, first.metrics.train_ms), (1797, before.accuracy, 7));
    assert!(before.accuracy.unwrap() < 0.3 && after.accuracy.unwrap() > 0.97, "{before:?} {after:?}");
    assert!(first.metrics.loss < 0.2 && after.loss < before.loss, "{first:?}");
}

#[test]
fn a_linear_regression_finds_its_line() {
    let x: Vec<f32> = (0..200u16).map(|i| f32::from(i) / 100.0 - 1.0).collect();
    let y = x.iter().map(|x| 3.0 * x - 0.5).collect();
    let data = Dataset::regression("line", vec![1], x, y).unwrap();
    let arch = Recipe::LinearRegression.build(&[1], Task::Regression).unwrap();
    let out = train(&arch, &LocalTraining { epochs: 30, ..recipe() }, "a", 1, &data).unwrap();
    assert!((out.values[0] + 0.5).abs() < 1e-3 && (out.values[1] - 3.0).abs() < 1e-3, "{:?}", out.values);
    assert_eq!(out.metrics.accuracy, None);
    assert_eq!(evaluate(&arch, &out.values, &data).unwrap().accuracy, None);
}

#[test]
fn training_that_diverges_or_does_not_fit_gives_nothing() {
    let data = bundled(Bundled::Digits);
    let arch = digits_mlp();
    let wild = LocalTraining { learning_rate: 1e30, ..recipe() };
    assert_eq!(train(&arch, &wild, "a", 1, &data).unwrap_err(), TrainError::Diverged { epoch: 1 });
    for wrong in [
        LocalTraining { epochs: 0, ..recipe() },
        LocalTraining { batch_size: 0, ..recipe() },
        LocalTraining { learning_rate: f64::NAN, ..recipe() },
        LocalTraining { momentum: 1.0, ..recipe() },
        LocalTraining { weight_decay: -1.0, ..recipe() },
    ] {
        assert!(matches!(train(&arch, &wrong, "a", 1, &data), Err(TrainError::Model(_))), "{wrong:?}");
    }
    let cancer = bundled(Bundled::BreastCancer);
    assert!(matches!(train(&arch, &recipe(), "a", 1, &cancer), Err(TrainError::Model(_))));
    assert!(matches!(evaluate(&arch, &[0.0; 3], &data), Err(TrainError::Model(_))));
}

#[test]
fn federated_averaging_beats_every_node_alone_on_digits() {
    let split = split(Bundled::Digits, 6, 0.3, 1).unwrap();
    let arch = digits_mlp();
    let accuracy = |values: &[f32]| evaluate(&arch, values, &split.test).unwrap().accuracy.unwrap();
    let step = |training: &LocalTraining, round, node: usize, values: &[f32]| {
        let job = LocalJob { architecture: &arch, training, seed: 1, round, node: &format!("node-{node}") };
        local(job, values, &split.shards[node], &Ticks::default()).unwrap()
    };
    let mut model = initial_values(&arch, 1).unwrap();
    let long = LocalTraining { epochs: 60, ..recipe() };
    let alone = (0..6).map(|i| accuracy(&step(&long, 1, i, &model).values)).fold(0.0, f64::max);
    for round in 1..=20 {
        let updates: Vec<_> = (0..6).map(|i| step(&recipe(), round, i, &model)).collect();
        let total: f32 = updates.iter().map(|u| u.examples as f32).sum();
        for (i, value) in model.iter_mut().enumerate() {
            *value = updates.iter().map(|u| u.examples as f32 / total * u.values[i]).sum();
        }
    }
    let federated = accuracy(&model);
    assert!(federated > alone + 0.1 && federated > 0.9, "federated {federated}, best alone {alone}");
}

fn invitation(data: DataRequirements) -> Invitation {
    let architecture = digits_mlp();
    Invitation {
        key: RoundKey { job: "job_0001".parse().expect("a job id"), round: 1, attempt: 1 },
        job_name: "digits".into(),
        publisher: "ada".into(),
        job_type: "standard".into(),
        recipe: "mlp".into(),
        architecture,
        model: BlobRef { digest: Digest([0; 32]), bytes: 0 },
        training: recipe(),
        data,
        seed: 1,
        grids: Vec::new(),
        max_examples: 1000,
        local: LocalRule::Plain,
        initial_loss: false,
        personal: Vec::new(),
        receipt: None,
        retain_updates: false,
        clip: None,
        privacy_techniques: Vec::new(),
        secure: None,
        total_rounds: 1,
        deadline_ms: 1000,
    }
}

#[test]
fn a_node_trains_on_the_first_data_that_fits_and_says_why_none_does() {
    let sets = vec![bundled(Bundled::BreastCancer), bundled(Bundled::Digits)];
    let trainer = NodeTrainer::new(sets, Arc::new(Ticks::default()));
    assert_eq!(trainer.data().iter().map(|d| d.rows).collect::<Vec<_>>(), [569, 1797]);
    let values = Engine.initial_values(&digits_mlp(), 1);
    let train = |needs: DataRequirements, node: &str| {
        trainer.train(&invitation(needs), node, values.clone(), LocalTerms::default())
    };
    let any = train(DataRequirements::default(), "a").unwrap();
    assert_eq!(any.examples, 1797);
    let job = LocalJob { architecture: &digits_mlp(), training: &recipe(), seed: 1, round: 1, node: "a" };
    let same = local(job, &values, &bundled(Bundled::Digits), &Ticks::default()).unwrap();
    assert_eq!(any.values, same.values);
    for (needs, why) in [
        (DataRequirements { dataset: Some("mnist".into()), ..Default::default() }, "`digits` is not `mnist`"),
        (DataRequirements { classes: Some(2), ..Default::default() }, "the model takes [64]"),
        (DataRequirements { min_rows: Some(1798), ..Default::default() }, "fewer rows than the 1798"),
        (DataRequirements { input: Some(vec![1, 8, 8]), ..Default::default() }, "the job asks for [1, 8, 8]"),
    ] {
        match train(needs, "a") {
            Err(TrainError::NoData(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    let empty = NodeTrainer::new(Vec::new(), Arc::new(Ticks::default()));
    let none =
        empty.train(&invitation(DataRequirements::default()), "a", values.clone(), LocalTerms::default()).unwrap_err();
    assert_eq!(none.to_string(), "no data set of this node fits the job: it has none");
}

#[test]
fn a_bundle_predicts_probabilities_that_no_neighbour_changes() {
    let arch = digits_mlp();
    let data = bundled(Bundled::Digits);
    let values = train(&arch, &LocalTraining { epochs: 10, ..recipe() }, "a", 1, &data).unwrap().values;
    let model = Engine.load(&bundle::write(&arch, &values).unwrap()).unwrap();
    let rows: Vec<Vec<f32>> = (0..200).map(|r| data.x(r..r + 1).to_vec()).collect();
    let together = model.predict(&rows).unwrap();
    let mut right = 0;
    for ((row, out), label) in rows.iter().zip(&together).zip(data.labels().unwrap()) {
        assert!((out.iter().sum::<f32>() - 1.0).abs() < 1e-5 && out.iter().all(|p| *p >= 0.0));
        assert_eq!(model.predict(std::slice::from_ref(row)).unwrap()[0], *out);
        let best = (0..10).max_by(|a, b| out[*a].total_cmp(&out[*b])).unwrap();
        right += usize::from(best == *label as usize);
    }
    assert!(right > 190, "{right} of 200");
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| model.predict(&rows).unwrap())).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), together);
        }
    });
    assert_eq!(model.predict(&[]).unwrap(), Vec::<Vec<f32>>::new());
}

#[test]
fn a_regression_bundle_predicts_values() {
    let arch = Recipe::LinearRegression.build(&[2], Task::Regression).unwrap();
    let model = Engine.load(&bundle::write(&arch, &[0.5, 2.0, -1.0]).unwrap()).unwrap();
    assert_eq!(model.predict(&[vec![1.0, 2.0], vec![0.0, 0.0]]).unwrap(), [[0.5], [0.5]]);
}

#[test]
fn wrong_bundles_and_wrong_rows_are_refused_for_good() {
    let arch = digits_mlp();
    let bytes = bundle::write(&arch, &initial_values(&arch, 1).unwrap()).unwrap();
    for wrong in [&bytes[..bytes.len() - 1], b"", b"\x08\0\0\0\0\0\0\0{}      "] {
        assert!(matches!(Engine.load(wrong), Err(PredictError::Unfit(_))));
    }
    let model = Engine.load(&bytes).unwrap();
    let error = |row: Vec<f32>| match model.predict(&[vec![0.0; 64], row]) {
        Err(PredictError::Unfit(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(error(vec![0.0; 63]), "row 1 has 63 numbers, the model takes 64");
    assert_eq!(error(vec![f32::NAN; 64]), "row 1 holds a number that is not finite");
}

#[test]
fn the_benchmark_measures_both_recipes() {
    let bench = TrainBench { slice_ms: 1, slices: 1, clipping: true };
    for recipe in bench_recipes() {
        let speed = bench_train(&recipe, bench, &SystemClock::new()).unwrap();
        assert!(speed.samples_per_s > 0.0 && speed.clipped_samples_per_s.unwrap() > 0.0, "{speed:?}");
    }
    let plain = bench_train(&Recipe::SimpleCnn, TrainBench { clipping: false, ..bench }, &SystemClock::new()).unwrap();
    assert_eq!(plain.clipped_samples_per_s, None);
    let layers = Recipe::Layers(vec![LayerSpec::Dense { units: 3 }]);
    assert!(bench_train(&layers, bench, &SystemClock::new()).is_err());
}
