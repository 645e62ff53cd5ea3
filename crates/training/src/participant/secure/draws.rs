//! How often a node lets lots be drawn for a graph of which nothing comes.
//!
//! A coordinator that lies can give an attempt up once it has seen the graph, and try another. Each draw discloses an update
//! with a chance of at most 2^-40 (`security_bits`), so what counts is how many it can have. Promise: over all jobs, at most
//! [`DRAWS_MAX`] that came to nothing, and one more every hour: 4 of the 40 bits at once, 14 in a year. A draw whose sum is
//! opened is given back. In memory only: a restart is up to the node's owner, not to the coordinator.

use std::sync::{Arc, Mutex, PoisonError};

use aivillage_base::time::Clock;

/// Draws that may come to nothing.
const DRAWS_MAX: u64 = 16;
/// After this time one of them is forgotten.
const FORGOTTEN_MS: u64 = 3_600_000;

/// Draws that have come to nothing so far.
#[derive(Debug)]
pub struct Draws {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: u64,
    /// When the last one was forgotten.
    since_ms: u64,
}

impl Draws {
    /// None so far.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let since_ms = clock.now().monotonic_ms;
        Self { clock, state: Mutex::new(State { open: 0, since_ms }) }
    }

    /// Lets a graph be drawn.
    ///
    /// # Errors
    /// One sentence: too many have come to nothing.
    pub fn take(&self) -> Result<(), String> {
        let now_ms = self.clock.now().monotonic_ms;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = now_ms.saturating_sub(state.since_ms) / FORGOTTEN_MS;
        state.since_ms += forgotten * FORGOTTEN_MS;
        state.open = state.open.saturating_sub(forgotten);
        if state.open >= DRAWS_MAX {
            return Err(format!(
                "{DRAWS_MAX} rounds came to nothing after their graph was drawn, so the gateway may be looking for a graph \
                 that suits it: this node takes part in one more an hour, or at once if it is restarted"
            ));
        }
        state.open += 1;
        Ok(())
    }

    /// The round of one draw has come to its sum.
    pub fn give_back(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.open = state.open.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use aivillage_base::time::Now;
    use aivillage_base::wire::Invitation;
    use aivillage_base::wire::secure::{Advert, GraphKind, RegistryHead, SecureDown, SecureTerms, SecureUp};
    use aivillage_privacy::secagg::participant::Participant as Machine;
    use aivillage_privacy::secagg::signed::{Context, KeyInMemory};

    use super::*;
    use crate::participant::NoRegistry;
    use crate::participant::secure::{Keys, MemoryContexts, MemoryPins, Session, SystemRandom};
    use crate::secure::{WITHSTANDS, terms};
    use crate::strategy::Weighting;
    use crate::testing::{invitation, key, name};

    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Now {
            let ms = self.0.load(Ordering::Relaxed);
            Now { monotonic_ms: ms, wall_ms: ms }
        }
    }

    #[test]
    fn draws_that_come_to_nothing_are_few_and_one_more_an_hour() {
        let clock = Arc::<Hand>::default();
        let draws = Draws::new(clock.clone());
        for _ in 0..DRAWS_MAX {
            draws.take().unwrap();
        }
        assert!(draws.take().unwrap_err().contains("one more an hour"));
        clock.0.store(FORGOTTEN_MS - 1, Ordering::Relaxed);
        draws.take().unwrap_err();
        clock.0.store(FORGOTTEN_MS, Ordering::Relaxed);
        draws.take().unwrap();
        draws.take().unwrap_err();
    }

    #[test]
    fn a_coordinator_that_looks_for_a_graph_that_suits_it_sees_no_seventeenth_nonce() {
        let keys = Keys {
            signer: Arc::new(KeyInMemory::new(&[1; 32])),
            pins: Arc::<MemoryPins>::default(),
            contexts: Arc::<MemoryContexts>::default(),
            registry: Arc::new(NoRegistry),
            draws: Arc::new(Draws::new(Arc::<Hand>::default())),
        };
        let terms = terms(WITHSTANDS, (3, 3), Weighting::Equal, 1).unwrap();
        let terms = SecureTerms { graph: GraphKind::Drawn, ..terms };
        let reveals = |attempt: u32| {
            let asked = Invitation { key: key(1, attempt), secure: Some(terms), ..invitation() };
            let mut session = Session::begin(&asked, terms, &name("a"), &keys, &mut SystemRandom).unwrap();
            let SecureUp::Advert(own) = session.last().clone() else { panic!("no advert") };
            let friend = |text: &str, secret: u8| -> Advert {
                let (ctx, head) = (Context::of(&asked), RegistryHead::default());
                let signer = KeyInMemory::new(&[secret; 32]);
                Machine::begin(ctx, terms, name(text), head, &signer, &mut SystemRandom).advert().clone()
            };
            let adverts = vec![*own, friend("b", 2), friend("c", 3)];
            let roster = SecureDown::Roster { adverts };
            let said = session.step(roster.clone(), &keys, &mut SystemRandom);
            // Whoever asks twice in one attempt is answered alike, and it counts once.
            assert_eq!(session.step(roster, &keys, &mut SystemRandom).is_ok(), said.is_ok());
            said.map(|_| matches!(session.last(), SecureUp::Reveal(_)))
        };
        for attempt in 1..=16 {
            assert_eq!(reveals(attempt), Ok(true));
        }
        assert_eq!(reveals(17).unwrap_err().check, "draws");
    }

    #[test]
    fn rounds_that_come_to_their_sum_cost_nothing() {
        let draws = Draws::new(Arc::<Hand>::default());
        for _ in 0..100 {
            draws.take().unwrap();
            draws.give_back();
        }
    }
}
