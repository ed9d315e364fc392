//! The epochs that a region's edges report, and of those the one that a leader has to outdo.

use std::{collections::BTreeMap, time::Duration};

use tidegate_model::{EdgeName, Epoch};
use tokio::time::Instant;

/// An edge that has not reported for this long counts as gone. For as long an edge has to be the only one before its report
/// alone counts.
const LIVE: Duration = Duration::from_secs(10);

/// What edges have reported.
#[derive(Debug, Default)]
pub struct ServingConsensus {
    /// Each edge's last report, and when it came.
    edges: BTreeMap<EdgeName, (Epoch, Instant)>,
    /// Since when only one edge has reported.
    alone_since: Option<Instant>,
}

impl ServingConsensus {
    /// Records the epoch that an edge serves, or the later one that it has heard of. Returns the largest that two edges need.
    /// What one edge alone reports counts
    /// where the region has no other (`is_only`), or where no other has reported for [`LIVE`] while it did.
    pub fn record(&mut self, edge: &EdgeName, epoch: Epoch, is_only: bool, now: Instant) -> Option<Epoch> {
        self.edges.retain(|_, (_, at)| now.saturating_duration_since(*at) < LIVE);
        let went_on = self.edges.insert(edge.clone(), (epoch, now)).is_some();
        if self.edges.len() > 1 {
            self.alone_since = None;
            let mut epochs: Vec<Epoch> = self.edges.values().map(|(epoch, _)| *epoch).collect();
            epochs.sort_unstable();
            return epochs.iter().rev().nth(1).copied();
        }
        let since = match self.alone_since {
            Some(since) if went_on => since,
            Some(_) | None => now,
        };
        self.alone_since = Some(since);
        (is_only || now.saturating_duration_since(since) >= LIVE).then_some(epoch)
    }

    /// Forgets edges that the region no longer has.
    pub fn retain(&mut self, is_known: impl Fn(&EdgeName) -> bool) {
        self.edges.retain(|edge, _| is_known(edge));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records reports, each of a second, an edge and an epoch, and returns what the last one led to.
    fn outdone(reports: impl IntoIterator<Item = (u64, &'static str, u64)>) -> Option<Epoch> {
        let (mut serving, start) = (ServingConsensus::default(), Instant::now());
        let record = |(second, edge, epoch): (u64, &str, u64)| {
            serving.record(&edge.parse().unwrap(), Epoch(epoch), false, start + Duration::from_secs(second))
        };
        reports.into_iter().map(record).last().flatten()
    }

    #[test]
    fn an_epoch_counts_when_two_edges_serve_it() {
        assert_eq!(outdone([(0, "a", 7)]), None);
        assert_eq!(outdone([(0, "a", 7), (0, "b", 9)]), Some(Epoch(7)));
        assert_eq!(
            outdone((0..60).flat_map(|s| [(s, "a", 1), (s, "b", 1), (s, "c", 1 << 19)])),
            Some(Epoch(1))
        );
    }

    #[test]
    fn the_only_edge_that_is_left_counts_after_a_while() {
        assert_eq!(outdone((0..10).map(|s| (s, "a", 7))), None);
        assert_eq!(outdone((0..11).map(|s| (s, "a", 7))), Some(Epoch(7)));
        // What an edge that has gone served last holds nothing up.
        assert_eq!(outdone([(0, "b", 1)].into_iter().chain((0..30).map(|s| (s, "a", 7)))), Some(Epoch(7)));
        // That nobody was heard makes nobody the only one.
        assert_eq!(outdone((0..11).map(|s| (s, "a", 7)).chain([(60, "a", 9)])), None);
    }

    #[test]
    fn the_only_edge_of_a_region_counts_at_once() {
        let recorded =
            ServingConsensus::default().record(&"a".parse().unwrap(), Epoch(7), true, Instant::now());
        assert_eq!(recorded, Some(Epoch(7)));
    }
}
