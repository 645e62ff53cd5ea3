//! What goes wrong, how often, and how often it did.

use std::collections::BTreeMap;

use aivillage_base::rng::SeededRng;

/// Kinds of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A message that never arrives.
    Loss,
    /// A message that arrives twice.
    Duplicate,
    /// A message that arrives before an older one on the same way.
    Reorder,
    /// A message that takes up to some seconds.
    Delay,
    /// A coordinator that dies just before a step is persisted.
    CrashBeforePersist,
    /// A coordinator that dies just after a step was persisted, before anything of it was sent.
    CrashAfterPersist,
    /// A coordinator whose death takes its machine with it: the store forgets what it had not been told to keep.
    PowerLoss,
    /// A node that dies and comes back without its memory.
    NodeCrash,
    /// Nodes that are cut off for some seconds.
    Partition,
    /// A coordinator that stands still past its lease and then goes on as if nothing had happened.
    Freeze,
    /// The wall clock of a coordinator's machine jumps by up to a minute, forward or back.
    ClockJump,
    /// A coordinator that acted without its lease and was stopped by the fence.
    Fenced,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Loss,
        Self::Duplicate,
        Self::Reorder,
        Self::Delay,
        Self::CrashBeforePersist,
        Self::CrashAfterPersist,
        Self::PowerLoss,
        Self::NodeCrash,
        Self::Partition,
        Self::Freeze,
        Self::ClockJump,
        Self::Fenced,
    ];
}

/// How often each kind has struck, and at which persisted steps coordinators died.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    kinds: BTreeMap<FaultKind, u64>,
    steps: BTreeMap<(FaultKind, &'static str), u64>,
}

impl Tally {
    pub(crate) fn count(&mut self, kind: FaultKind) {
        *self.kinds.entry(kind).or_default() += 1;
    }

    pub(crate) fn died(&mut self, kind: FaultKind, step: &'static str) {
        *self.steps.entry((kind, step)).or_default() += 1;
    }

    /// Deaths of this kind at the step of this name ([`aivillage_base::ports::Batch::name`]).
    #[must_use]
    pub fn at_step(&self, kind: FaultKind, step: &'static str) -> u64 {
        self.steps.get(&(kind, step)).copied().unwrap_or(0)
    }

    /// Times this kind has struck.
    #[must_use]
    pub fn of(&self, kind: FaultKind) -> u64 {
        self.kinds.get(&kind).copied().unwrap_or(0)
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.kinds {
            *self.kinds.entry(*kind).or_default() += count;
        }
        for (step, count) in &other.steps {
            *self.steps.entry(*step).or_default() += count;
        }
    }
}

/// What may go wrong until `until_ms`; afterwards nothing does.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// Simulated time from which on all is calm, in milliseconds.
    pub until_ms: u64,
    /// Chance that a message is lost, 0 to 1.
    pub loss: f64,
    /// Chance that a message arrives twice, 0 to 1.
    pub duplicate: f64,
    /// Chance that a message takes up to three seconds, 0 to 1.
    pub delay: f64,
    /// Chance, at each persisted step, that the coordinator dies before it, 0 to 1.
    pub crash_before: f64,
    /// Chance, at each persisted step, that the coordinator dies after it, 0 to 1.
    pub crash_after: f64,
    /// Number of deaths of nodes.
    pub node_crashes: u64,
    /// Number of partitions.
    pub partitions: u64,
    /// Number of freezes of a coordinator.
    pub freezes: u64,
    /// Number of jumps of a coordinator's wall clock.
    pub clock_jumps: u64,
}

impl Faults {
    /// Nothing goes wrong.
    #[must_use]
    pub fn none() -> Self {
        Self {
            until_ms: 0,
            loss: 0.0,
            duplicate: 0.0,
            delay: 0.0,
            crash_before: 0.0,
            crash_after: 0.0,
            node_crashes: 0,
            partitions: 0,
            freezes: 0,
            clock_jumps: 0,
        }
    }

    /// Half a minute of trouble, another kind of trouble for each seed.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut rng = SeededRng::new("faults", seed, &[]);
        // Every kind is absent in some seeds, so that the others are seen alone too.
        let mut some = |most: f64| if rng.below(3) == 0 { 0.0 } else { rng.unit() * most };
        let (loss, duplicate, delay) = (some(0.25), some(0.3), some(0.3));
        let (crash_before, crash_after) = (some(0.06), some(0.06));
        Self {
            until_ms: 30_000,
            loss,
            duplicate,
            delay,
            crash_before,
            crash_after,
            node_crashes: rng.below(8),
            partitions: rng.below(4),
            freezes: rng.below(5),
            clock_jumps: rng.below(3),
        }
    }
}
