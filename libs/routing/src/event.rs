//! The events that the engine applies, and the changes that follow.

use std::sync::Arc;

use tidegate_model::{
    ProberName, RegionName,
    fleet::Fleet,
    observation::{Observation, ObservationCause, Target},
    overrides::OverrideSet,
    report::Load,
    routes::{Cause, RouteEntry, RouteKey},
};

/// An input of an [`Engine`](crate::Engine).
#[derive(Debug, Clone)]
pub enum RouteEvent {
    /// A fleet, which replaces the one before.
    Fleet(Arc<Fleet>),
    /// Changes to one prober's table, which show that the prober is live.
    Observations {
        /// The prober's region.
        region: RegionName,
        /// The prober.
        prober: ProberName,
        /// The new observation of each target; absent where the prober no longer probes it.
        changes: Vec<(Target, Option<Observation>)>,
        /// Why it probed.
        cause: Option<ObservationCause>,
    },
    /// One prober's whole table, which replaces the one before and shows that the prober is live. The history of each probe
    /// state (a failure, the flaps) is kept.
    ObservationsReset {
        /// The prober's region.
        region: RegionName,
        /// The prober.
        prober: ProberName,
        /// Its table.
        all: Vec<(Target, Observation)>,
        /// Whether the prober restarted. If so, targets that its new table lacks keep the part of their probe state that
        /// outlives a restart.
        restarted: bool,
        /// Why it probed.
        cause: Option<ObservationCause>,
    },
    /// A prober's heartbeat: the prober is live, and its table has not changed.
    ProberHeartbeat {
        /// The prober's region.
        region: RegionName,
        /// The prober.
        prober: ProberName,
    },
    /// A prober is gone. Its probe states are removed; verdicts that rest on them alone stay.
    ProberGone {
        /// The prober's region.
        region: RegionName,
        /// The prober.
        prober: ProberName,
    },
    /// The load report of an edge of any region. It takes effect when demand is measured next
    /// ([`Settings::demand_interval`](crate::Settings::demand_interval)).
    Load(Load),
    /// All overrides, which replace those before, and the withdrawals, which say who ended one of those.
    Overrides(OverrideSet),
    /// Time has passed.
    Tick,
}

/// The changes of the route table that follow from an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The new or changed entries, absent if removed, in the order of keys. Each key occurs once.
    pub entries: Vec<(RouteKey, Option<RouteEntry>)>,
    /// The causes of the changes; empty if there are none.
    pub causes: Vec<Cause>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
