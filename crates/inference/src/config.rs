//! What can be set, and what of it this version can do.

use std::time::Duration;

use aivillage_base::suggest;
use serde::{Deserialize, Serialize};

use crate::error::InferenceError;
use crate::request::PrivacyLevel;

/// How a node is chosen: the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancingStrategy {
    /// Fast enough and large enough nodes first, by load per speed.
    CapabilityAware,
    /// Not built yet.
    LatencyOptimized,
    /// The node with the fewest requests in work.
    LeastLoaded,
    /// One after the other, by name.
    RoundRobin,
    /// Not built yet.
    Random,
    /// Not built yet.
    PowerOfTwo,
    /// Not built yet.
    CostAware,
    /// Not built yet.
    Sticky,
}

impl LoadBalancingStrategy {
    /// All strategies with their names, the default first.
    pub const ALL: [(&'static str, Self); 8] = [
        ("capability_aware", Self::CapabilityAware),
        ("latency_optimized", Self::LatencyOptimized),
        ("least_loaded", Self::LeastLoaded),
        ("round_robin", Self::RoundRobin),
        ("random", Self::Random),
        ("power_of_two", Self::PowerOfTwo),
        ("cost_aware", Self::CostAware),
        ("sticky", Self::Sticky),
    ];

    /// The strategy called `name`.
    ///
    /// # Errors
    /// A sentence with the nearest valid name.
    pub fn named(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(|(name, _)| name);
        Self::ALL
            .into_iter()
            .find(|(known, _)| *known == name)
            .map(|(_, strategy)| strategy)
            .ok_or_else(|| suggest::unknown("load balancing strategy", name, &names))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, s)| *s == self).map_or("", |(name, _)| name)
    }

    /// What the planner runs, if it is built.
    #[must_use]
    pub fn built(self) -> Option<Strategy> {
        match self {
            Self::CapabilityAware => Some(Strategy::CapabilityAware),
            Self::LeastLoaded => Some(Strategy::LeastLoaded),
            Self::RoundRobin => Some(Strategy::RoundRobin),
            Self::LatencyOptimized | Self::Random | Self::PowerOfTwo | Self::CostAware | Self::Sticky => None,
        }
    }
}

/// The strategies that are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// See [`LoadBalancingStrategy::CapabilityAware`].
    CapabilityAware,
    /// See [`LoadBalancingStrategy::LeastLoaded`].
    LeastLoaded,
    /// See [`LoadBalancingStrategy::RoundRobin`].
    RoundRobin,
}

/// Settings of the coordinator's half.
#[derive(Debug, Clone, PartialEq)]
pub struct InferenceConfig {
    /// Name in status and logs.
    pub coordinator_id: String,
    /// Requests in work or waiting at one time, >= 1; beyond = `Overloaded`.
    pub max_concurrent_requests: usize,
    /// Requests handed to one node at one time, >= 1; a node's queue beyond that only adds latency.
    pub per_node_in_flight: usize,
    /// How a node is chosen.
    pub load_balancing_strategy: LoadBalancingStrategy,
    /// Level of a request that names none.
    pub default_privacy_level: PrivacyLevel,
    /// Upper bound of a request's `max_latency_ms`, in milliseconds, >= 1.
    pub request_timeout_ms: u64,
    /// How long a finished result can be read.
    pub result_retention: Duration,
    /// Most durable requests (unfinished or with a result) at one time; beyond = `Overloaded`.
    pub stored_requests_max: usize,
}

impl Default for InferenceConfig {
    fn default() -> Self {
        Self {
            coordinator_id: "aivillage_inference_coord".to_owned(),
            max_concurrent_requests: 1_000,
            per_node_in_flight: 16,
            load_balancing_strategy: LoadBalancingStrategy::CapabilityAware,
            default_privacy_level: PrivacyLevel::Medium,
            request_timeout_ms: 30_000,
            result_retention: Duration::from_secs(3_600),
            stored_requests_max: 100_000,
        }
    }
}

impl InferenceConfig {
    /// The planner's strategy, after checking that every setting is possible and built.
    ///
    /// # Errors
    /// [`InferenceError::Unavailable`] with the key, its value and the way out.
    pub fn check(&self) -> Result<Strategy, InferenceError> {
        let refuse = |detail: String| Err(InferenceError::Unavailable { detail });
        for (key, value) in [
            ("max_concurrent_requests", self.max_concurrent_requests),
            ("per_node_in_flight", self.per_node_in_flight),
            ("stored_requests_max", self.stored_requests_max),
        ] {
            if value == 0 {
                return refuse(format!("inference.{key} is 0: at least 1 is needed"));
            }
        }
        if self.request_timeout_ms == 0 {
            return refuse("inference.performance.request_timeout_ms is 0: at least 1 is needed".into());
        }
        self.load_balancing_strategy.built().map_or_else(
            || {
                refuse(format!(
                    "inference.load_balancing_strategy `{}` is known, but this version does not build it yet: use one of \
                     capability_aware, least_loaded, round_robin",
                    self.load_balancing_strategy.name()
                ))
            },
            Ok,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_that_are_not_built_are_refused_with_the_way_out() {
        for (name, strategy) in LoadBalancingStrategy::ALL {
            assert_eq!(LoadBalancingStrategy::named(name), Ok(strategy));
            let checked = InferenceConfig { load_balancing_strategy: strategy, ..InferenceConfig::default() }.check();
            assert_eq!(checked.is_ok(), strategy.built().is_some(), "{name}");
            if let Err(error) = checked {
                assert!(error.to_string().contains("use one of capability_aware"), "{error}");
            }
        }
        assert!(LoadBalancingStrategy::named("round_robbin").unwrap_err().contains("did you mean `round_robin`"));
    }

    #[test]
    fn a_bound_of_zero_is_refused() {
        let config = InferenceConfig { max_concurrent_requests: 0, ..InferenceConfig::default() };
        assert!(config.check().unwrap_err().to_string().contains("max_concurrent_requests is 0"));
    }
}
