//! The settings of an engine.

use std::time::Duration;

use tidegate_model::RegionName;

/// The settings of an [`Engine`](crate::Engine). All route-computers of a region must have the same ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The region that routes are computed for.
    pub region: RegionName,
    /// Flap damping: how long an endpoint that flaps is suppressed.
    pub damping: Damping,
    /// The time in which a cluster that recovered regains its whole share, in ten steps. Zero: at once.
    pub slow_start: Duration,
    /// The time without a message after which a prober is stale.
    pub prober_stale_after: Duration,
    /// The least time between two measurements of demand, which happen at multiples of it since the Unix epoch.
    pub demand_interval: Duration,
    /// The time without a report after which the demand of an edge no longer counts, while other edges of its region report.
    pub load_expires_after: Duration,
    /// The same if no edge of the region reports: they still forward requests, only their reports are lost.
    pub load_kept_for: Duration,
    /// The drift of a share that is tolerated, in thousandths. No drift is tolerated where a cluster would get more than
    /// its capacity.
    pub share_tolerance_permille: u16,
    /// The most requests per second that one edge can plausibly report.
    pub edge_capacity: u32,
}

impl Settings {
    /// The defaults for `region`: slow start over 30 s, probers stale after 3 s, demand measured every second, load reports
    /// expired after 10 s (60 s if no edge of a region reports), a drift of 5 points, 200,000 requests per second and edge.
    pub fn new(region: RegionName) -> Settings {
        Settings {
            region,
            damping: Damping::default(),
            slow_start: Duration::from_secs(30),
            prober_stale_after: Duration::from_secs(3),
            demand_interval: Duration::from_secs(1),
            load_expires_after: Duration::from_secs(10),
            load_kept_for: Duration::from_secs(60),
            share_tolerance_permille: 50,
            edge_capacity: 200_000,
        }
    }
}

/// Flap damping: how long an endpoint that flaps is suppressed.
///
/// Suppression grows with each flap, as in BGP route flap damping (RFC 2439) and in Envoy's outlier ejection; here it
/// doubles. Flaps are forgiven one by one while the endpoint passes. The first recovery is never suppressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damping {
    /// How long the second recovery is suppressed. Zero turns damping off.
    pub first_suppression: Duration,
    /// The longest suppression.
    pub longest_suppression: Duration,
    /// The time of uninterrupted passing that forgives one flap.
    pub forgiven_after: Duration,
}

impl Default for Damping {
    /// 5 s, doubling up to 5 minutes; a flap is forgiven after a minute.
    fn default() -> Self {
        Damping {
            first_suppression: Duration::from_secs(5),
            longest_suppression: Duration::from_secs(300),
            forgiven_after: Duration::from_secs(60),
        }
    }
}

impl Damping {
    /// How long a recovery is suppressed after `flaps` failures that are not forgiven, the latest included.
    pub(crate) fn suppression(&self, flaps: u32) -> Duration {
        match flaps {
            0 | 1 => Duration::ZERO,
            2.. => {
                self.first_suppression.saturating_mul(1 << (flaps - 2).min(20)).min(self.longest_suppression)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppressions_double_from_the_second_recovery_up_to_the_limit() {
        let damping = Damping::default();
        let seconds: Vec<u64> =
            [1, 2, 3, 4, 9, 4_000_000_000].map(|n| damping.suppression(n).as_secs()).to_vec();
        assert_eq!(seconds, [0, 5, 10, 20, 300, 300]);
    }
}
