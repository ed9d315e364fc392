//! Whether an edge is behind: without its region's latest table although somebody speaks of one.

use std::time::Duration;

use tidegate_model::Timestamp;

/// After this time without the latest table, while messages about it arrive, an edge is behind.
const BEHIND_AFTER: Duration = Duration::from_secs(5);
/// How recent such a message is at most.
const SPEAKS: Duration = Duration::from_secs(3);

/// What an edge knows of how current its table is.
#[derive(Debug)]
pub struct Behind {
    /// When it last had what the table's owner has.
    current_at: Timestamp,
    /// Messages of older or implausible epochs that it had refused when it last looked.
    refused_before: u64,
    since: Option<Timestamp>,
}

impl Behind {
    /// An edge that starts.
    pub fn new(now: Timestamp) -> Behind {
        Behind { current_at: now, refused_before: 0, since: None }
    }

    /// Notes that at this time it had what the table's owner has.
    pub fn record_current(&mut self, at: Timestamp) {
        self.current_at = at;
    }

    /// Since when it is behind, as of `now`; nothing when it is not. `heard_at` is when the last message about its table was
    /// received, believed or not; `refused` how many of older or implausible epochs were refused so far; `knows_of_later`
    /// says whether it has heard of a later epoch than that of its table.
    pub fn update(
        &mut self,
        now: Timestamp,
        heard_at: Option<Timestamp>,
        refused: u64,
        knows_of_later: bool,
    ) -> Option<Timestamp> {
        let speaks = heard_at.is_some_and(|at| now.since(at) < SPEAKS)
            || refused > self.refused_before
            || knows_of_later;
        self.refused_before = refused;
        let is_behind = now.since(self.current_at) >= BEHIND_AFTER && speaks;
        self.since = is_behind.then(|| self.since.unwrap_or(self.current_at));
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_is_behind_after_seconds_in_which_it_hears_of_a_table_that_it_does_not_have() {
        let at = |s: u64| Timestamp(1_000_000_000).plus(Duration::from_secs(s));
        let mut behind = Behind::new(at(0));
        behind.record_current(at(1));
        for second in 2..6 {
            assert_eq!(behind.update(at(second), Some(at(second)), 0, false), None);
        }
        assert_eq!(behind.update(at(6), Some(at(6)), 0, false), Some(at(1)));
        assert_eq!(behind.update(at(20), Some(at(6)), 0, false), None, "nobody speaks");
        assert_eq!(behind.update(at(21), Some(at(6)), 3, false), Some(at(1)), "somebody is refused");
        assert_eq!(behind.update(at(22), Some(at(6)), 3, true), Some(at(1)), "there is a later epoch");
        behind.record_current(at(22));
        assert_eq!(behind.update(at(22), Some(at(22)), 3, false), None);
    }
}
