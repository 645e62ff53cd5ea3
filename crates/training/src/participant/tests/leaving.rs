//! The owner's rules just before something leaves: what was allowed when training began may not be any more.

use std::sync::atomic::AtomicU64;

use aivillage_base::time::Now;
use aivillage_base::wire::secure::{Hex, MaskedInput};
use aivillage_privacy::refusal;

use super::*;
use crate::participant::hours;
use crate::participant::policy::RetainUpdates;

/// A line that keeps what went over it.
#[derive(Debug, Default)]
struct Kept {
    model: Bytes,
    said: Mutex<Vec<Up>>,
    updates: Mutex<Vec<UpdateHeader>>,
    /// Replies of the coordinator that ask to come again, before it takes an update.
    busy: AtomicU32,
    clock: Arc<Set>,
}

#[async_trait]
impl Uplink for Kept {
    async fn send(&self, message: &Up) -> Result<(), UplinkError> {
        self.said.lock().unwrap().push(message.clone());
        Ok(())
    }

    async fn upload(&self, header: &UpdateHeader, _: Bytes) -> Result<UpdateReply, UplinkError> {
        if self.busy.swap(0, Ordering::SeqCst) > 0 {
            self.clock.0.store(NIGHT_MS, Ordering::SeqCst);
            return Ok(UpdateReply::Retry { after_ms: 1 });
        }
        self.updates.lock().unwrap().push(header.clone());
        Ok(UpdateReply::Accepted)
    }

    async fn fetch(&self, _: &BlobRef) -> Result<Bytes, UplinkError> {
        Ok(self.model.clone())
    }
}

/// A clock that is set by hand.
#[derive(Debug, Default)]
struct Set(AtomicU64);

impl Clock for Set {
    fn now(&self) -> Now {
        Now { monotonic_ms: 0, wall_ms: self.0.load(Ordering::SeqCst) }
    }
}

/// Noon of a day, in UTC.
const NOON_MS: u64 = 12 * 3_600_000;
/// Eleven in the evening.
const NIGHT_MS: u64 = 23 * 3_600_000;

/// Trains until it is night.
#[derive(Debug)]
struct UntilNight(Arc<Set>);

impl Trainer for UntilNight {
    fn data(&self) -> Vec<DataSummary> {
        Vec::new()
    }

    fn train(&self, _: &Invitation, _: &str, values: Vec<f32>, _: LocalTerms<'_>) -> Result<LocalOutcome, TrainError> {
        self.0.0.store(NIGHT_MS, Ordering::SeqCst);
        Ok(LocalOutcome::plain(values, 1, 1, LocalMetrics::default()))
    }
}

/// A node at noon, whose training ends at once or at night.
fn node(policy: NodePolicy, until_night: bool) -> (Participant, Arc<Kept>, Invitation) {
    let (_, line, _, invitation) = invited(NodePolicy::default(), false);
    let clock = Arc::new(Set(AtomicU64::new(NOON_MS)));
    let line = Arc::new(Kept { model: line.model.clone(), clock: clock.clone(), ..Kept::default() });
    let trainer: Arc<dyn Trainer> = if until_night { Arc::new(UntilNight(clock.clone())) } else { Arc::new(Idle) };
    let deps = ParticipantDeps {
        keys: keys(),
        uplink: line.clone(),
        trainer,
        name: NodeName::new("node").unwrap(),
        policy,
        log: Arc::<Disk>::default(),
        clock,
        state: Arc::<MemoryState>::default(),
    };
    (Participant::new(deps, CancellationToken::new()), line, invitation)
}

fn by_day() -> NodePolicy {
    NodePolicy { hours: hours::parse("08:00-20:00").map(|h| vec![h]), ..NodePolicy::default() }
}

/// Invites the node, and waits until it has ended the attempt.
async fn attempt(participant: &Participant, invitation: &Invitation) {
    participant.handle(&Down::Invite(Box::new(invitation.clone())));
    let ended = async {
        while !participant.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
}

/// The rules by which the node has refused, each properly signed.
fn refusals(line: &Kept, key: &RoundKey) -> Vec<String> {
    let said = line.said.lock().unwrap();
    let refusal = |up: &Up| match up {
        Up::Answer { key: about, declined: Some(declined) } => {
            assert!(about == key && refusal::is_signed(&keys().signer.id(), key, declined), "{declined:?}");
            Some(declined.rule.clone())
        }
        Up::Answer { .. } => None,
        Up::Report(_) | Up::TrainingFailed { .. } | Up::Secure { .. } | Up::Prediction { .. } | Up::Leave => {
            panic!("{up:?} was sent")
        }
    };
    said.iter().filter_map(refusal).collect()
}

#[tokio::test]
async fn an_update_that_is_ready_when_the_hours_are_over_stays() {
    let (participant, line, invitation) = node(by_day(), true);
    attempt(&participant, &invitation).await;
    assert_eq!(refusals(&line, &invitation.key), ["hours"]);
    assert!(line.updates.lock().unwrap().is_empty());
    let (participant, line, invitation) = node(by_day(), false);
    attempt(&participant, &invitation).await;
    assert_eq!(
        (refusals(&line, &invitation.key).len(), line.updates.lock().unwrap().len()),
        (0, 1),
        "by day it leaves"
    );
}

#[tokio::test]
async fn each_try_to_send_an_update_is_judged_anew() {
    let (participant, line, invitation) = node(by_day(), false);
    line.busy.store(1, Ordering::SeqCst);
    attempt(&participant, &invitation).await;
    assert_eq!(refusals(&line, &invitation.key), ["hours"]);
    assert!(line.updates.lock().unwrap().is_empty());
}

/// Whatever path an update takes to the one door out, it is held against what was judged.
#[tokio::test]
async fn an_update_that_is_not_what_was_judged_never_leaves() {
    let strict = NodePolicy { require_secure_aggregation: true, ..NodePolicy::default() };
    let never = NodePolicy { retain_updates: RetainUpdates::Never, ..NodePolicy::default() };
    let masked = Some(MaskedInput::Roster { roster: Hex([1; 32]), signature: Hex([2; 64]) });
    let cases = [
        (strict, None, false, "require_secure_aggregation"),
        (NodePolicy::default(), masked, false, "privacy_techniques"),
        (NodePolicy::default(), None, true, "retain_updates"),
        (never, None, true, "retain_updates"),
    ];
    for (policy, secure, retain, rule) in cases {
        let (participant, line, mut invitation) = node(policy, false);
        invitation.retain_updates = false;
        let payload = Bytes::from_static(b"0123");
        let blob = BlobRef { digest: Digest::of(&payload), bytes: 4 };
        let header = UpdateHeader::new(invitation.key.clone(), blob, 1, LocalMetrics::default());
        let header = UpdateHeader { secure, retain, ..header };
        let prepared = Prepared { header, payload, state: LocalState::default(), personal: None };
        assert!(!participant.deliver(&invitation, prepared).await);
        assert_eq!(refusals(&line, &invitation.key), [rule]);
        assert!(line.updates.lock().unwrap().is_empty(), "{rule}");
    }
}

#[tokio::test]
async fn a_node_that_masks_says_no_word_of_a_round_that_its_rules_refuse() {
    let terms = crate::secure::terms(crate::secure::WITHSTANDS, (3, 5), crate::strategy::Weighting::Examples, 10);
    let secure = |invitation: &Invitation| Invitation {
        privacy_techniques: vec![crate::secure::TECHNIQUE.into()],
        secure: terms.ok(),
        ..invitation.clone()
    };
    let larger = NodePolicy { min_cohort: Some(4), ..NodePolicy::default() };
    let night = NodePolicy { hours: hours::parse("22:00-06:00").map(|h| vec![h]), ..NodePolicy::default() };
    for (policy, rule) in [(larger, "min_cohort"), (night, "hours")] {
        let (participant, line, invitation) = node(policy, false);
        attempt(&participant, &secure(&invitation)).await;
        assert_eq!(refusals(&line, &invitation.key), [rule], "and no key of the round");
    }
}
