//! Figures for `/metrics`: the guide's inference names and our own families.
//!
//! Prometheus-client appends `_total` to counters, so `federated_requests_total` is registered as `federated_requests`,
//! and `federated_requests_failed`, which must not get the suffix, is a counter of unknown type (`Bare`).

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aivillage_base::time::Clock;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The span of `federated_inference_latency_p95`, in milliseconds.
const WINDOW_MS: u64 = 300_000;
/// The window moves in steps of this many milliseconds.
const SLOT_MS: u64 = 10_000;
/// Latencies are kept in buckets whose bounds grow by this factor: the error of the percentile is below 5 %.
const GROWTH: f64 = 1.05;
/// Buckets from 0.1 ms up to 0.1 ms * 1.05^352 = 48 min; all memory of the window is 31 * 353 * 4 bytes = 44 kB.
const BUCKETS: usize = 353;
/// Upper bound of the first bucket, in milliseconds.
const FIRST_MS: f64 = 0.1;

/// The families; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Counter,
    failed: Bare,
    shed: Counter,
    expired: Counter,
    replanned: Counter,
    active: Gauge,
    queued: Gauge,
    serving_nodes: Gauge,
    latency: Histogram,
    p95: P95,
}

impl Metrics {
    /// Families that start at zero.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let bounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        Self {
            requests: Counter::default(),
            failed: Bare::default(),
            shed: Counter::default(),
            expired: Counter::default(),
            replanned: Counter::default(),
            active: Gauge::default(),
            queued: Gauge::default(),
            serving_nodes: Gauge::default(),
            latency: Histogram::new(bounds),
            p95: P95 { clock, window: Arc::default() },
        }
    }

    /// Adds the families to a registry, once.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("federated_requests", "Inference requests, whatever became of them", self.requests.clone());
        registry.register(
            "federated_requests_failed",
            "Inference requests that failed, expired or were refused because full",
            self.failed.clone(),
        );
        registry.register(
            "federated_inference_latency_p95",
            "95th percentile of the time from submission to answer over the last 5 minutes, in milliseconds; 0 without any",
            self.p95.clone(),
        );
        registry.register("aivillage_inference_shed", "Requests refused because full", self.shed.clone());
        registry.register("aivillage_inference_expired", "Requests not answered in time", self.expired.clone());
        registry.register(
            "aivillage_inference_replanned",
            "Times a request was handed to another node after one failed",
            self.replanned.clone(),
        );
        registry.register("aivillage_inference_active", "Requests in work or waiting", self.active.clone());
        registry.register("aivillage_inference_queued", "Requests that wait for a node", self.queued.clone());
        registry.register(
            "aivillage_inference_serving_nodes",
            "Connected nodes that take requests",
            self.serving_nodes.clone(),
        );
        registry.register(
            "aivillage_inference_latency_seconds",
            "Time from submission to answer of completed requests",
            self.latency.clone(),
        );
    }

    pub(crate) fn admitted(&self) {
        self.requests.inc();
    }

    pub(crate) fn shed(&self) {
        self.requests.inc();
        self.shed.inc();
        self.failed.inc();
    }

    pub(crate) fn completed(&self, latency_ms: u64) {
        #[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^53 ms")]
        let ms = latency_ms as f64;
        self.latency.observe(ms / 1_000.0);
        self.p95.observe(ms);
    }

    pub(crate) fn failed(&self) {
        self.failed.inc();
    }

    pub(crate) fn expired(&self) {
        self.expired.inc();
        self.failed.inc();
    }

    pub(crate) fn replanned(&self) {
        self.replanned.inc();
    }

    pub(crate) fn gauges(&self, active: usize, queued: usize, serving_nodes: usize) {
        let as_i64 = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.active.set(as_i64(active));
        self.queued.set(as_i64(queued));
        self.serving_nodes.set(as_i64(serving_nodes));
    }
}

/// A counter that is exposed under its bare name.
#[derive(Debug, Clone, Default)]
struct Bare(Arc<AtomicU64>);

impl Bare {
    fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl EncodeMetric for Bare {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), fmt::Error> {
        encoder.encode_gauge(&self.0.load(Ordering::Relaxed))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Unknown
    }
}

/// A gauge that is computed when it is read.
#[derive(Debug, Clone)]
struct P95 {
    clock: Arc<dyn Clock>,
    window: Arc<Mutex<Window>>,
}

/// Counts by latency in slots of [`SLOT_MS`], oldest first.
#[derive(Debug, Default)]
struct Window {
    slots: VecDeque<(u64, Box<[u32]>)>,
}

impl P95 {
    fn observe(&self, ms: f64) {
        let slot = self.clock.now().monotonic_ms / SLOT_MS;
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.drop_old(slot);
        if window.slots.back().is_none_or(|(last, _)| *last != slot) {
            window.slots.push_back((slot, vec![0; BUCKETS].into_boxed_slice()));
        }
        if let Some((_, counts)) = window.slots.back_mut() {
            counts[bucket(ms)] += 1;
        }
    }

    fn value(&self) -> f64 {
        let slot = self.clock.now().monotonic_ms / SLOT_MS;
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.drop_old(slot);
        window.p95()
    }
}

impl Window {
    fn drop_old(&mut self, slot: u64) {
        while self.slots.front().is_some_and(|(first, _)| first + WINDOW_MS / SLOT_MS < slot) {
            self.slots.pop_front();
        }
    }

    fn p95(&self) -> f64 {
        let total: u64 = self.slots.iter().flat_map(|(_, c)| c.iter()).map(|n| u64::from(*n)).sum();
        if total == 0 {
            return 0.0;
        }
        let rank = (total * 95).div_ceil(100);
        let mut seen = 0;
        for index in 0..BUCKETS {
            seen += self.slots.iter().map(|(_, counts)| u64::from(counts[index])).sum::<u64>();
            if seen >= rank {
                return FIRST_MS * GROWTH.powi(i32::try_from(index).unwrap_or(i32::MAX));
            }
        }
        0.0
    }
}

/// Index of the bucket whose upper bound is the first at or above `ms`.
fn bucket(ms: f64) -> usize {
    let steps = (ms.max(FIRST_MS) / FIRST_MS).ln() / GROWTH.ln();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= steps, and `as` saturates")]
    let index = steps.ceil() as usize;
    index.min(BUCKETS - 1)
}

impl EncodeMetric for P95 {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), fmt::Error> {
        encoder.encode_gauge(&self.value())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aivillage_base::time::Now;

    #[derive(Debug, Default)]
    struct Hand(AtomicU64);
    impl Clock for Hand {
        fn now(&self) -> Now {
            Now { monotonic_ms: self.0.load(Ordering::Relaxed), wall_ms: 0 }
        }
    }

    fn text(metrics: &Metrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &registry).unwrap();
        out
    }

    #[test]
    fn the_guides_names_are_exposed_exactly_and_from_the_start() {
        let metrics = Metrics::new(Arc::new(Hand::default()));
        for line in ["federated_requests_total 0", "federated_requests_failed 0", "federated_inference_latency_p95 0.0"]
        {
            assert!(text(&metrics).lines().any(|l| l == line), "{line} in\n{}", text(&metrics));
        }
        metrics.shed();
        assert!(text(&metrics).contains("\nfederated_requests_total 1\n"));
        assert!(text(&metrics).contains("\nfederated_requests_failed 1\n"));
    }

    #[test]
    fn the_percentile_is_near_and_forgets_after_five_minutes() {
        let clock = Arc::new(Hand::default());
        let metrics = Metrics::new(Arc::<Hand>::clone(&clock));
        for ms in 1..=1_000 {
            clock.0.store(ms * 100, Ordering::Relaxed);
            metrics.completed(ms);
        }
        let p95 = metrics.p95.value();
        assert!((950.0..=1_000.0).contains(&p95), "{p95}");
        clock.0.store(100_000 + WINDOW_MS + 2 * SLOT_MS, Ordering::Relaxed);
        assert!(metrics.p95.value().abs() < f64::EPSILON);
    }
}
