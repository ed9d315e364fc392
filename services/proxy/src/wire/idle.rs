//! How long nothing may pass.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::Timer;

/// How long nothing may pass in either direction once a response has begun.
#[derive(Debug, Clone, Copy)]
pub struct IdleLimits {
    /// Of a request.
    pub stream: Duration,
    /// Of an upgraded connection.
    pub tunnel: Duration,
}

/// Since when nothing has passed, and how much had passed by then. Nothing before it is first looked at.
#[derive(Default)]
pub struct IdleTimer(Option<(u64, Instant)>);

impl IdleTimer {
    /// Ready when no more than the `moved` bytes have passed for `limit`.
    pub fn poll(&mut self, moved: u64, limit: Duration, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<()> {
        let since = match self.0 {
            Some((known, since)) if known == moved => since,
            Some(_) | None => self.0.insert((moved, Instant::now())).1,
        };
        timer.poll_until(since + limit, cx)
    }
}
