//! The tables of `node.yaml`: its own keys, and those of each kind of data source.
//!
//! Promise: what passes these tables fits the structs of [`super`]. Must not know: anything else.

use aivillage_training::spec::JOB_TYPES;

use super::{NODE_TYPES, RECIPES};
use crate::config::check::Rule;
use crate::config::kind::Kind;

/// One key.
pub(super) struct Key {
    pub(super) path: &'static str,
    pub(super) kind: Option<Kind>,
    pub(super) unit: &'static str,
    pub(super) required: bool,
}

impl Rule for Key {
    fn path(&self) -> &'static str {
        self.path
    }
    fn kind(&self) -> Option<Kind> {
        self.kind
    }
    fn unit(&self) -> &'static str {
        self.unit
    }
    fn optional(&self) -> bool {
        false
    }
}

pub(super) const fn may(path: &'static str, kind: Kind, unit: &'static str) -> Key {
    Key { path, kind: Some(kind), unit, required: false }
}
pub(super) const fn must(path: &'static str, kind: Kind) -> Key {
    Key { path, kind: Some(kind), unit: "", required: true }
}
pub(super) const fn whole(min: u64, max: u64) -> Kind {
    Kind::Whole { min, max }
}

pub(super) const KEYS: &[Key] = &[
    may("name", Kind::Id, ""),
    Key { path: "data", kind: None, unit: "", required: false },
    may("node_types", Kind::Words(NODE_TYPES), ""),
    must("roster.file", Kind::Path),
    must("roster.signers", Kind::Keys),
    may("privacy.require_secure_aggregation", Kind::Bool, ""),
    may("privacy.min_cohort", whole(3, 100_000), "updates in a sum"),
    may("privacy.helpers", Kind::Keys, ""),
    may("privacy.allowed_publishers", Kind::Texts, ""),
    may("privacy.allowed_recipes", Kind::Words(&RECIPES), ""),
    may("privacy.allowed_job_types", Kind::Words(&JOB_TYPES), ""),
    may("privacy.max_clip", Kind::Above { min: 0.0, max: 1_000_000_000.0 }, "L2 norm"),
    may("privacy.max_rounds", whole(1, 100_000), "rounds"),
    may("privacy.retain_updates", Kind::Word(&["never", "withheld", "if_asked"]), ""),
    may("privacy.hours", Kind::Hours, ""),
    may("model_cache_gb", Kind::Real { min: 0.0, max: 100_000.0 }, "GB"),
    may("serve", Kind::Bool, ""),
    may("threads", whole(0, 1024), "threads"),
];

pub(super) const KIND: Key = must("data.kind", Kind::Word(&["npz", "csv", "shard"]));
pub(super) const NAME: Key = may("data.name", Kind::Id, "");
pub(super) const TASK: Key = may("data.task", Kind::Word(&["classification", "regression"]), "");
pub(super) const CLASSES: Key = may("data.classes", whole(2, 1 << 20), "labels");
pub(super) const TEST_FRACTION: Key = may("data.test_fraction", Kind::Real { min: 0.0, max: 0.9 }, "share of the rows");
pub(super) const FILE: Key = must("data.path", Kind::Path);

pub(super) const NPZ: &[Key] = &[
    KIND,
    NAME,
    FILE,
    may("data.label", Kind::Id, ""),
    may("data.features", Kind::Id, ""),
    TASK,
    CLASSES,
    TEST_FRACTION,
];
pub(super) const CSV: &[Key] = &[
    KIND,
    NAME,
    FILE,
    may("data.label", Kind::Column, ""),
    may("data.features", Kind::Columns, ""),
    TASK,
    CLASSES,
    TEST_FRACTION,
];
pub(super) const SHARD: &[Key] = &[
    KIND,
    NAME,
    must("data.dataset", Kind::Word(&["digits", "breast_cancer"])),
    must("data.index", whole(0, 9999)),
    must("data.of", whole(1, 10_000)),
    may("data.alpha", Kind::Above { min: 0.0, max: 1_000_000.0 }, ""),
    may("data.seed", whole(0, i64::MAX as u64), ""),
    TEST_FRACTION,
];
