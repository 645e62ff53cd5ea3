//! Which state a receipt takes up, and what is dropped: over any course of rounds.

use aivillage_base::{Digest, Recipe, Task};
use proptest::prelude::*;

use super::*;

fn job() -> JobId {
    JobId::new("job").unwrap()
}

fn mark(round: u32, attempt: u32) -> Receipt {
    Receipt { key: RoundKey { job: job(), round, attempt }, digest: Digest([u8::try_from(attempt).unwrap(); 32]) }
}

fn invitation(round: u32, attempt: u32, receipt: Option<Receipt>) -> Invitation {
    Invitation {
        key: RoundKey { job: job(), round, attempt },
        architecture: Recipe::LinearRegression.build(&[1], Task::Regression).unwrap(),
        local: LocalRule::Ditto { lambda: 1.0 },
        receipt,
        total_rounds: 9,
        ..crate::testing::invitation()
    }
}

fn put(store: &MemoryState, mark: &Receipt, value: f32) {
    let state = LocalState { model: vec![value, value], ..LocalState::default() };
    store.put(mark, &invitation(1, 1, None).architecture, &state).unwrap();
}

#[test]
fn the_state_whose_update_counted_is_taken_up_and_older_ones_go() {
    let store = MemoryState::default();
    for (m, value) in [(mark(1, 1), 1.0), (mark(1, 2), 2.0), (mark(2, 1), 3.0), (mark(2, 2), 4.0)] {
        put(&store, &m, value);
    }
    let state = settle(&store, &invitation(2, 2, Some(mark(1, 2)))).unwrap();
    assert_eq!(state.model, [2.0, 2.0]);
    assert_eq!(store.kept(&job()).unwrap(), [mark(1, 2), mark(2, 2)]);
    assert_eq!(store.published(&job()).unwrap().model, [2.0, 2.0]);
    // The same attempt once more, after a restart: the same.
    assert_eq!(settle(&store, &invitation(2, 2, Some(mark(1, 2)))).unwrap(), state);
}

#[test]
fn without_a_receipt_a_node_starts_anew() {
    let store = MemoryState::default();
    put(&store, &mark(1, 1), 1.0);
    assert!(settle(&store, &invitation(1, 2, None)).unwrap().is_empty());
    assert!(store.kept(&job()).unwrap().is_empty());
}

#[test]
fn an_invitation_that_comes_late_destroys_nothing() {
    let store = MemoryState::default();
    put(&store, &mark(3, 1), 3.0);
    assert!(settle(&store, &invitation(1, 1, None)).unwrap().is_empty());
    assert!(settle(&store, &invitation(2, 1, Some(mark(1, 1)))).is_err());
    assert_eq!(store.kept(&job()).unwrap(), [mark(3, 1)]);
}

#[test]
fn a_state_that_ought_to_be_there_and_is_not_is_an_error() {
    let store = MemoryState::default();
    let other = Receipt { digest: Digest([9; 32]), ..mark(1, 1) };
    put(&store, &other, 1.0);
    let error = settle(&store, &invitation(2, 1, Some(mark(1, 1)))).unwrap_err();
    assert!(error.contains("round 1, attempt 1") && error.contains("lost"), "{error}");
    assert_eq!(store.kept(&job()).unwrap(), [other]);
}

#[test]
fn the_end_of_a_job_publishes_what_counted_and_drops_the_rest() {
    let store = MemoryState::default();
    put(&store, &mark(1, 1), 1.0);
    put(&store, &mark(2, 1), 2.0);
    end(&store, &job(), Some(&mark(1, 1))).unwrap();
    assert_eq!(store.published(&job()).unwrap().model, [1.0, 1.0]);
    assert!(store.kept(&job()).unwrap().is_empty());
    end(&store, &job(), None).unwrap();
}

#[test]
fn a_state_shows_no_values() {
    let state = LocalState { control: vec![0.125], ..LocalState::default() };
    assert_eq!(format!("{state:?}"), "LocalState(1, 0 and 0 values)");
}

proptest! {
    /// A node whose attempts count or not, at random, always trains from the state of the last that counted, and keeps no
    /// more than that one and the one it works on.
    #[test]
    fn a_node_trains_from_the_last_state_that_counted(course in prop::collection::vec(any::<bool>(), 1..40)) {
        let store = MemoryState::default();
        let (mut round, mut attempt, mut counted) = (1, 1, None);
        for counts in course {
            let state = settle(&store, &invitation(round, attempt, counted.clone())).unwrap();
            let from = state.model.first().copied().unwrap_or(0.0);
            prop_assert_eq!(from, counted.as_ref().map_or(0.0, |m: &Receipt| number(m)));
            let now = mark(round, attempt);
            put(&store, &now, number(&now));
            prop_assert!(store.kept(&job()).unwrap().len() <= 2);
            if counts {
                counted = Some(now);
                (round, attempt) = (round + 1, 1);
            } else {
                attempt += 1;
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn number(mark: &Receipt) -> f32 {
    (mark.key.round * 1000 + mark.key.attempt) as f32
}
