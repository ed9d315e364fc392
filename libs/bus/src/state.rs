//! Whether the bus is there.

use std::time::Duration;

use tokio::time::Instant;

/// The connection's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusState {
    /// Since when there is no connection; absent: there is one.
    pub away_since: Option<Instant>,
    /// How often a connection was made again after one was lost.
    pub reconnects: u64,
}

impl BusState {
    /// Whether there is a connection.
    pub fn connected(&self) -> bool {
        self.away_since.is_none()
    }

    /// How long there has been no connection; absent: there is one.
    pub fn away_for(&self) -> Option<Duration> {
        self.away_since.map(|since| since.elapsed())
    }
}
