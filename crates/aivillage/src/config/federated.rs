//! The typed face of `federated.yaml`: one struct a section, one field a key.
//!
//! Promise: a value of these types passed the table's checks. [`Config::default`] is the shipped
//! `config/federated.yaml`, which is compiled in: there is one set of defaults, not two.
//! What a field does, its unit and its range stand in [`super::table`] and in the YAML, not here.
//! Must not know: where a value came from.

use std::net::SocketAddr;
use std::path::PathBuf;

use aivillage_inference::{LoadBalancingStrategy, PrivacyLevel};
use aivillage_training::Selection;
use serde::{Deserialize, Serialize};

/// A closed set of words, each a variant, written in snake_case.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $(#[doc = concat!("`", $word, "`")] #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// Every word, in the order of the documentation.
            pub const WORDS: &'static [&'static str] = &[$($word,)*];

            /// The word as the YAML writes it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $(#[doc = concat!("Key `", stringify!($field), "`.")] pub $field: $type,)*
        }
    };
}

words! {
    /// How nodes reach each other.
    Transport { Betanet = "betanet", Bitchat = "bitchat", Direct = "direct", }
}

words! {
    /// Trade of delay against cover on the mix network.
    PrivacyMode { Performance = "performance", Balanced = "balanced", Strict = "strict", }
}

section! {
    /// Everything below `federated_systems`.
    Config {
        gateway: Gateway,
        inference: Inference,
        training: Training,
        network: Network,
        monitoring: Monitoring,
    }
}

section! {
    /// `gateway`: the front door.
    Gateway {
        http_listen: SocketAddr,
        link_listen: SocketAddr,
        allow_insecure: bool,
        public_metrics: bool,
        tls: Tls,
        max_body_mb: u64,
        max_model_mb: u64,
        storage_quota_gb: u64,
        header_timeout_ms: u64,
        max_connections: usize,
        rate_limit_per_second: u32,
        result_retention_minutes: u64,
        idempotency_retention_hours: u64,
        allowed_hosts: Vec<String>,
        cors_origins: Vec<String>,
    }
}

section! {
    /// `gateway.tls`: both or neither.
    Tls { cert: Option<PathBuf>, key: Option<PathBuf>, }
}

section! {
    /// `inference`.
    Inference {
        enabled: bool,
        coordinator_id: String,
        max_concurrent_requests: usize,
        cache_size_gb: f64,
        load_balancing_strategy: LoadBalancingStrategy,
        integration: Integration,
        performance: Performance,
        privacy: InferencePrivacy,
    }
}

section! {
    /// `inference.integration`.
    Integration { p2p_network: bool, fog_computing: bool, betanet_privacy: bool, gateway_integration: bool, }
}

section! {
    /// `inference.performance`.
    Performance {
        request_timeout_ms: u64,
        model_distribution_timeout_ms: u64,
        result_aggregation_timeout_ms: u64,
    }
}

section! {
    /// `inference.privacy`.
    InferencePrivacy {
        default_privacy_level: PrivacyLevel,
        enable_covert_channels: bool,
        require_authentication: bool,
    }
}

section! {
    /// `training`.
    Training {
        enabled: bool,
        coordinator_id: String,
        max_concurrent_jobs: usize,
        default_rounds: u32,
        round_timeout_minutes: u64,
        participant_selection: ParticipantSelection,
        privacy: TrainingPrivacy,
        mobile: Mobile,
        fog: TrainingFog,
        aggregation: TrainingAggregation,
    }
}

section! {
    /// `training.participant_selection`.
    ParticipantSelection {
        strategy: Selection,
        min_participants: u32,
        max_participants: u32,
        selection_timeout_ms: u64,
    }
}

section! {
    /// `training.privacy`.
    TrainingPrivacy {
        default_epsilon: f64,
        default_delta: f64,
        max_privacy_budget: f64,
        enable_secure_aggregation: bool,
        differential_privacy_adaptive: bool,
    }
}

section! {
    /// `training.mobile`.
    Mobile {
        enabled: bool,
        min_battery_percent: u32,
        max_temperature_celsius: f64,
        require_wifi: bool,
        require_charging: bool,
        adaptive_batch_size: bool,
        thermal_management: bool,
    }
}

section! {
    /// `training.fog`.
    TrainingFog {
        enable_resource_harvesting: bool,
        prefer_edge_nodes: bool,
        dynamic_allocation: bool,
        harvest_during_idle: bool,
    }
}

section! {
    /// `training.aggregation`.
    TrainingAggregation {
        default_strategy: String,
        byzantine_tolerance: bool,
        enable_compression: bool,
        hierarchical_clusters: bool,
    }
}

section! {
    /// `network`.
    Network { p2p: P2p, fog: NetworkFog, betanet: Betanet, }
}

section! {
    /// `network.p2p`.
    P2p {
        enabled: bool,
        preferred_transport: Transport,
        fallback_transport: Transport,
        discovery_interval_seconds: u64,
        connection_timeout_seconds: u64,
        enable_gossip_protocol: bool,
    }
}

section! {
    /// `network.fog`.
    NetworkFog {
        enabled: bool,
        resource_discovery_interval_seconds: u64,
        session_timeout_minutes: u64,
        auto_resource_allocation: bool,
    }
}

section! {
    /// `network.betanet`.
    Betanet {
        enabled: bool,
        privacy_mode: PrivacyMode,
        enable_covert_channels: bool,
        mobile_optimization: bool,
    }
}

section! {
    /// `monitoring`.
    Monitoring {
        enabled: bool,
        metrics_interval_seconds: u64,
        health_check_interval_seconds: u64,
        performance_analytics: bool,
        export_prometheus: bool,
        alerts: Alerts,
    }
}

section! {
    /// `monitoring.alerts`.
    Alerts {
        low_participant_threshold: u32,
        high_failure_rate_threshold: f64,
        privacy_budget_low_threshold: f64,
    }
}
