//! That a name is one process's alone: whoever bears one says so on the bus, and hears who else does.
//!
//! It stops nobody: a lease picks between route-computers of one name, and of two tables of probers the later wins. But edges of
//! one name overwrite each other's reports, and a prober that nobody listens to is one fewer than was set up; it begins anew when
//! the other has gone.

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

/// The time between two words of a process.
const EVERY: Duration = Duration::from_secs(1);
/// After this time without a word another process counts as gone.
const GONE_AFTER: Duration = Duration::from_millis(3500);

/// At most this often a conflict is logged: anybody who may publish claims can invent processes.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A process that bears a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bearer {
    /// A random number that tells it from others.
    pub instance: u64,
    /// Its machine's name; empty where the machine does not tell.
    pub host: String,
    /// Its number on that machine.
    pub process: u32,
    /// Since when it bears the name.
    pub since: Timestamp,
}

impl Bearer {
    fn this_process() -> Bearer {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Bearer {
            instance: rand::random(),
            host: host.trim().to_owned(),
            process: std::process::id(),
            since: clock::now(),
        }
    }
}

impl fmt::Display for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.is_empty() { "an unnamed machine" } else { &self.host };
        write!(f, "process {} on {host}", self.process)
    }
}

impl Wire for Bearer {}

/// Another process, and when it was heard last.
type Heard = Mutex<Option<(Bearer, Instant)>>;

/// What this process hears of its name. Clones share it.
#[derive(Debug, Clone)]
pub struct Presence {
    heard: Arc<Heard>,
}

impl Presence {
    /// Begins to say that this process bears the name that belongs to `subject`, until `shutdown`: one that takes over from
    /// it may start while it still serves. `what` names it for the log.
    ///
    /// # Errors
    /// When the bus is closed or `subject` is not one. That the bus is away is no error.
    pub async fn start(
        bus: &Bus,
        subject: String,
        what: String,
        shutdown: CancellationToken,
    ) -> Result<Presence, BusError> {
        let heard = Arc::default();
        let others = bus.subscribe_reports(&subject).await?;
        let (own, bus) = (Bearer::this_process(), bus.clone());
        let speaker = Speaker { bus, subject, what, own, heard: Arc::clone(&heard) };
        tokio::spawn(speaker.speak(others, shutdown));
        Ok(Presence { heard })
    }

    /// Another process that bears the name now.
    pub fn other(&self) -> Option<Bearer> {
        another(&self.heard)
    }
}

fn another(heard: &Heard) -> Option<Bearer> {
    lock(heard).as_ref().filter(|(_, at)| at.elapsed() < GONE_AFTER).map(|(bearer, _)| bearer.clone())
}

struct Speaker {
    bus: Bus,
    subject: String,
    what: String,
    own: Bearer,
    heard: Arc<Heard>,
}

impl Speaker {
    async fn speak(self, mut others: Reports<Bearer>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut log = ConflictLog::default();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {
                    // It is repeated.
                    _ = self.bus.publish_report(&self.subject, None, &self.own).await;
                    if another(&self.heard).is_none() && log.ended() {
                        tracing::info!("the name of this {} is its own again", self.what);
                    }
                }
                report = others.next() => {
                    let Some(other) = report.map(|report| report.body) else { return };
                    if other.instance == self.own.instance {
                        continue;
                    }
                    if log.admit(other.instance, Instant::now()) {
                        tracing::error!("{other} is also {}: give each a name of its own", self.what);
                    }
                    *lock(&self.heard) = Some((other, Instant::now()));
                }
            }
        }
    }
}

/// Which process was last logged to claim the name, too.
#[derive(Debug)]
struct ConflictLog {
    instance: Option<u64>,
    limit: LogLimit,
}

impl Default for ConflictLog {
    fn default() -> Self {
        ConflictLog { instance: None, limit: LogLimit::new(LOG_EVERY) }
    }
}

impl ConflictLog {
    /// Whether to log now that `instance` claims the name.
    fn admit(&mut self, instance: u64, now: Instant) -> bool {
        let admitted = self.instance != Some(instance) && self.limit.admit(now);
        if admitted {
            self.instance = Some(instance);
        }
        admitted
    }

    /// Nobody claims it any more. Returns whether somebody was logged to.
    fn ended(&mut self) -> bool {
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
        assert!(log.ended() && !log.ended());
        assert!(log.admit(7, later) && !log.admit(7, later + LOG_EVERY * 2), "one process is logged once");
    }
}
