//! Pauses before retries, with jitter, so that clients that failed together don't return together.

use std::time::Duration;

/// A time in 50 to 100 % of `first` doubled `failures` times, at most `most`.
pub(crate) fn delay(failures: u32, first: Duration, most: Duration) -> Duration {
    let full = first.saturating_mul(1u32 << failures.min(16)).min(most);
    full.mul_f64(rand::random_range(0.5..=1.0))
}

/// A time from zero to `most`.
pub(crate) fn jitter(most: Duration) -> Duration {
    most.mul_f64(rand::random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_up_to_its_limit_and_is_never_less_than_half() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(2));
        for failures in 0..100 {
            let full = first.saturating_mul(1 << failures.min(16)).min(most);
            let delay = delay(failures, first, most);
            assert!(delay >= full / 2 && delay <= full, "{failures}: {delay:?}");
        }
    }
}
