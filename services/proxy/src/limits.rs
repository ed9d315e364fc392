//! A worker's share of the process's file descriptors and memory.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// File descriptors that are not connections to clients or endpoints: the bus, the admin listener and its clients, the
/// state directory, logs.
const OWN_FILES: u64 = 96;
/// File descriptors of each worker's runtime and listeners.
const WORKER_FILES: u64 = 8;
/// The minimum number of connections, however low the limit on file descriptors is.
const LEAST_CONNECTIONS: u64 = 4;

/// The limits of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Client connections.
    pub client_connections: usize,
    /// Upstream connections.
    pub upstream_connections: usize,
    /// Bytes buffered for clients: heads, bodies kept for retries, responses that the client does not read.
    pub client_memory: usize,
}

impl WorkerLimits {
    /// The limits of one of `workers` workers of a process that may open `files` file descriptors and buffer `memory`
    /// bytes for clients. Half of the descriptors are for clients, since each client's request may need an upstream
    /// connection.
    pub fn of_worker(workers: usize, files: u64, memory: u64) -> WorkerLimits {
        let workers = workers.max(1) as u64;
        let half = files.saturating_sub(OWN_FILES + WORKER_FILES * workers) / 2;
        let connections = usize::try_from((half / workers).max(LEAST_CONNECTIONS)).unwrap_or(usize::MAX);
        WorkerLimits {
            client_connections: connections,
            upstream_connections: connections,
            client_memory: usize::try_from(memory / workers).unwrap_or(usize::MAX),
        }
    }
}

/// The memory that this process may use, in bytes: the machine's memory, or the limit of its control group where that
/// is lower. Nothing if the system does not report it.
pub fn memory_limit() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = group_limit_files(&groups);
    let limits = limits.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    machine.into_iter().chain(limits).min()
}

/// The files with the memory limits of the process's control group and all groups above it, by the content of
/// `/proc/self/cgroup`. In a container the path may be the host's, of which only the root is visible.
fn group_limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        files.extend(group.ancestors().map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_all_groups_above_count() {
        let files = group_limit_files("4:cpu,memory:/a/b\n3:cpuset:/x\n0::/system.slice/tidegate.service\n");
        let expected = [
            "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/system.slice/tidegate.service/memory.max",
            "/sys/fs/cgroup/system.slice/memory.max",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(files, expected.map(PathBuf::from));
        assert_eq!(group_limit_files("0::/\n"), [PathBuf::from("/sys/fs/cgroup/memory.max")]);
    }

    #[test]
    fn all_connections_together_leave_files_for_everything_else() {
        for (workers, files) in [(1, 256), (2, 256), (2, 1024), (64, 1 << 20)] {
            let limits = WorkerLimits::of_worker(workers, files, 0);
            let connections = (limits.client_connections + limits.upstream_connections) * workers;
            assert!(connections as u64 + OWN_FILES <= files, "{workers} {files} {limits:?}");
        }
        assert_eq!(WorkerLimits::of_worker(2, 16, 0).client_connections, 4);
    }
}
