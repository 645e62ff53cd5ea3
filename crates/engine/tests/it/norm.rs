//! Models with batch normalisation through the engine's doors: they learn, their running statistics follow the data and
//! nothing else, and what cannot be is refused.

use aivillage_base::arch::{Architecture, Norm, Recipe, Task};
use aivillage_base::bundle;
use aivillage_base::time::SystemClock;
use aivillage_base::wire::LocalTraining;
use aivillage_engine::data::{Bundled, Dataset, bundled, split};
use aivillage_engine::{
    Engine, Extras, LocalJob, TrainBench, bench_train, evaluate, initial_values, local, local_with,
};
use aivillage_inference::predictor::{PredictError, Predictor};
use aivillage_training::trainer::{LocalTerms, TrainError};

use super::{Ticks, digits_mlp, recipe, train};

/// Where the running means of [`mlp`] start, and how many there are.
const MEANS: usize = 32 + 64 * 32;

/// 64 - 32, normalised - 10.
pub(super) fn mlp() -> Architecture {
    normalised(Recipe::Mlp { hidden: vec![32] })
}

pub(super) fn normalised(recipe: Recipe) -> Architecture {
    let recipe = recipe.with_norm(Norm::Batch).expect("a recipe with hidden layers");
    recipe.build(&[64], Task::Classification { classes: 10 }).expect("a fitting recipe")
}

#[test]
fn normalised_models_learn_and_predict_with_their_running_statistics() {
    let split = split(Bundled::Digits, 1, 1.0, 1).unwrap();
    let shard = &split.shards[0];
    for (arch, epochs, least) in [(mlp(), 10, 0.95), (normalised(Recipe::SimpleCnn), 2, 0.95)] {
        // Batches of 31 leave one row over at the end of some epochs' rows, and a smaller batch in any case.
        let training = LocalTraining { epochs, batch_size: 31, ..recipe() };
        let values = train(&arch, &training, "a", 1, shard).unwrap().values;
        let found = evaluate(&arch, &values, &split.test).unwrap().accuracy.unwrap();
        assert!(found > least, "{found}: {arch:?}");
        let model = Engine.load(&bundle::write(&arch, &values).unwrap()).unwrap();
        let rows: Vec<Vec<f32>> = (0..split.test.rows()).map(|r| split.test.x(r..r + 1).to_vec()).collect();
        let together = model.predict(&rows).unwrap();
        let winner = |out: &Vec<f32>| (0..10).max_by(|a, b| out[*a].total_cmp(&out[*b])).unwrap();
        let labels = split.test.labels().unwrap();
        let right = together.iter().zip(labels).filter(|(out, label)| winner(out) == **label as usize).count();
        assert_eq!(right as f64 / rows.len() as f64, found, "prediction and evaluation are one");
        assert_eq!(model.predict(&rows[7..8]).unwrap()[0], together[7], "no neighbour changes a prediction");
    }
}

#[test]
fn running_statistics_follow_batches_and_feel_no_optimiser() {
    let data = bundled(Bundled::Digits);
    let arch = mlp();
    let start = initial_values(&arch, 1).unwrap();
    let whole = LocalTraining { epochs: 1, batch_size: 10_000, ..recipe() };
    let job = LocalJob { architecture: &arch, training: &whole, seed: 1, round: 1, node: "a" };
    let plain = local(job, &start, &data, &Ticks::default()).unwrap().values;
    let statistics = &plain[MEANS..MEANS + 64];
    // What one step over all rows must leave, from the first layer's outputs in f64.
    for unit in [0, 13, 31] {
        let outputs: Vec<f64> = (0..data.rows())
            .map(|row| {
                let x = data.x(row..row + 1).iter().enumerate();
                x.map(|(i, x)| f64::from(*x) * f64::from(start[32 + i * 32 + unit])).sum()
            })
            .collect();
        let n = data.rows() as f64;
        let mean = outputs.iter().sum::<f64>() / n;
        let variance = outputs.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / (n - 1.0);
        assert!((f64::from(statistics[unit]) - 0.1 * mean).abs() < 1e-6, "unit {unit}");
        assert!((f64::from(statistics[32 + unit]) - (0.9 + 0.1 * variance)).abs() < 1e-6, "unit {unit}");
    }
    // Another rate, momentum, penalty, proximal term or correction moves all else and none of them.
    let correction = vec![0.5; start.len()];
    for (training, correction) in [
        (LocalTraining { learning_rate: 0.01, ..whole.clone() }, &[][..]),
        (LocalTraining { momentum: 0.9, weight_decay: 0.5, ..whole.clone() }, &[]),
        (LocalTraining { proximal_mu: 5.0, weight_decay: 0.1, ..whole.clone() }, &[]),
        (whole.clone(), &correction),
    ] {
        let extras = Extras { terms: LocalTerms { correction, personal: &[] }, ..Extras::default() };
        let job = LocalJob { training: &training, ..job };
        let other = local_with(job, start.clone(), &extras, &data, &Ticks::default()).unwrap().values;
        assert_eq!(other[MEANS..MEANS + 64], *statistics, "{training:?}");
        assert_ne!(other[..MEANS], plain[..MEANS], "{training:?}");
    }
}

#[test]
fn batches_of_one_row_train_by_running_statistics_and_constant_features_harm_nothing() {
    let data = bundled(Bundled::Digits);
    let arch = mlp();
    let single = LocalTraining { epochs: 1, batch_size: 1, learning_rate: 0.01, ..recipe() };
    let values = train(&arch, &single, "a", 1, &data).unwrap().values;
    let start = initial_values(&arch, 1).unwrap();
    assert_eq!(values[MEANS..MEANS + 64], start[MEANS..MEANS + 64]);
    assert!(evaluate(&arch, &values, &data).unwrap().accuracy.unwrap() > 0.8);
    // Corner pixels of the digits are constant; so are all of a data set of one row many times.
    let same = data.select(&[5; 40]);
    let values = train(&arch, &recipe(), "a", 1, &same).unwrap().values;
    assert!(values[MEANS + 32..MEANS + 64].iter().all(|v| *v >= 0.0));
    assert!(evaluate(&arch, &values, &same).unwrap().loss.is_finite());
}

#[test]
fn clipping_single_rows_is_refused_where_a_batch_mixes_them() {
    let data = bundled(Bundled::Digits);
    let training = recipe();
    let clipped = |arch: &Architecture| {
        let job = LocalJob { architecture: arch, training: &training, seed: 1, round: 1, node: "a" };
        let extras = Extras { clip: Some(1.0), ..Extras::default() };
        local_with(job, initial_values(arch, 1).unwrap(), &extras, &data, &Ticks::default())
    };
    assert!(clipped(&digits_mlp()).is_ok());
    match clipped(&mlp()) {
        Err(TrainError::Model(text)) => {
            assert!(text.contains("layer 1: batch_norm") && text.contains("`norm: none`"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let bench = TrainBench { slice_ms: 1, slices: 1, clipping: true };
    let recipe = Recipe::Mlp { hidden: vec![8] }.with_norm(Norm::Batch).unwrap();
    assert!(bench_train(&recipe, bench, &SystemClock::new()).unwrap_err().0.contains("clipped"));
    let plain = TrainBench { clipping: false, ..bench };
    assert!(bench_train(&recipe, plain, &SystemClock::new()).unwrap().samples_per_s > 0.0);
}

#[test]
fn a_variance_below_zero_is_refused_at_every_door() {
    let data: Dataset = bundled(Bundled::Digits);
    let arch = mlp();
    let mut values = initial_values(&arch, 1).unwrap();
    values[MEANS + 32 + 7] = -1e-6;
    let job = LocalJob { architecture: &arch, training: &recipe(), seed: 1, round: 1, node: "a" };
    let says = "has a running variance below zero";
    match local(job, &values, &data, &Ticks::default()) {
        Err(TrainError::Model(text)) => assert!(text.contains(says), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(evaluate(&arch, &values, &data).unwrap_err().to_string().contains(says));
    match Engine.load(&bundle::write(&arch, &values).unwrap()) {
        Err(PredictError::Unfit(text)) => assert!(text.contains(says), "{text}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
}
