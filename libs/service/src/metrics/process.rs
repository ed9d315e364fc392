//! The metrics of the process itself.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use super::Registry;
use crate::Description;

/// Adds the build, the start time and, on Linux, memory and open files.
pub fn observe_process(registry: &Registry, about: &Description) {
    let labels = [("service", about.name), ("version", about.version)];
    registry.gauge("tidegate_build_info", "The running build.", &labels).set(1.0);
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    registry.gauge("process_start_time_seconds", "When the process began, Unix time.", &[]).set(started);
    registry.collect(|samples| {
        if let Some(bytes) = resident_bytes() {
            samples.gauge("process_resident_memory_bytes", "Resident memory.", &[], bytes);
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            samples.gauge("process_open_fds", "Open file descriptors.", &[], files.count() as f64);
        }
    });
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}
