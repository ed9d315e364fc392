//! The state of the connection to the bus.

use std::time::Duration;

use tokio::time::Instant;

/// The state of the connection to the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusState {
    /// When the connection was lost; absent while connected.
    pub away_since: Option<Instant>,
    /// How often the connection was restored.
    pub reconnects: u64,
}

impl BusState {
    /// Whether the bus is connected.
    pub fn connected(&self) -> bool {
        self.away_since.is_none()
    }

    /// How long the connection has been lost; nothing while connected.
    pub fn away_for(&self) -> Option<Duration> {
        self.away_since.map(|since| since.elapsed())
    }
}
