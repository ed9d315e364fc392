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

#[cfg(test)]
mod tests {
    use super::*;

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
