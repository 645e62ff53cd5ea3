//! Figures of the training coordinator for `/metrics`; names and units as users know them.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The room's counters and gauges; clones share their values.
#[derive(Debug, Clone)]
pub struct TrainingMetrics {
    /// Connected nodes that hold training data.
    pub participants: Gauge,
    /// Smallest privacy budget left over all participants.
    pub privacy_budget_remaining: Gauge<f64, AtomicU64>,
    /// Published rounds.
    pub rounds_published: Counter,
    /// Attempts given up.
    pub rounds_abandoned: Counter,
    /// Updates that count.
    pub updates_counted: Counter,
    /// Updates refused.
    pub updates_refused: Counter,
    /// Time from opening to end of a published attempt.
    pub round_seconds: Histogram,
}

impl TrainingMetrics {
    /// Makes and registers them. `budget` is what every participant starts with.
    pub fn register(registry: &mut Registry, budget: f64) -> Self {
        let buckets = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0];
        let metrics = Self {
            participants: Gauge::default(),
            privacy_budget_remaining: Gauge::default(),
            rounds_published: Counter::default(),
            rounds_abandoned: Counter::default(),
            updates_counted: Counter::default(),
            updates_refused: Counter::default(),
            round_seconds: Histogram::new(buckets),
        };
        metrics.privacy_budget_remaining.set(budget);
        registry.register(
            "federated_training_participants",
            "Connected nodes that hold training data",
            metrics.participants.clone(),
        );
        registry.register(
            "federated_privacy_budget_remaining",
            "Smallest privacy budget (epsilon) left over all participants",
            metrics.privacy_budget_remaining.clone(),
        );
        let counters = [
            ("aivillage_training_rounds_published", "Published rounds", &metrics.rounds_published),
            ("aivillage_training_rounds_abandoned", "Attempts at rounds given up", &metrics.rounds_abandoned),
            ("aivillage_training_updates_counted", "Updates that count", &metrics.updates_counted),
            ("aivillage_training_updates_refused", "Updates refused", &metrics.updates_refused),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "aivillage_training_round_seconds",
            "Time from opening to publishing of a round",
            metrics.round_seconds.clone(),
        );
        metrics
    }
}
