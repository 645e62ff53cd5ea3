//! What leaves a node, and what stays on it: tensors that are personal, the second plane, refusals.

use aivillage_base::wire::{DataSummary, LocalTraining};
use aivillage_base::{Recipe, Task};
use proptest::prelude::*;

use super::*;
use crate::participant::policy::{Moment, RetainUpdates, Rule, judge};
use crate::trainer::PersonalModel;

const RATE: f64 = 0.125;
const STEPS: u32 = 4;

/// Descends on 1/2 |w - target|^2 with what it is told to add, and makes a personal model if it is asked for one.
#[derive(Debug)]
struct Quadratic {
    target: Vec<f32>,
    initial_loss: Option<f64>,
}

impl Trainer for Quadratic {
    fn data(&self) -> Vec<DataSummary> {
        Vec::new()
    }

    fn train(
        &self,
        invitation: &Invitation,
        _: &str,
        mut values: Vec<f32>,
        terms: LocalTerms<'_>,
    ) -> Result<LocalOutcome, TrainError> {
        let personal = match invitation.local {
            LocalRule::Ditto { .. } => {
                let start = if terms.personal.is_empty() { &values } else { terms.personal };
                let values = start.iter().zip(&self.target).map(|(v, t)| (v + t) / 2.0).collect();
                Some(PersonalModel { values, metrics: LocalMetrics::default() })
            }
            LocalRule::Plain | LocalRule::Scaffold { .. } | LocalRule::Unknown => None,
        };
        for _ in 0..STEPS {
            for (i, w) in values.iter_mut().enumerate() {
                let correction = terms.correction.get(i).copied().unwrap_or(0.0);
                *w -= 0.125 * (*w - self.target[i] + correction);
            }
        }
        let outcome = LocalOutcome::plain(values, 100, STEPS, LocalMetrics::default());
        Ok(LocalOutcome { initial_loss: self.initial_loss, personal, ..outcome })
    }
}

/// Bias of one value, weight of three.
fn architecture() -> Architecture {
    Recipe::LinearRegression.build(&[3], Task::Regression).unwrap()
}

fn quadratic() -> Quadratic {
    Quadratic { target: vec![1.0, -2.0, 0.5, 3.0], initial_loss: None }
}

fn invitation(local: LocalRule) -> Invitation {
    Invitation {
        architecture: architecture(),
        training: LocalTraining { learning_rate: RATE, ..crate::testing::invitation().training },
        local,
        ..crate::testing::invitation()
    }
}

fn bundle_of(values: &[f32]) -> Vec<u8> {
    bundle::write(&architecture(), values).unwrap()
}

fn made(
    trainer: &Quadratic,
    invitation: &Invitation,
    model: &[f32],
    control: Option<&[f32]>,
    state: &LocalState,
) -> Result<Prepared, String> {
    let (model, control) = (bundle_of(model), control.map(bundle_of));
    let received = Received { model: &model, control: control.as_deref(), state };
    prepare(trainer, &NodeName::new("a").unwrap(), &NodePolicy::default(), invitation, received)
}

/// The integers of an update as numbers.
fn changes(prepared: &Prepared) -> Vec<f64> {
    let integers = prepared.payload.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b));
    integers.map(|q| f64::from(q) * Grid::default().step()).collect()
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 2e-6), "{got:?} {want:?}");
}

#[test]
fn a_plain_update_is_the_change_and_nothing_is_kept() {
    let prepared = made(&quadratic(), &invitation(LocalRule::Plain), &[0.0; 4], None, &LocalState::default()).unwrap();
    let gone = 1.0 - 0.875f64.powi(4);
    close(&changes(&prepared), &[gone, -2.0 * gone, 0.5 * gone, 3.0 * gone]);
    assert!(prepared.state.is_empty() && prepared.personal.is_none());
    let header = &prepared.header;
    assert_eq!((header.steps, header.weight, header.initial_loss, header.retain), (STEPS, 10, None, false));
    assert_eq!(prepared.mark(), Receipt { key: header.key.clone(), digest: Digest::of(&prepared.payload) });
}

#[test]
fn tensors_that_stay_are_not_sent_and_come_back_in_the_next_round() {
    let mut invitation = invitation(LocalRule::Plain);
    invitation.personal = vec!["layer000.bias".into()];
    let first = made(&quadratic(), &invitation, &[0.0; 4], None, &LocalState::default()).unwrap();
    let gone = 1.0 - 0.875f32.powi(4);
    close(&changes(&first), &[-2.0, 0.5, 3.0].map(|t| t * f64::from(gone)));
    // The own bias beside the received weight.
    assert!((first.state.own[0] - gone).abs() < 1e-6);
    assert_eq!(first.state.own[1..], [0.0; 3]);
    assert_eq!(first.state.personal(), first.state.own);
    // A received bias of 100 is not looked at.
    let second = made(&quadratic(), &invitation, &[100.0, 0.0, 0.0, 0.0], None, &first.state).unwrap();
    let own = 1.0 - 0.875f32.powi(8);
    assert!((second.state.own[0] - own).abs() < 1e-6, "{:?}", second.state.own);
    assert_eq!(second.payload, first.payload);
}

#[test]
fn scaffold_sends_the_change_of_its_control_variate_as_second_plane() {
    let scaffold = invitation(LocalRule::Scaffold { control: None });
    let first = made(&quadratic(), &scaffold, &[0.0; 4], None, &LocalState::default()).unwrap();
    let sent = changes(&first);
    assert_eq!(sent.len(), 8);
    // Option II without variates: the mean gradient over the steps.
    let mean: Vec<f64> = sent[..4].iter().map(|change| -change / (f64::from(STEPS) * RATE)).collect();
    close(&sent[4..], &mean);
    assert_eq!(first.state.control.iter().map(|c| f64::from(*c)).collect::<Vec<_>>(), sent[4..]);
    // With them: c_i+ = c_i - c + (received - trained) / (steps * rate), gradients corrected by c - c_i.
    let server = [0.25, -0.5, 0.0, 1.0];
    let second = made(&quadratic(), &scaffold, &[0.5; 4], Some(&server), &first.state).unwrap();
    let sent = changes(&second);
    for i in 0..4 {
        let (own, c) = (f64::from(first.state.control[i]), f64::from(server[i]));
        let towards = f64::from(quadratic().target[i]) - (c - own);
        close(&[sent[i]], &[(towards - 0.5) * (1.0 - 0.875f64.powi(4))]);
        close(&[sent[4 + i]], &[-c - sent[i] / (f64::from(STEPS) * RATE)]);
        assert_eq!(f64::from(second.state.control[i]), own + sent[4 + i]);
    }
    // Back at the server's variate, own ones cancel: a node whose variates are equal trains as if there were none.
    let state = LocalState { control: server.to_vec(), ..LocalState::default() };
    let plain = made(&quadratic(), &invitation(LocalRule::Plain), &[0.5; 4], None, &LocalState::default()).unwrap();
    let equal = made(&quadratic(), &scaffold, &[0.5; 4], Some(&server), &state).unwrap();
    assert_eq!(equal.payload[..16], plain.payload[..]);
}

#[test]
fn scaffold_leaves_out_tensors_that_stay_in_both_planes() {
    let mut invitation = invitation(LocalRule::Scaffold { control: None });
    invitation.personal = vec!["layer000.weight".into()];
    let prepared = made(&quadratic(), &invitation, &[0.0; 4], None, &LocalState::default()).unwrap();
    assert_eq!(changes(&prepared).len(), 2);
    assert_eq!(prepared.state.control[1..], [0.0; 3]);
    assert_eq!(prepared.state.own.len(), 4);
}

#[test]
fn dittos_personal_model_stays_and_goes_on() {
    let ditto = invitation(LocalRule::Ditto { lambda: 1.0 });
    let first = made(&quadratic(), &ditto, &[0.0; 4], None, &LocalState::default()).unwrap();
    assert_eq!(first.state.model, [0.5, -1.0, 0.25, 1.5]);
    assert!(first.personal.is_some());
    let second = made(&quadratic(), &ditto, &[0.0; 4], None, &first.state).unwrap();
    assert_eq!(second.state.model, [0.75, -1.5, 0.375, 2.25]);
    assert_eq!(second.payload, first.payload, "what is sent does not depend on it");
}

#[test]
fn an_update_may_be_kept_only_if_job_and_owner_say_so() {
    for (asked, allowed) in [(false, false), (false, true), (true, false), (true, true)] {
        let invitation = Invitation { retain_updates: asked, ..invitation(LocalRule::Plain) };
        let retain_updates = if allowed { RetainUpdates::IfAsked } else { RetainUpdates::Withheld };
        let policy = NodePolicy { retain_updates, ..NodePolicy::default() };
        let (model, state) = (bundle_of(&[0.0; 4]), LocalState::default());
        let received = Received { model: &model, control: None, state: &state };
        let prepared = prepare(&quadratic(), &NodeName::new("a").unwrap(), &policy, &invitation, received).unwrap();
        assert_eq!(prepared.header.retain, asked && allowed);
    }
}

#[test]
fn the_received_models_loss_travels_where_it_is_asked_for() {
    let invitation = Invitation { initial_loss: true, ..invitation(LocalRule::Plain) };
    let made = |initial_loss| {
        let trainer = Quadratic { initial_loss, ..quadratic() };
        made(&trainer, &invitation, &[0.0; 4], None, &LocalState::default()).map(|p| p.header.initial_loss)
    };
    assert_eq!(made(Some(0.5)), Ok(Some(0.5)));
    assert!(made(None).unwrap_err().contains("did not measure"));
    assert!(made(Some(f64::NAN)).unwrap_err().contains("not finite"));
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let none = LocalState::default();
    let refused = |invitation: &Invitation, control: Option<&[f32]>, state: &LocalState, reason: &str| {
        let error = made(&quadratic(), invitation, &[0.0; 4], control, state).unwrap_err();
        assert!(error.contains(reason), "{error}");
    };
    let plain = invitation(LocalRule::Plain);
    let mut momentum = invitation(LocalRule::Scaffold { control: None });
    momentum.training.momentum = 0.5;
    refused(&momentum, None, &none, "without momentum");
    refused(&Invitation { personal: vec!["head".into()], ..plain.clone() }, None, &none, "none of that name");
    refused(&Invitation { grids: vec![Grid::default()], ..plain.clone() }, None, &none, "1 grids for 2 tensors");
    let other = Recipe::LinearRegression.build(&[2], Task::Regression).unwrap();
    refused(&Invitation { architecture: other, ..plain.clone() }, None, &none, "not the invitation's");
    let state = LocalState { own: vec![0.0; 3], ..LocalState::default() };
    refused(&plain, None, &state, "another shape");
    let (model, damaged) = (bundle_of(&[0.0; 4]), b"no bundle".as_slice());
    let received = Received { model: &model, control: Some(damaged), state: &none };
    let scaffold = invitation(LocalRule::Scaffold { control: None });
    let name = NodeName::new("a").unwrap();
    let error = prepare(&quadratic(), &name, &NodePolicy::default(), &scaffold, received).unwrap_err();
    assert!(error.contains("the control variate"), "{error}");
    let wild = Quadratic { target: vec![f32::INFINITY; 4], ..quadratic() };
    let error = made(&wild, &plain, &[0.0; 4], None, &none).unwrap_err();
    assert!(error.contains("layer000.bias") && error.contains("not finite"), "{error}");
}

#[test]
fn a_rule_of_a_later_version_is_read_and_declined() {
    let mut text = serde_json::to_value(invitation(LocalRule::Plain)).unwrap();
    text["local"] = serde_json::json!({ "kind": "of_a_later_version", "strength": 3 });
    let invitation: Invitation = serde_json::from_value(text).unwrap();
    assert_eq!(invitation.local, LocalRule::Unknown);
    assert_eq!(judge(&NodePolicy::default(), 0, &invitation, Moment::Asked).unwrap_err().rule, Rule::Local);
}

proptest! {
    /// Over any course of rounds the node's variate is the sum of what it sent, to the bit: coordinator and node agree.
    #[test]
    fn a_control_variate_is_the_sum_of_what_was_sent(
        rounds in prop::collection::vec(prop::array::uniform4(-1.0f32..1.0), 1..8),
    ) {
        let (mut state, mut sum) = (LocalState::default(), [0.0f64; 4]);
        for received in rounds {
            let scaffold = invitation(LocalRule::Scaffold { control: None });
            let prepared = made(&quadratic(), &scaffold, &received, Some(&received), &state).unwrap();
            for (sum, change) in sum.iter_mut().zip(&changes(&prepared)[4..]) {
                *sum += change;
            }
            state = prepared.state;
            prop_assert_eq!(state.control.iter().map(|c| f64::from(*c)).collect::<Vec<_>>(), sum);
        }
    }
}
