//! Name conflicts: each process claims its name on the bus once a second and listens for other claims of it.
//!
//! A conflict is reported and stops nobody: the lease picks between route-computers of one name, and of two probers' tables
//! the later one wins. But edges of one name overwrite each other's reports, and one of two probers of one name is wasted.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidegate_model::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{Bus, BusError, clock, codec::Wire, limit::LogLimit, lock::lock, report::Reports};

/// The time between two claims of a process.
const CLAIM_INTERVAL: Duration = Duration::from_secs(1);
/// The time after its last claim when another process counts as gone.
const CLAIM_LIFETIME: Duration = Duration::from_millis(3500);

/// The shortest time between two log lines about conflicts: anybody who may publish claims can invent processes.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A process's claim of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityClaim {
    /// A random number that distinguishes the process from others.
    pub instance: u64,
    /// The host's name; empty where it is unknown.
    pub host: String,
    /// The process ID on that host.
    pub process: u32,
    /// When the process first claimed the name.
    pub since: Timestamp,
    /// What is wrong with it now, at most [`Problem::MOST`].
    pub problems: Vec<Problem>,
}

/// Something that is wrong with a process: why it is not ready, or what is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The name of the readiness check or warning.
    pub check: String,
    /// What is wrong.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// Whether the process is not ready because of it.
    pub is_blocking: bool,
}

impl Problem {
    /// The most problems in one claim.
    pub const MOST: usize = 16;
    /// The longest reason in a claim, in bytes.
    const LONGEST_REASON: usize = 500;

    /// The problem with a reason of bounded length.
    fn bounded(mut self) -> Problem {
        if self.reason.len() > Problem::LONGEST_REASON {
            let end = self.reason.floor_char_boundary(Problem::LONGEST_REASON);
            self.reason.truncate(end);
            self.reason.push('…');
        }
        self
    }
}

impl IdentityClaim {
    fn of_this_process() -> IdentityClaim {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        IdentityClaim {
            instance: rand::random(),
            host: host.trim().to_owned(),
            process: std::process::id(),
            since: clock::now(),
            problems: Vec::new(),
        }
    }
}

impl fmt::Display for IdentityClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.is_empty() { "an unnamed host" } else { &self.host };
        write!(f, "process {} on {host}", self.process)
    }
}

impl Wire for IdentityClaim {}

/// The last claim of another process, and when it was received.
type LastClaim = Mutex<Option<(IdentityClaim, Instant)>>;

/// Watches for other processes that claim this process's name. Clones share what was received.
#[derive(Debug, Clone)]
pub struct NameConflictMonitor {
    last_claim: Arc<LastClaim>,
}

impl NameConflictMonitor {
    /// Starts to claim the name that belongs to `subject`, until `shutdown`: a successor may then start while this process
    /// still drains. `what` describes the process in the log; `problems` says what is wrong with it, and is called for each
    /// claim.
    ///
    /// # Errors
    /// When the bus is closed or `subject` is malformed. A bus that is away is no error.
    pub async fn start(
        bus: &Bus,
        subject: String,
        what: String,
        problems: impl Fn() -> Vec<Problem> + Send + 'static,
        shutdown: CancellationToken,
    ) -> Result<NameConflictMonitor, BusError> {
        let last_claim = Arc::default();
        let claims = bus.subscribe_reports(&subject).await?;
        let (own, bus) = (IdentityClaim::of_this_process(), bus.clone());
        let claimant = Claimant { bus, subject, what, own, last_claim: Arc::clone(&last_claim) };
        tokio::spawn(claimant.run(claims, problems, shutdown));
        Ok(NameConflictMonitor { last_claim })
    }

    /// The claim of another process on the same name, while there is one.
    pub fn conflicting_claim(&self) -> Option<IdentityClaim> {
        fresh_claim(&self.last_claim)
    }
}

fn fresh_claim(last_claim: &LastClaim) -> Option<IdentityClaim> {
    lock(last_claim).as_ref().filter(|(_, at)| at.elapsed() < CLAIM_LIFETIME).map(|(claim, _)| claim.clone())
}

struct Claimant {
    bus: Bus,
    subject: String,
    what: String,
    own: IdentityClaim,
    last_claim: Arc<LastClaim>,
}

impl Claimant {
    async fn run(
        mut self,
        mut claims: Reports<IdentityClaim>,
        problems: impl Fn() -> Vec<Problem>,
        shutdown: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(CLAIM_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut log = ConflictLog::default();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {
                    self.own.problems = problems().into_iter().take(Problem::MOST).map(Problem::bounded).collect();
                    // A claim that is lost is repeated.
                    _ = self.bus.publish_report(&self.subject, None, &self.own).await;
                    if fresh_claim(&self.last_claim).is_none() && log.end_conflict() {
                        tracing::info!("no other process claims the name of this {} any more", self.what);
                    }
                }
                report = claims.next() => {
                    let Some(other) = report.map(|report| report.body) else { return };
                    if other.instance == self.own.instance {
                        continue;
                    }
                    if log.admit(other.instance, Instant::now()) {
                        tracing::error!("{other} is also {}: give each a name of its own", self.what);
                    }
                    *lock(&self.last_claim) = Some((other, Instant::now()));
                }
            }
        }
    }
}

/// The process whose conflicting claim was logged last.
#[derive(Debug)]
struct ConflictLog {
    instance: Option<u64>,
    limit: LogLimit,
}

impl Default for ConflictLog {
    fn default() -> Self {
        ConflictLog { instance: None, limit: LogLimit::new(LOG_INTERVAL) }
    }
}

impl ConflictLog {
    /// Records a claim by `instance`. Returns whether to log it.
    fn admit(&mut self, instance: u64, now: Instant) -> bool {
        let admitted = self.instance != Some(instance) && self.limit.admit(now);
        if admitted {
            self.instance = Some(instance);
        }
        admitted
    }

    /// Records that the conflict has ended. Returns whether it was logged.
    fn end_conflict(&mut self) -> bool {
        self.instance.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_processes_do_not_fill_the_log() {
        let start = Instant::now();
        let mut log = ConflictLog::default();
        let logged = (0..60_000).filter(|ms| log.admit(*ms, start + Duration::from_millis(*ms))).count();
        assert_eq!(logged, 6, "each 10 s");

        let later = start + Duration::from_secs(120);
        assert!(log.end_conflict() && !log.end_conflict());
        assert!(log.admit(7, later) && !log.admit(7, later + LOG_INTERVAL * 2), "one process is logged once");
    }
}
