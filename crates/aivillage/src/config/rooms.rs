//! From the file's words to each room's settings.
//!
//! Promise: every key that the table calls in effect for a room is handed to it here, in the room's units.
//! Must not know: how the rooms use them.

use std::time::Duration;

use aivillage_gateway::{GatewayConfig, TlsFiles};
use aivillage_inference::InferenceConfig;
use aivillage_training::TrainingConfig;

use super::federated::Config;

/// Bytes in the MB of the file.
const MB: u64 = 1 << 20;

/// What the training coordinator is told.
#[must_use]
pub fn training_room(config: &Config) -> TrainingConfig {
    let training = &config.training;
    let selection = &training.participant_selection;
    TrainingConfig {
        coordinator_id: training.coordinator_id.clone(),
        max_concurrent_jobs: training.max_concurrent_jobs,
        default_rounds: training.default_rounds,
        round_timeout: Duration::from_secs(training.round_timeout_minutes * 60),
        min_participants: selection.min_participants,
        max_participants: selection.max_participants,
        selection_timeout: Duration::from_millis(selection.selection_timeout_ms),
        selection: selection.strategy,
        enable_secure_aggregation: training.privacy.enable_secure_aggregation,
        default_strategy: training.aggregation.default_strategy.clone(),
        byzantine_tolerance: training.aggregation.byzantine_tolerance,
    }
}

/// What the inference coordinator is told.
#[must_use]
pub fn inference_room(config: &Config) -> InferenceConfig {
    let inference = &config.inference;
    InferenceConfig {
        coordinator_id: inference.coordinator_id.clone(),
        max_concurrent_requests: inference.max_concurrent_requests,
        load_balancing_strategy: inference.load_balancing_strategy,
        default_privacy_level: inference.privacy.default_privacy_level,
        request_timeout_ms: inference.performance.request_timeout_ms,
        result_retention: Duration::from_secs(config.gateway.result_retention_minutes * 60),
        ..InferenceConfig::default()
    }
}

/// What the gateway is told; `production` as in [`Environment`](super::Environment): keys are demanded.
#[must_use]
pub fn gateway_room(config: &Config, production: bool) -> GatewayConfig {
    let gateway = &config.gateway;
    let tls = gateway.tls.cert.clone().zip(gateway.tls.key.clone());
    GatewayConfig {
        require_authentication: production || config.inference.privacy.require_authentication,
        allow_insecure: gateway.allow_insecure,
        public_metrics: gateway.public_metrics,
        export_metrics: config.monitoring.enabled && config.monitoring.export_prometheus,
        mount_inference: config.inference.integration.gateway_integration,
        allowed_hosts: gateway.allowed_hosts.clone(),
        cors_origins: gateway.cors_origins.clone(),
        max_body_bytes: usize::try_from(gateway.max_body_mb * MB).unwrap_or(usize::MAX),
        max_model_bytes: gateway.max_model_mb * MB,
        header_timeout: Duration::from_millis(gateway.header_timeout_ms),
        max_connections: gateway.max_connections,
        rate_limit_per_second: gateway.rate_limit_per_second,
        idempotency_retention: Duration::from_secs(gateway.idempotency_retention_hours * 3600),
        tls: tls.map(|(certificate, key)| TlsFiles { certificate, key }),
        ..GatewayConfig::default()
    }
}
