//! What was heard on the bus: each region's table and its changes, what edges applied, whom they suspected.

use std::collections::BTreeMap;

use tidegate_model::{
    Epoch, Revision, Timestamp,
    report::{Applied, Suspicion},
    routes::{ActionTiers, HealthEntry, RouteCause, RouteEntry, RouteKey},
    verdict::Verdict,
};

use crate::plan::{REGIONS, RegionPlan, SERVICE};

/// A published change of a region's table, or what its new owner's first table changed.
#[derive(Debug, Clone)]
pub struct Change {
    /// The region.
    pub region: String,
    /// The table's epoch.
    pub epoch: Epoch,
    /// The table's revision after it.
    pub revision: Revision,
    /// What changed.
    pub entries: Vec<(RouteKey, Option<RouteEntry>)>,
    /// What the route-computer said beside it.
    pub cause: RouteCause,
}

/// A region's table.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its revision.
    pub revision: Revision,
    /// Its entries.
    pub entries: BTreeMap<RouteKey, RouteEntry>,
    /// When its owner was last heard.
    pub heard_at: Timestamp,
}

/// Everything that was heard, in the order in which it was.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Each region's table as it is.
    pub tables: BTreeMap<String, Table>,
    /// Changes of tables.
    pub changes: Vec<Change>,
    /// What edges applied; the reports of an edge that say nothing new are left out.
    pub applied: Vec<Applied>,
    /// When each edge last reported.
    pub reported_at: BTreeMap<String, Timestamp>,
    /// Suspicions.
    pub suspicions: Vec<Suspicion>,
}

impl Change {
    /// The health of `cluster`, if this change is of it.
    pub fn health(&self, cluster: &str) -> Option<&HealthEntry> {
        self.entries.iter().find_map(|(key, entry)| match (key, entry) {
            (RouteKey::Health(name, _), Some(RouteEntry::Health(health))) if name.as_str() == cluster => {
                Some(health)
            }
            _ => None,
        })
    }
}

impl Table {
    /// The health of `cluster`.
    pub fn health(&self, cluster: &str) -> Option<&HealthEntry> {
        self.entries.iter().find_map(|(key, entry)| match (key, entry) {
            (RouteKey::Health(name, _), RouteEntry::Health(health)) if name.as_str() == cluster => {
                Some(health)
            }
            _ => None,
        })
    }

    /// Where the service's requests go by default.
    pub fn tiers(&self) -> Option<&ActionTiers> {
        self.entries.iter().find_map(|(key, entry)| match (key, entry) {
            (RouteKey::Tiers(name), RouteEntry::Tiers(tiers)) if name.as_str() == SERVICE => {
                tiers.actions.first()
            }
            _ => None,
        })
    }

    /// What must change in this table to make its entries `later`.
    pub fn changes_to(&self, later: &BTreeMap<RouteKey, RouteEntry>) -> Vec<(RouteKey, Option<RouteEntry>)> {
        let set = later.iter().filter(|(key, entry)| self.entries.get(*key) != Some(*entry));
        let gone = self.entries.keys().filter(|key| !later.contains_key(*key));
        set.map(|(key, entry)| (key.clone(), Some(entry.clone())))
            .chain(gone.map(|key| (key.clone(), None)))
            .collect()
    }

    /// Whether `cluster` alone is in the first tier.
    pub fn prefers_only(&self, cluster: &str) -> bool {
        let first = self.tiers().and_then(|action| action.tiers.first());
        first.is_some_and(|tier| matches!(tier.shares.as_slice(), [(name, _)] if name.as_str() == cluster))
    }
}

impl Ledger {
    /// What an edge last said it serves.
    pub fn edge(&self, edge: &str) -> Option<&Applied> {
        self.applied.iter().rev().find(|applied| applied.edge.as_str() == edge)
    }

    /// The first of the changes published in `region` after `since` for which `is_it` holds.
    pub fn change_since(
        &self,
        region: &str,
        since: Timestamp,
        is_it: impl Fn(&Change) -> bool,
    ) -> Option<&Change> {
        self.changes
            .iter()
            .find(|change| change.region == region && change.cause.decided_at >= since && is_it(change))
    }

    /// When `edge` began to serve by this revision or a later one.
    pub fn applied_at(&self, edge: &str, epoch: Epoch, revision: Revision) -> Option<Timestamp> {
        self.applied
            .iter()
            .find(|applied| {
                applied.edge.as_str() == edge && (applied.epoch, applied.revision) >= (epoch, revision)
            })
            .map(|applied| applied.applied_at)
    }

    /// Whether `region`'s edge serves by its region's latest table.
    pub fn is_current(&self, region: &RegionPlan) -> bool {
        match (self.tables.get(region.name), self.edge(region.edge)) {
            (Some(table), Some(edge)) => (table.epoch, table.revision) == (edge.epoch, edge.revision),
            _ => false,
        }
    }

    /// Whether all is well: every region sees every endpoint up and serves from its own cluster alone, by every edge.
    pub fn is_well(&self) -> bool {
        let up = |table: &Table, cluster: &str| {
            table.health(cluster).is_some_and(|health| {
                health.verdict == Verdict::Up && health.endpoints.iter().all(|e| e.verdict == Verdict::Up)
            })
        };
        REGIONS.iter().all(|region| {
            self.is_current(region)
                && self.tables.get(region.name).is_some_and(|table| {
                    table.prefers_only(region.cluster) && REGIONS.iter().all(|other| up(table, other.cluster))
                })
        })
    }

    /// Whether all is well by what owners and edges have said since then.
    pub fn is_well_since(&self, since: Timestamp) -> bool {
        self.is_well()
            && REGIONS.iter().all(|region| {
                self.tables.get(region.name).is_some_and(|table| table.heard_at >= since)
                    && self.reported_at.get(region.edge).is_some_and(|at| *at >= since)
            })
    }

    /// The state of things in a few lines, for what a test says when it fails.
    pub fn summary(&self) -> String {
        let mut lines = Vec::new();
        for region in REGIONS {
            let Some(table) = self.tables.get(region.name) else {
                lines.push(format!("{}: no table", region.name));
                continue;
            };
            lines.push(format!("{}: epoch {} revision {}", region.name, table.epoch, table.revision));
            for other in REGIONS {
                let health = table.health(other.cluster);
                lines.push(format!(
                    "  {}: {:?}",
                    other.cluster,
                    health.map(|h| (
                        h.verdict,
                        &h.reason,
                        h.endpoints.iter().map(|e| e.verdict).collect::<Vec<_>>()
                    ))
                ));
            }
            lines.push(format!("  tiers: {:?}", table.tiers().map(|action| &action.tiers)));
            lines.push(match self.edge(region.edge) {
                Some(edge) => format!("  {}: epoch {} revision {}", region.edge, edge.epoch, edge.revision),
                None => format!("  {}: silent", region.edge),
            });
        }
        lines.join("\n")
    }
}
