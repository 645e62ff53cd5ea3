//! What strategies ask of local training, through the engine's door: the proximal term, corrections, personal models, the
//! received model's loss, clipping.

use aivillage_base::arch::Architecture;
use aivillage_base::wire::LocalTraining;
use aivillage_engine::data::{Bundled, Dataset, bundled};
use aivillage_engine::{Extras, LocalJob, evaluate, initial_values, local, local_with};
use aivillage_training::trainer::{LocalOutcome, LocalTerms, TrainError};

use super::{Ticks, digest, digits_mlp, recipe};

/// One batch an epoch: the gradient does not depend on the order of rows but in its last bits.
fn whole(rate: f64, epochs: u32) -> LocalTraining {
    LocalTraining { epochs, batch_size: 10_000, learning_rate: rate, ..recipe() }
}

fn run(arch: &Architecture, training: &LocalTraining, start: &[f32], extras: &Extras<'_>) -> LocalOutcome {
    let job = LocalJob { architecture: arch, training, seed: 1, round: 1, node: "a" };
    local_with(job, start.to_vec(), extras, &bundled(Bundled::Digits), &Ticks::default()).expect("training that fits")
}

fn close(got: &[f32], want: impl Iterator<Item = f64>, allowed: f64) {
    let mut count = 0;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= allowed, "value {i}: {got} {want}");
        count += 1;
    }
    assert_eq!(count, got.len());
}

/// The gradient of the mean loss over all rows, from one step of plain descent.
fn gradient(arch: &Architecture, at: &[f32]) -> Vec<f64> {
    let rate = 0.25;
    let stepped = run(arch, &whole(rate, 1), at, &Extras::default()).values;
    at.iter().zip(&stepped).map(|(old, new)| (f64::from(*old) - f64::from(*new)) / rate).collect()
}

#[test]
fn the_proximal_term_draws_to_the_received_model() {
    let arch = digits_mlp();
    let (rate, mu) = (0.25, 0.5);
    let start = initial_values(&arch, 1).unwrap();
    let first = run(&arch, &whole(rate, 1), &start, &Extras::default()).values;
    let training = LocalTraining { proximal_mu: mu, ..whole(rate, 2) };
    let got = run(&arch, &training, &start, &Extras::default());
    // The first step leaves the received model, where the term is zero; the second feels it.
    let terms = first.iter().zip(&start).zip(gradient(&arch, &first));
    let want = terms.map(|((w, w0), g)| f64::from(*w) - rate * (g + mu * (f64::from(*w) - f64::from(*w0))));
    close(&got.values, want, 2e-6);
    assert_eq!(got.steps, 2);
    let distance = |outcome: &LocalOutcome| -> f64 {
        outcome.values.iter().zip(&start).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let free = run(&arch, &recipe(), &start, &Extras::default());
    let held = run(&arch, &LocalTraining { proximal_mu: 1.0, ..recipe() }, &start, &Extras::default());
    assert!(distance(&held) < 0.5 * distance(&free));
}

#[test]
fn a_correction_is_added_to_every_gradient() {
    let arch = digits_mlp();
    let start = initial_values(&arch, 1).unwrap();
    let correction: Vec<f32> = start.iter().map(|v| 0.1 * v).collect();
    let terms = LocalTerms { correction: &correction, personal: &[] };
    let got = run(&arch, &whole(0.25, 1), &start, &Extras { terms, ..Extras::default() }).values;
    let want = start.iter().zip(gradient(&arch, &start)).zip(&correction);
    close(&got, want.map(|((w, g), c)| f64::from(*w) - 0.25 * (g + f64::from(*c))), 2e-6);
}

#[test]
fn dittos_personal_model_trains_beside_the_other_and_leaves_it_alone() {
    let arch = digits_mlp();
    let start = initial_values(&arch, 1).unwrap();
    let plain = run(&arch, &recipe(), &start, &Extras::default());
    assert_eq!((plain.personal, plain.initial_loss), (None, None));
    let ditto = |lambda, personal: &[f32]| {
        let terms = LocalTerms { correction: &[], personal };
        run(&arch, &recipe(), &start, &Extras { terms, personal_lambda: Some(lambda), ..Extras::default() })
    };
    let outcome = ditto(0.1, &[]);
    assert_eq!(digest(&outcome.values), digest(&plain.values), "the model that is sent is that of plain training");
    let first = outcome.personal.unwrap();
    assert_ne!(digest(&first.values), digest(&plain.values));
    let second = ditto(0.1, &first.values).personal.unwrap();
    assert!(second.metrics.accuracy.unwrap() > first.metrics.accuracy.unwrap(), "it goes on from where it was");
    // Its first step from the received model is plain descent; from elsewhere lambda pulls back.
    let one_step = |personal: &[f32]| {
        let terms = LocalTerms { correction: &[], personal };
        let extras = Extras { terms, personal_lambda: Some(2.0), ..Extras::default() };
        run(&arch, &whole(0.25, 1), &start, &extras).personal.unwrap().values
    };
    let v = &first.values;
    let want = v.iter().zip(gradient(&arch, v)).zip(&start);
    close(
        &one_step(v),
        want.map(|((v, g), w)| f64::from(*v) - 0.25 * (g + 2.0 * (f64::from(*v) - f64::from(*w)))),
        4e-6,
    );
    let pulled = ditto(2.0, &[]).personal.unwrap();
    let distance = |values: &[f32]| -> f64 { values.iter().zip(&start).map(|(a, b)| f64::from(a - b).powi(2)).sum() };
    assert!(distance(&pulled.values) < 0.5 * distance(&first.values));
}

#[test]
fn the_initial_loss_is_that_of_the_received_model() {
    let arch = digits_mlp();
    let start = initial_values(&arch, 3).unwrap();
    let extras = Extras { initial_loss: true, ..Extras::default() };
    let want = evaluate(&arch, &start, &bundled(Bundled::Digits)).unwrap();
    assert_eq!(run(&arch, &recipe(), &start, &extras).initial_loss, Some(want.loss));
    let line = Dataset::regression("line", vec![1], vec![0.0, 1.0], vec![1.0, 3.0]).unwrap();
    let arch = aivillage_base::Recipe::LinearRegression.build(&[1], aivillage_base::Task::Regression).unwrap();
    let job = LocalJob { architecture: &arch, training: &recipe(), seed: 1, round: 1, node: "a" };
    let outcome = local_with(job, vec![0.0, 0.0], &extras, &line, &Ticks::default()).unwrap();
    assert_eq!(outcome.initial_loss, Some(2.5));
}

#[test]
fn a_wide_bound_clips_nothing_and_a_narrow_one_bounds_the_step() {
    let arch = digits_mlp();
    let start = initial_values(&arch, 1).unwrap();
    let clipped =
        |bound| run(&arch, &whole(0.25, 1), &start, &Extras { clip: Some(bound), ..Extras::default() }).values;
    close(
        &clipped(1e6),
        run(&arch, &whole(0.25, 1), &start, &Extras::default()).values.iter().map(|v| f64::from(*v)),
        1e-6,
    );
    let norm: f64 = clipped(0.01).iter().zip(&start).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 0.0 && norm <= 0.25 * 0.01 * 1.001, "{norm}");
}

#[test]
fn terms_that_do_not_fit_are_refused() {
    let arch = digits_mlp();
    let start = initial_values(&arch, 1).unwrap();
    let wrong = [0.0; 3];
    let refused = |extras: &Extras<'_>, training: &LocalTraining| {
        let job = LocalJob { architecture: &arch, training, seed: 1, round: 1, node: "a" };
        let outcome = local_with(job, start.clone(), extras, &bundled(Bundled::Digits), &Ticks::default());
        assert!(matches!(outcome, Err(TrainError::Model(_))), "{extras:?}");
    };
    for terms in [LocalTerms { correction: &wrong, personal: &[] }, LocalTerms { correction: &[], personal: &wrong }] {
        refused(&Extras { terms, ..Extras::default() }, &recipe());
    }
    for number in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(&Extras { personal_lambda: Some(number), ..Extras::default() }, &recipe());
        refused(&Extras { clip: Some(number), ..Extras::default() }, &recipe());
    }
    refused(&Extras::default(), &LocalTraining { proximal_mu: -0.5, ..recipe() });
    let job = LocalJob { architecture: &arch, training: &recipe(), seed: 1, round: 1, node: "a" };
    assert!(local(job, &start, &bundled(Bundled::Digits), &Ticks::default()).is_ok());
}
