//! Idle timeouts.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::Timer;

/// The idle timeouts once a response has begun, in both directions.
#[derive(Debug, Clone, Copy)]
pub struct IdleLimits {
    /// The idle timeout of a request.
    pub stream: Duration,
    /// The idle timeout of an upgraded connection.
    pub tunnel: Duration,
}

/// Since when a stream has been idle, and how much had been transferred by then.
#[derive(Default)]
pub struct IdleTimer(Option<(u64, Instant)>);

impl IdleTimer {
    /// Ready when the total of `moved` bytes has not changed for `limit`.
    pub fn poll(&mut self, moved: u64, limit: Duration, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<()> {
        let since = match self.0 {
            Some((known, since)) if known == moved => since,
            Some(_) | None => self.0.insert((moved, Instant::now())).1,
        };
        timer.poll_until(since + limit, cx)
    }
}
