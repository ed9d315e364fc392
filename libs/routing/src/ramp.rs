//! Slow start: the share of a cluster that recovered grows in steps.

use std::time::Duration;

use tidegate_model::Timestamp;

/// The steps to the whole share.
const STEPS: u64 = 10;

/// A whole share, in thousandths.
pub(crate) const WHOLE: u16 = 1000;

/// The part of its share, in thousandths, that a cluster which recovered at `since` gets at `now`.
pub(crate) fn permille(since: Option<Timestamp>, slow_start: Duration, now: Timestamp) -> u16 {
    let (Some(since), step @ 1..) = (since, step_us(slow_start)) else { return WHOLE };
    let done = now.0.saturating_sub(since.0) / step;
    // At most WHOLE, which fits.
    ((done + 1).min(STEPS) * u64::from(WHOLE) / STEPS) as u16
}

/// The next time at which that part grows.
pub(crate) fn next_step(since: Timestamp, slow_start: Duration, now: Timestamp) -> Option<Timestamp> {
    let step @ 1.. = step_us(slow_start) else { return None };
    let done = now.0.saturating_sub(since.0) / step;
    (done + 1 < STEPS).then(|| Timestamp(since.0.saturating_add((done + 1).saturating_mul(step))))
}

fn step_us(slow_start: Duration) -> u64 {
    u64::try_from(slow_start.as_micros()).unwrap_or(u64::MAX) / STEPS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_in_ten_steps_and_says_when() {
        let slow_start = Duration::from_secs(30);
        let at = |seconds: u64| Timestamp(1_000_000 * (100 + seconds));
        let share = |seconds| permille(Some(at(0)), slow_start, at(seconds));
        assert_eq!([0, 2, 3, 14, 26, 27, 1000].map(share), [100, 100, 200, 500, 900, 1000, 1000]);
        assert_eq!(next_step(at(0), slow_start, at(4)), Some(at(6)));
        assert_eq!(next_step(at(0), slow_start, at(26)), Some(at(27)));
        assert_eq!(next_step(at(0), slow_start, at(27)), None);
    }

    #[test]
    fn what_was_always_up_has_its_whole_share() {
        assert_eq!(permille(None, Duration::from_secs(30), Timestamp(5)), WHOLE);
        assert_eq!(permille(Some(Timestamp(5)), Duration::ZERO, Timestamp(5)), WHOLE);
    }
}
