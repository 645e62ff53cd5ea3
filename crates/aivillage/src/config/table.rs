//! The one table of `federated.yaml`: for each key its type and range, unit, effect in a line, and whether this
//! version gives it that effect.
//!
//! Promise: it has exactly the keys of [`Config`](super::Config) (a test compares them). When a key gets its
//! effect, its `Status` changes here and its comment in the YAML, and nothing else. Must not know: parsing.

use aivillage_inference::{LoadBalancingStrategy, PrivacyLevel};
use aivillage_training::{Selection, strategy};

use super::check::Rule;
use super::federated::{PrivacyMode, Transport};
use super::kind::Kind;

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted path below `federated_systems`.
    pub path: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// Unit, or "" where there is none.
    pub unit: &'static str,
    /// What the key does, in one line.
    pub effect: &'static str,
    /// Does this version do it?
    pub status: Status,
}

/// Does this version do what a key says?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Every value has its effect.
    InEffect,
    /// Only these words have their effect; the others promise what is not built.
    Words(&'static [&'static str]),
    /// No effect. `false`, 0 and an empty list ask for nothing; any other value promises what is not built,
    /// unless the switch it hangs on is off.
    NotYet {
        /// What is missing, a clause: "there is no mesh".
        missing: &'static str,
        /// Path of the switch without which the value asks for nothing, or "".
        switch: &'static str,
        /// What one can do instead, or "" for the obvious (`false`, 0, the switch).
        instead: &'static str,
    },
}

impl Rule for Key {
    fn path(&self) -> &'static str {
        self.path
    }
    fn kind(&self) -> Option<Kind> {
        Some(self.kind)
    }
    fn unit(&self) -> &'static str {
        self.unit
    }
    fn optional(&self) -> bool {
        self.kind == Kind::Path
    }
}

const MINUTES_MONTH: u64 = 43_200;
const MS_HOUR: u64 = 3_600_000;

const fn count(min: u64, max: u64) -> Kind {
    Kind::Whole { min, max }
}

const fn key(path: &'static str, kind: Kind, unit: &'static str, effect: &'static str) -> Key {
    Key { path, kind, unit, effect, status: Status::InEffect }
}

impl Key {
    const fn words(self, built: &'static [&'static str]) -> Self {
        Self { status: Status::Words(built), ..self }
    }
    const fn not_yet(self, missing: &'static str) -> Self {
        self.not_yet_but(missing, "")
    }
    const fn not_yet_but(self, missing: &'static str, instead: &'static str) -> Self {
        Self { status: Status::NotYet { missing, switch: "", instead }, ..self }
    }
    const fn not_yet_under(self, switch: &'static str, missing: &'static str) -> Self {
        Self { status: Status::NotYet { missing, switch, instead: "" }, ..self }
    }
}

// The words of a key are those of the room that understands them.
const LOAD_BALANCING: [&str; LoadBalancingStrategy::ALL.len()] = names(&LoadBalancingStrategy::ALL);
const PRIVACY_LEVELS: [&str; PrivacyLevel::ALL.len()] = names(&PrivacyLevel::ALL);
const SELECTIONS: [&str; Selection::ALL.len()] = names(&Selection::ALL);
const STRATEGIES: [&str; strategy::WITHOUT_SETTINGS.len() + 1] =
    join(&["federated_averaging"], strategy::WITHOUT_SETTINGS);

/// The names of a room's list of named values.
const fn names<T, const N: usize>(all: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut out = [""; N];
    let mut i = 0;
    while i < N {
        out[i] = all[i].0;
        i += 1;
    }
    out
}

/// `first`, then `second`; `N` is the sum of their lengths.
pub(crate) const fn join<const N: usize>(first: &[&'static str], second: &[&'static str]) -> [&'static str; N] {
    assert!(first.len() + second.len() == N);
    let mut out = [""; N];
    let mut i = 0;
    while i < N {
        out[i] = if i < first.len() { first[i] } else { second[i - first.len()] };
        i += 1;
    }
    out
}

const NO_MESH: &str = "there is no mesh yet: nodes talk to the gateway only";
const NO_MIX: &str = "there is no mix network yet: whoever watches the lines sees who talks to whom";
const NO_FOG: &str = "there are no fog sessions yet: only nodes that joined are used";
const NO_MOBILE: &str = "no device rules are kept yet: a mobile node is used like any other";
const NO_HARVEST: &str = "idle devices are not harvested yet";
const NO_DP: &str = "there is no differential privacy yet";
const NO_DP_INSTEAD: &str = "nothing to do: a job that asks for differential privacy is refused, so nothing is spent; other jobs have no such bound";
const NO_SAMPLES: &str = "gauges and health are read when somebody asks, not at an interval";
const NO_ALERTS: &str = "no alerts are raised yet";
const MON: &str = "monitoring.enabled";
const P2P: &str = "network.p2p.enabled";
const FOG: &str = "network.fog.enabled";
const MIX: &str = "network.betanet.enabled";
const MOBILE: &str = "training.mobile.enabled";

/// Every key, in the order of the YAML.
#[rustfmt::skip] // a table: one key a line
pub const KEYS: &[Key] = &[
    key("gateway.http_listen", Kind::Address, "", "Address of the HTTP API, metrics and docs."),
    key("gateway.link_listen", Kind::Address, "", "Address of the node link (mutual TLS)."),
    key("gateway.allow_insecure", Kind::Bool, "", "Serve beyond loopback without TLS or authentication."),
    key("gateway.public_metrics", Kind::Bool, "", "Answer /metrics and the counts of status without a key."),
    key("gateway.tls.cert", Kind::Path, "", "Certificate chain of the HTTP API, PEM; empty = plain HTTP."),
    key("gateway.tls.key", Kind::Path, "", "Private key of that certificate, PEM."),
    key("gateway.max_body_mb", count(1, 1024), "MB", "Largest JSON body; larger = 413."),
    key("gateway.max_model_mb", count(1, 65_536), "MB", "Largest model uploaded or published; larger = 413."),
    key("gateway.storage_quota_gb", count(0, 1_000_000), "GB", "Disk that models and updates may take; 0 = what the disk has."),
    key("gateway.header_timeout_ms", count(100, 120_000), "ms", "Time to send a request header; slower = closed."),
    key("gateway.max_connections", count(1, 100_000), "connections", "Open HTTP connections; further ones wait."),
    key("gateway.rate_limit_per_second", count(0, 1_000_000), "requests/s", "Requests of one key; more = 429; 0 = no limit."),
    key("gateway.result_retention_minutes", count(1, MINUTES_MONTH), "min", "How long a finished result can be fetched."),
    key("gateway.idempotency_retention_hours", count(1, 720), "h", "How long an Idempotency-Key is remembered."),
    key("gateway.allowed_hosts", Kind::Hosts, "", "Host names, besides loopback and IP addresses, under which it answers."),
    key("gateway.cors_origins", Kind::Origins, "", "Web origins that may call the API from a browser."),
    key("inference.enabled", Kind::Bool, "", "Take inference requests; false = 503."),
    key("inference.coordinator_id", Kind::Id, "", "Name in status, metrics and records."),
    key("inference.max_concurrent_requests", count(1, 1_000_000), "requests", "Requests in work or waiting; beyond = 429."),
    key("inference.cache_size_gb", Kind::Real { min: 0.0, max: 100_000.0 }, "GB", "Result cache of the gateway; 0 = none.")
        .not_yet("there is no result cache yet: every request is computed"),
    key("inference.load_balancing_strategy", Kind::Word(&LOAD_BALANCING), "", "How a node is chosen.")
        .words(&["capability_aware", "least_loaded", "round_robin"]),
    key("inference.integration.p2p_network", Kind::Bool, "", "Let inference reach nodes over the mesh.").not_yet(NO_MESH),
    key("inference.integration.fog_computing", Kind::Bool, "", "Let inference lease fog sessions.").not_yet(NO_FOG),
    key("inference.integration.betanet_privacy", Kind::Bool, "", "Let inference travel the mix network.").not_yet(NO_MIX),
    key("inference.integration.gateway_integration", Kind::Bool, "", "Mount the inference routes; false = 404."),
    key("inference.performance.request_timeout_ms", count(1, MS_HOUR), "ms", "Upper bound of a request's max_latency_ms."),
    key("inference.performance.model_distribution_timeout_ms", count(1, MS_HOUR), "ms", "Time to bring a model to a node.")
        .not_yet_but("models are fetched without a limit of their own", "nothing to do: `inference.performance.request_timeout_ms` bounds the whole request"),
    key("inference.performance.result_aggregation_timeout_ms", count(1, MS_HOUR), "ms", "Time to combine several nodes' answers.")
        .not_yet_but("one node answers a request: there is nothing to combine", "nothing to do: `inference.performance.request_timeout_ms` bounds the whole request"),
    key("inference.privacy.default_privacy_level", Kind::Word(&PRIVACY_LEVELS), "", "Privacy level of a request that names none.")
        .words(&["low", "medium"]),
    key("inference.privacy.enable_covert_channels", Kind::Bool, "", "Cover traffic on the mix network.").not_yet(NO_MIX),
    key("inference.privacy.require_authentication", Kind::Bool, "", "Demand an API key on every route."),
    key("training.enabled", Kind::Bool, "", "Take training jobs; false = 503."),
    key("training.coordinator_id", Kind::Id, "", "Name in status, metrics and records."),
    key("training.max_concurrent_jobs", count(1, 10_000), "jobs", "Jobs running at one time; further ones wait."),
    key("training.default_rounds", count(1, 100_000), "rounds", "Rounds of a job that names none."),
    key("training.round_timeout_minutes", count(1, 10_080), "min", "Deadline of a round that names none."),
    key("training.participant_selection.strategy", Kind::Word(&SELECTIONS), "", "Which eligible nodes a round invites."),
    key("training.participant_selection.min_participants", count(1, 100_000), "nodes", "Fewest updates that make a round."),
    key("training.participant_selection.max_participants", count(1, 100_000), "nodes", "Most nodes invited to a round."),
    key("training.participant_selection.selection_timeout_ms", count(1, MS_HOUR), "ms", "Time to answer an invitation."),
    key("training.privacy.default_epsilon", Kind::Above { min: 0.0, max: 1000.0 }, "epsilon", "Privacy loss of a job with differential privacy that names none.")
        .not_yet_but(NO_DP, NO_DP_INSTEAD),
    key("training.privacy.default_delta", Kind::Chance, "probability", "Chance that this bound does not hold.")
        .not_yet_but(NO_DP, NO_DP_INSTEAD),
    key("training.privacy.max_privacy_budget", Kind::Above { min: 0.0, max: 100_000.0 }, "epsilon", "Privacy loss one participant may spend in all.")
        .not_yet_but(NO_DP, NO_DP_INSTEAD),
    key("training.privacy.enable_secure_aggregation", Kind::Bool, "", "Secure aggregation for jobs that do not say otherwise."),
    key("training.privacy.differential_privacy_adaptive", Kind::Bool, "", "Adapt the clipping bound to the updates.").not_yet(NO_DP),
    key("training.mobile.enabled", Kind::Bool, "", "Keep this section's rules for mobile nodes.").not_yet(NO_MOBILE),
    key("training.mobile.min_battery_percent", count(0, 100), "%", "Charge below which a device is not used.").not_yet_under(MOBILE, NO_MOBILE),
    key("training.mobile.max_temperature_celsius", Kind::Real { min: 0.0, max: 120.0 }, "degrees Celsius", "Temperature above which a device is not used.")
        .not_yet_under(MOBILE, NO_MOBILE),
    key("training.mobile.require_wifi", Kind::Bool, "", "Use a device only on Wi-Fi.").not_yet_under(MOBILE, NO_MOBILE),
    key("training.mobile.require_charging", Kind::Bool, "", "Use a device only while it charges.").not_yet_under(MOBILE, NO_MOBILE),
    key("training.mobile.adaptive_batch_size", Kind::Bool, "", "Smaller batches on small devices.").not_yet_under(MOBILE, NO_MOBILE),
    key("training.mobile.thermal_management", Kind::Bool, "", "Pause training on a warm device.").not_yet_under(MOBILE, NO_MOBILE),
    key("training.fog.enable_resource_harvesting", Kind::Bool, "", "Train on idle devices that offered themselves.").not_yet(NO_HARVEST),
    key("training.fog.prefer_edge_nodes", Kind::Bool, "", "Prefer nodes of type edge.").not_yet("nodes are chosen without regard to type yet"),
    key("training.fog.dynamic_allocation", Kind::Bool, "", "Add and release fog sessions while a job runs.").not_yet(NO_FOG),
    key("training.fog.harvest_during_idle", Kind::Bool, "", "Harvest devices while nobody uses them.").not_yet(NO_HARVEST),
    key("training.aggregation.default_strategy", Kind::Word(&STRATEGIES), "", "Strategy of a job that names none."),
    key("training.aggregation.byzantine_tolerance", Kind::Bool, "", "Jobs that name no strategy get a robust one (default_strategy if it is, else geometric_median), secure ones a bound on the norm of updates."),
    key("training.aggregation.enable_compression", Kind::Bool, "", "Compress updates on the wire.").not_yet("updates travel uncompressed"),
    key("training.aggregation.hierarchical_clusters", Kind::Bool, "", "Sum updates in a tree of aggregators.")
        .not_yet("there are no aggregators yet: the coordinator sums every update"),
    key("network.p2p.enabled", Kind::Bool, "", "The mesh between nodes.").not_yet(NO_MESH),
    key("network.p2p.preferred_transport", Kind::Word(Transport::WORDS), "", "How nodes reach each other.").not_yet_under(P2P, NO_MESH),
    key("network.p2p.fallback_transport", Kind::Word(Transport::WORDS), "", "What low and medium traffic falls back to.").not_yet_under(P2P, NO_MESH),
    key("network.p2p.discovery_interval_seconds", count(1, 86_400), "s", "Pause between searches for peers.").not_yet_under(P2P, NO_MESH),
    key("network.p2p.connection_timeout_seconds", count(1, 3600), "s", "Time to reach a peer.").not_yet_under(P2P, NO_MESH),
    key("network.p2p.enable_gossip_protocol", Kind::Bool, "", "Spread announcements by gossip.").not_yet_under(P2P, NO_MESH),
    key("network.fog.enabled", Kind::Bool, "", "Sessions on nodes that lend their compute.").not_yet(NO_FOG),
    key("network.fog.resource_discovery_interval_seconds", count(1, 86_400), "s", "Pause between looks at the offers.").not_yet_under(FOG, NO_FOG),
    key("network.fog.session_timeout_minutes", count(1, MINUTES_MONTH), "min", "Longest session.").not_yet_under(FOG, NO_FOG),
    key("network.fog.auto_resource_allocation", Kind::Bool, "", "Choose resources without being asked.").not_yet_under(FOG, NO_FOG),
    key("network.betanet.enabled", Kind::Bool, "", "The mix network.").not_yet(NO_MIX),
    key("network.betanet.privacy_mode", Kind::Word(PrivacyMode::WORDS), "", "Trade of delay against cover.").not_yet_under(MIX, NO_MIX),
    key("network.betanet.enable_covert_channels", Kind::Bool, "", "Cover traffic.").not_yet_under(MIX, NO_MIX),
    key("network.betanet.mobile_optimization", Kind::Bool, "", "Less cover on mobile nodes.").not_yet_under(MIX, NO_MIX),
    key("monitoring.enabled", Kind::Bool, "", "Count and measure; false = /metrics answers 404."),
    key("monitoring.metrics_interval_seconds", count(1, 3600), "s", "Pause between samples of gauges.").not_yet_under(MON, NO_SAMPLES),
    key("monitoring.health_check_interval_seconds", count(1, 3600), "s", "Pause between health checks of the parts.").not_yet_under(MON, NO_SAMPLES),
    key("monitoring.performance_analytics", Kind::Bool, "", "Latency analytics in status.").not_yet_under(MON, "status gives the average latency only"),
    key("monitoring.export_prometheus", Kind::Bool, "", "Serve /metrics in Prometheus' text format; false = 404."),
    key("monitoring.alerts.low_participant_threshold", count(0, 100_000), "participants", "Participants below which to warn; 0 = never.")
        .not_yet_under(MON, NO_ALERTS),
    key("monitoring.alerts.high_failure_rate_threshold", Kind::Real { min: 0.0, max: 1.0 }, "share", "Share of failed requests above which to warn; 0 = never.")
        .not_yet_under(MON, NO_ALERTS),
    key("monitoring.alerts.privacy_budget_low_threshold", Kind::Real { min: 0.0, max: 100_000.0 }, "epsilon", "Remaining privacy budget below which to warn; 0 = never.")
        .not_yet_under(MON, NO_ALERTS),
];

/// The key of this path.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}
