//! The epochs that a region's edges serve, and the one that its leader must exceed.

use std::{collections::BTreeMap, time::Duration};

use tidegate_model::{EdgeName, Epoch};
use tokio::time::Instant;

/// An edge that has not reported for this long is gone. An edge must have been the only one for this long before its report
/// alone counts.
const LIVE: Duration = Duration::from_secs(10);

/// The epochs that the edges of a region report.
#[derive(Debug, Default)]
pub struct ServingConsensus {
    /// The last report of each edge, and the time of its reception.
    edges: BTreeMap<EdgeName, (Epoch, Instant)>,
    /// When the reporting edge became the only one.
    alone_since: Option<Instant>,
}

impl ServingConsensus {
    /// Records the epoch that an edge serves, or the later one that it is fenced to. Returns the largest epoch that at least two
    /// edges need. The report of a single edge counts if the region has no other (`is_only`), or if no other has reported
    /// for [`LIVE`].
    pub fn record(&mut self, edge: &EdgeName, epoch: Epoch, is_only: bool, now: Instant) -> Option<Epoch> {
        self.edges.retain(|_, (_, at)| now.saturating_duration_since(*at) < LIVE);
        let reported_before = self.edges.insert(edge.clone(), (epoch, now)).is_some();
        if self.edges.len() > 1 {
            self.alone_since = None;
            let mut epochs: Vec<Epoch> = self.edges.values().map(|(epoch, _)| *epoch).collect();
            epochs.sort_unstable();
            return epochs.iter().rev().nth(1).copied();
        }
        let since = match self.alone_since {
            Some(since) if reported_before => since,
            Some(_) | None => now,
        };
        self.alone_since = Some(since);
        (is_only || now.saturating_duration_since(since) >= LIVE).then_some(epoch)
    }

    /// Removes edges that the region no longer has.
    pub fn retain(&mut self, is_known: impl Fn(&EdgeName) -> bool) {
        self.edges.retain(|edge, _| is_known(edge));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records reports, each of a second, an edge and an epoch, and returns the result of the last one.
    fn agreed(reports: impl IntoIterator<Item = (u64, &'static str, u64)>) -> Option<Epoch> {
        let (mut consensus, start) = (ServingConsensus::default(), Instant::now());
        let record = |(second, edge, epoch): (u64, &str, u64)| {
            consensus.record(&edge.parse().unwrap(), Epoch(epoch), false, start + Duration::from_secs(second))
        };
        reports.into_iter().map(record).last().flatten()
    }

    #[test]
    fn an_epoch_counts_when_two_edges_serve_it() {
        assert_eq!(agreed([(0, "a", 7)]), None);
        assert_eq!(agreed([(0, "a", 7), (0, "b", 9)]), Some(Epoch(7)));
        assert_eq!(
            agreed((0..60).flat_map(|s| [(s, "a", 1), (s, "b", 1), (s, "c", 1 << 19)])),
            Some(Epoch(1))
        );
    }

    #[test]
    fn the_only_edge_that_is_left_counts_after_a_while() {
        assert_eq!(agreed((0..10).map(|s| (s, "a", 7))), None);
        assert_eq!(agreed((0..11).map(|s| (s, "a", 7))), Some(Epoch(7)));
        // The last report of an edge that is gone delays nothing.
        assert_eq!(agreed([(0, "b", 1)].into_iter().chain((0..30).map(|s| (s, "a", 7)))), Some(Epoch(7)));
        // A time without reports makes no edge the only one.
        assert_eq!(agreed((0..11).map(|s| (s, "a", 7)).chain([(60, "a", 9)])), None);
    }

    #[test]
    fn the_only_edge_of_a_region_counts_at_once() {
        let recorded =
            ServingConsensus::default().record(&"a".parse().unwrap(), Epoch(7), true, Instant::now());
        assert_eq!(recorded, Some(Epoch(7)));
    }
}
