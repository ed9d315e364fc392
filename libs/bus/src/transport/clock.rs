//! The time of day as a [`Timestamp`] that never runs backwards within a process.

use std::{
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

pub use tidegate_model::Timestamp;

/// The present time. After the machine's clock was set back, time passes at half speed until the clock has caught up.
pub fn now() -> Timestamp {
    static CLOCK: Mutex<Clock> = Mutex::new(Clock { last: None });
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let wall = u64::try_from(wall).unwrap_or(u64::MAX);
    CLOCK.lock().unwrap_or_else(PoisonError::into_inner).read(wall, Instant::now())
}

/// The present time in milliseconds since the Unix epoch: the start of numbers that must grow even when the bus has lost
/// the last one.
pub fn unix_millis() -> u64 {
    now().0 / 1000
}

/// The last time that was read.
struct Clock {
    last: Option<(u64, Instant)>,
}

impl Clock {
    /// The time when the machine's clock shows `wall` (microseconds since the Unix epoch).
    fn read(&mut self, wall: u64, at: Instant) -> Timestamp {
        let micros = self.last.map_or(wall, |(last, then)| {
            let passed = u64::try_from(at.duration_since(then).as_micros()).unwrap_or(u64::MAX);
            wall.max(last.saturating_add(passed / 2))
        });
        self.last = Some((micros, at));
        Timestamp(micros)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_was_set_back_is_waited_for_at_half_the_speed() {
        let start = Instant::now();
        let mut clock = Clock { last: None };
        let mut read = |wall, after| clock.read(wall, start + Duration::from_micros(after)).0;
        assert_eq!(read(1000, 0), 1000);
        assert_eq!(read(1100, 100), 1100);
        // Set back by 600: time goes on, and meets the clock 1200 later.
        assert_eq!(read(700, 300), 1200);
        assert_eq!(read(1700, 1300), 1700);
        assert_eq!(read(1750, 1350), 1750);
    }
}
