//! Rate limits: of messages by sender, and of log lines.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

/// A token bucket for each sender, so that one that floods takes nothing from others. Callers admit only senders of the
/// fleet, which bounds their number.
#[derive(Debug)]
pub struct SenderLimit<S> {
    per_second: u32,
    burst: u32,
    senders: HashMap<S, Tokens>,
}

#[derive(Debug)]
struct Tokens {
    left: f64,
    at: Instant,
}

impl<S: Hash + Eq + Clone> SenderLimit<S> {
    /// Each sender may send `burst` messages at once, and `per_second` from then on.
    pub fn new(per_second: u32, burst: u32) -> SenderLimit<S> {
        SenderLimit { per_second, burst, senders: HashMap::new() }
    }

    /// Takes a token of this sender. Returns whether there was one.
    pub fn admit(&mut self, sender: &S, now: Instant) -> bool {
        let burst = f64::from(self.burst);
        if !self.senders.contains_key(sender) {
            self.senders.insert(sender.clone(), Tokens { left: burst, at: now });
        }
        let Some(tokens) = self.senders.get_mut(sender) else { return false };
        let passed = now.saturating_duration_since(tokens.at);
        tokens.left = (tokens.left + passed.as_secs_f64() * f64::from(self.per_second)).min(burst);
        tokens.at = now;
        let admitted = tokens.left >= 1.0;
        if admitted {
            tokens.left -= 1.0;
        }
        admitted
    }

    /// Removes the senders that are no longer known.
    pub fn retain(&mut self, is_known: impl Fn(&S) -> bool) {
        self.senders.retain(|sender, _| is_known(sender));
    }
}

/// A rate limit for log lines that others can cause.
#[derive(Debug)]
pub struct LogLimit {
    interval: Duration,
    logged_at: Option<Instant>,
}

impl LogLimit {
    /// A limit of one line per `interval`.
    pub fn new(interval: Duration) -> LogLimit {
        LogLimit { interval, logged_at: None }
    }

    /// Returns whether to log now; if so, a new interval begins.
    pub fn admit(&mut self, now: Instant) -> bool {
        let rests = self.logged_at.is_some_and(|at| now.saturating_duration_since(at) < self.interval);
        if !rests {
            self.logged_at = Some(now);
        }
        !rests
    }
}

/// The first and the longest interval at which a problem that lasts is logged again.
const FIRST_REMINDER: Duration = Duration::from_secs(10);
const LONGEST_REMINDER: Duration = Duration::from_mins(10);

/// Decides when a problem that lasts is logged: at once, when its reason changes, then at intervals that double from 10
/// seconds to 10 minutes, and when it is over.
#[derive(Debug, Default)]
pub struct ProblemLog(Option<Ongoing>);

#[derive(Debug)]
struct Ongoing {
    reason: String,
    since: Instant,
    remind_at: Instant,
    interval: Duration,
}

/// What is worth a log line about a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemNotice {
    /// It began, or has another reason than before.
    Began,
    /// It has lasted for so long.
    Lasts(Duration),
    /// It is over, after so long.
    Over(Duration),
}

impl ProblemLog {
    /// Records why there is a problem now, or that there is none. Returns what to log, if anything.
    pub fn record(&mut self, reason: Option<&str>, now: Instant) -> Option<ProblemNotice> {
        let Some(reason) = reason else {
            return self.0.take().map(|over| ProblemNotice::Over(now.saturating_duration_since(over.since)));
        };
        match &mut self.0 {
            Some(ongoing) if ongoing.reason == reason => {
                if now < ongoing.remind_at {
                    return None;
                }
                ongoing.interval = (ongoing.interval * 2).min(LONGEST_REMINDER);
                ongoing.remind_at = now + ongoing.interval;
                Some(ProblemNotice::Lasts(now.saturating_duration_since(ongoing.since)))
            }
            ongoing => {
                let since = ongoing.as_ref().map_or(now, |ongoing| ongoing.since);
                *ongoing = Some(Ongoing {
                    reason: reason.to_owned(),
                    since,
                    remind_at: now + FIRST_REMINDER,
                    interval: FIRST_REMINDER,
                });
                Some(ProblemNotice::Began)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_logged_at_once_then_at_growing_intervals_and_when_it_is_over() {
        let (mut log, start) = (ProblemLog::default(), Instant::now());
        let mut at = |seconds: u64, reason| log.record(reason, start + Duration::from_secs(seconds));
        let lasts = |seconds| Some(ProblemNotice::Lasts(Duration::from_secs(seconds)));
        assert_eq!(at(0, None), None);
        assert_eq!(at(0, Some("wrong password")), Some(ProblemNotice::Began));
        let reminders: Vec<u64> =
            (1..3600).filter(|second| at(*second, Some("wrong password")).is_some()).collect();
        assert_eq!(reminders, [10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 3030]);
        assert_eq!(at(3600, Some("no server")), Some(ProblemNotice::Began));
        assert_eq!(at(3610, Some("no server")), lasts(3610));
        assert_eq!(at(3611, None), Some(ProblemNotice::Over(Duration::from_secs(3611))));
        assert_eq!(at(3612, None), None);
    }

    #[test]
    fn a_sender_that_floods_is_limited_and_takes_nothing_from_others() {
        let mut limit = SenderLimit::new(10, 20);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let flood = (0..1000).filter(|ms| limit.admit(&"a", at(*ms))).count();
        assert_eq!(flood, 29, "20 at once and 10 a second");
        assert!((0..20).all(|_| limit.admit(&"b", at(1000))));

        assert_eq!((0..1000).filter(|_| limit.admit(&"a", at(60_000))).count(), 20, "no more than at first");

        limit.retain(|sender| *sender == "b");
        assert_eq!(limit.senders.len(), 1);
    }

    #[test]
    fn what_others_cause_is_logged_once_in_each_interval() {
        let mut limit = LogLimit::new(Duration::from_secs(10));
        let start = Instant::now();
        let logged = (0..25).filter(|s| limit.admit(start + Duration::from_secs(*s))).count();
        assert_eq!(logged, 3);
    }
}
