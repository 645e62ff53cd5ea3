//! What this machine can do, measured: never asked of the user, never guessed by the gateway.

use std::path::Path;
use std::time::Duration;

use aivillage_base::time::Clock;
use aivillage_base::wire::{DataSummary, NodeReport, NodeType};

use crate::config::NodeConfig;

/// How long the speed is measured.
const SPEED_TIME: Duration = Duration::from_millis(30);

/// The node's report: measured speed and memory, detected kinds (unless settings narrow them), its owner's rules, data by
/// shape.
#[must_use]
pub fn report(clock: &dyn Clock, config: &NodeConfig, data: Vec<DataSummary>) -> NodeReport {
    let memory_gb = memory_gb();
    let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let detected = kinds(memory_gb, cores);
    NodeReport {
        helper: None,
        policy: Some(config.privacy.clone()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_types: config.node_types.clone().unwrap_or(detected),
        compute_gflops: aivillage_engine::bench::gflops(SPEED_TIME, clock),
        memory_gb,
        cores,
        serves: config.serve,
        data,
    }
}

fn memory_gb() -> f64 {
    let info = rustix::system::sysinfo();
    #[expect(clippy::cast_precision_loss, reason = "a size in 2^30 bytes with three digits is enough")]
    let bytes = info.totalram as f64 * f64::from(info.mem_unit);
    (bytes / f64::from(1u32 << 30) * 100.0).round() / 100.0
}

/// Mobile: runs on a battery. GPU: has an accelerator's device. Cloud: at least 16 cores or 64 GiB. Else edge.
fn kinds(memory_gb: f64, cores: u32) -> Vec<NodeType> {
    let mut kinds = Vec::new();
    if has_battery(Path::new("/sys/class/power_supply")) {
        kinds.push(NodeType::Mobile);
    } else if cores >= 16 || memory_gb >= 64.0 {
        kinds.push(NodeType::Cloud);
    } else {
        kinds.push(NodeType::Edge);
    }
    if ["/dev/nvidia0", "/dev/kfd"].iter().any(|device| Path::new(device).exists()) {
        kinds.push(NodeType::Gpu);
    }
    kinds
}

fn has_battery(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| {
        let text = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        // A wireless mouse has a battery, too, but its scope is the device.
        text("type").trim() == "Battery" && text("scope").trim() != "Device"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_a_battery_is_mobile_and_a_mouse_is_not_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        let supply = dir.path().join("BAT0");
        std::fs::create_dir(&supply).unwrap();
        std::fs::write(supply.join("type"), "Battery\n").unwrap();
        assert!(has_battery(dir.path()));
        std::fs::write(supply.join("scope"), "Device\n").unwrap();
        assert!(!has_battery(dir.path()));
    }
}
