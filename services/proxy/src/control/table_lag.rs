//! Whether an edge is behind: without its region's latest table although messages about one arrive.

use std::time::Duration;

use tidegate_model::Timestamp;

/// After this time without the latest table, while messages about it arrive, an edge is behind.
const BEHIND_AFTER: Duration = Duration::from_secs(5);
/// How recent such a message must be.
const SPEAKS: Duration = Duration::from_secs(3);

/// How current an edge's table is.
#[derive(Debug)]
pub struct TableLag {
    /// When it last had the owner's latest table.
    current_at: Timestamp,
    /// The number of refused messages of older or implausible epochs at the last update.
    refused_before: u64,
    since: Option<Timestamp>,
}

impl TableLag {
    /// The lag of an edge that starts.
    pub fn new(now: Timestamp) -> TableLag {
        TableLag { current_at: now, refused_before: 0, since: None }
    }

    /// Records that the edge had the owner's latest table at this time.
    pub fn record_current(&mut self, at: Timestamp) {
        self.current_at = at;
    }

    /// Updates the lag. Returns since when the edge has been behind, if it is. `heard_at` is when the last message
    /// about its table was received, accepted or not; `refused` how many messages of older or implausible epochs were
    /// refused so far; `knows_of_later` whether it knows of a later epoch than that of its table.
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
        let mut behind = TableLag::new(at(0));
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
