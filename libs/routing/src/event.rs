//! What comes in and what goes out.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{
    ProberName, RegionName,
    fleet::Fleet,
    observation::{Observation, ObservationCause, Target},
    overrides::Override,
    report::Load,
    routes::{Cause, RouteEntry, RouteKey},
};

/// One input of an [`Engine`](crate::Engine).
#[derive(Debug, Clone)]
pub enum RouteEvent {
    /// The fleet, which replaces the one before.
    Fleet(Arc<Fleet>),
    /// What changed in one prober's table. The prober counts as heard.
    Observations {
        /// The prober's region.
        region: RegionName,
        /// The prober.
        prober: ProberName,
        /// What it now says of each target; nothing where it no longer probes it.
        changes: Vec<(Target, Option<Observation>)>,
        /// Why it looked.
        cause: Option<ObservationCause>,
    },
    /// One prober's whole table, which replaces what was known of it. The prober counts as heard. What a target's word
    /// remembers (that it was down, how often it flapped) is kept.
    ObservationsReset {
        /// The prober's region.
        region: RegionName,
        /// The prober.
        prober: ProberName,
        /// Its table.
        all: Vec<(Target, Observation)>,
        /// Whether it has begun anew: then of what it does not speak of yet, what it saw before is kept as far as a word that
        /// waits for the next look may be.
        begins_anew: bool,
        /// Why it looked.
        cause: Option<ObservationCause>,
    },
    /// A prober's heartbeat: it lives and its table is as known.
    ProberHeard {
        /// The prober's region.
        region: RegionName,
        /// The prober.
        prober: ProberName,
    },
    /// A prober is no more: all that it said is forgotten. Verdicts that rest on nothing else stay.
    ProberGone {
        /// The prober's region.
        region: RegionName,
        /// The prober.
        prober: ProberName,
    },
    /// An edge's report of load; edges of all regions count. It has an effect at the next moment that demand is looked
    /// at ([`Settings::demand_interval`](crate::Settings::demand_interval)).
    Load(Load),
    /// All overrides, which replace those before.
    Overrides(BTreeMap<String, Override>),
    /// Nothing but time.
    Tick,
}

/// What an event changed in the route table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The entries that are new or different, and nothing for those that are gone, in the order of keys, each key once.
    pub entries: Vec<(RouteKey, Option<RouteEntry>)>,
    /// What brought the changes about; empty when there are none.
    pub causes: Vec<Cause>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
