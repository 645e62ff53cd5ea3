//! Figures of the stores for `/metrics`: how often and how long the process has waited for the disk.

use std::sync::Arc;

use aivillage_base::ports::{Blobs, Records, SyncStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Unit;

/// Reads the stores when `/metrics` is asked for.
#[derive(Debug)]
pub struct StoreFigures {
    /// Records.
    pub records: Arc<dyn Records>,
    /// Blobs.
    pub blobs: Arc<dyn Blobs>,
}

impl Collector for StoreFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stores = [("records", self.records.sync_stats()), ("blobs", self.blobs.sync_stats())];
        let name = "aivillage_store_syncs";
        let mut family = encoder.encode_descriptor(name, "Waits for the disk", None, MetricType::Counter)?;
        for (store, stats) in &stores {
            let labels = [("store", *store)];
            ConstCounter::new(stats.count).encode(family.encode_family(&labels)?)?;
        }
        let (name, unit) = ("aivillage_store_sync", Unit::Seconds);
        let mut family =
            encoder.encode_descriptor(name, "Time waited for the disk", Some(&unit), MetricType::Counter)?;
        for (store, stats) in &stores {
            let labels = [("store", *store)];
            ConstCounter::new(seconds(*stats)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn seconds(stats: SyncStats) -> f64 {
    // Microseconds of a process's life fit a double exactly.
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    let microseconds = stats.total_us as f64;
    microseconds / 1e6
}
