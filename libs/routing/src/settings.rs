//! What an engine is told once.

use std::time::Duration;

use tidegate_model::RegionName;

/// The settings of an [`Engine`](crate::Engine). All route-computers of a region need the same ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The region that routes are computed for.
    pub region: RegionName,
    /// How an endpoint that flaps is held out.
    pub damping: Damping,
    /// Over what time a cluster that comes back regains its whole share, in ten steps. Zero: at once.
    pub slow_start: Duration,
    /// The time without a word or heartbeat after which a prober is silent.
    pub prober_silent_after: Duration,
    /// How often demand is looked at, at most; multiples of it since the epoch are the moments.
    pub demand_interval: Duration,
    /// The time without a report after which an edge's demand no longer counts, while other edges of its region report.
    pub load_expires_after: Duration,
    /// The same when the whole region's edges are silent: they still send, they only cannot say so.
    pub load_held_for: Duration,
    /// By how much a share must be wrong before it moves, in thousandths. It moves at once where a cluster would get
    /// more than its capacity.
    pub share_tolerance_permille: u16,
    /// The most requests per second that one edge is believed to be asked for.
    pub edge_capacity: u32,
}

impl Settings {
    /// The defaults for `region`: slow start over 30 s, probers silent after 3 s, demand looked at every second, load
    /// expired after 10 s (60 s when a whole region is silent), shares that tolerate 5 points, 200,000 requests
    /// per second and edge.
    pub fn new(region: RegionName) -> Settings {
        Settings {
            region,
            damping: Damping::default(),
            slow_start: Duration::from_secs(30),
            prober_silent_after: Duration::from_secs(3),
            demand_interval: Duration::from_secs(1),
            load_expires_after: Duration::from_secs(10),
            load_held_for: Duration::from_secs(60),
            share_tolerance_permille: 50,
            edge_capacity: 200_000,
        }
    }
}

/// How an endpoint that flaps is held out.
///
/// The time doubles with each return, as in route flap damping (RFC 2439) and in Envoy's outlier ejection, and flaps
/// are forgiven one by one while the endpoint passes. The first return is never held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damping {
    /// How long the second return is held. Zero: nothing is ever held.
    pub first_hold: Duration,
    /// The longest hold.
    pub longest_hold: Duration,
    /// The time of steady passing that forgives one flap.
    pub forgiven_after: Duration,
}

impl Default for Damping {
    /// 5 s, doubling up to 5 minutes; a flap is forgiven after a minute.
    fn default() -> Self {
        Damping {
            first_hold: Duration::from_secs(5),
            longest_hold: Duration::from_secs(300),
            forgiven_after: Duration::from_secs(60),
        }
    }
}

impl Damping {
    /// How long a return is held when `flaps` failures, this one included, are not forgiven.
    pub(crate) fn hold(&self, flaps: u32) -> Duration {
        match flaps {
            0 | 1 => Duration::ZERO,
            2.. => self.first_hold.saturating_mul(1 << (flaps - 2).min(20)).min(self.longest_hold),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_double_from_the_second_return_up_to_the_limit() {
        let damping = Damping::default();
        let seconds: Vec<u64> = [1, 2, 3, 4, 9, 4_000_000_000].map(|n| damping.hold(n).as_secs()).to_vec();
        assert_eq!(seconds, [0, 5, 10, 20, 300, 300]);
    }
}
