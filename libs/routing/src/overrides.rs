//! The overrides in force.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{
    ClusterName, EdgeName, RegionName, ServiceName, Timestamp,
    overrides::{Override, OverrideKind, Withdrawal},
};

/// Overrides by their subject.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Overrides {
    clusters: BTreeMap<ClusterName, Override>,
    regions: BTreeMap<RegionName, Override>,
    edges: BTreeMap<EdgeName, Override>,
    forces: BTreeMap<ServiceName, (ClusterName, Override)>,
}

/// The difference between two sets of overrides.
#[derive(Debug, Default)]
pub(crate) struct OverrideChanges {
    pub(crate) clusters: BTreeSet<ClusterName>,
    pub(crate) regions: BTreeSet<RegionName>,
    pub(crate) edges: BTreeSet<EdgeName>,
    pub(crate) services: BTreeSet<ServiceName>,
    /// One sentence for each difference.
    pub(crate) sentences: Vec<String>,
}

impl Overrides {
    /// The overrides of `all` that are in force at `now`. Their keys don't matter: each override names its subject.
    pub(crate) fn in_force(all: impl IntoIterator<Item = Override>, now: Timestamp) -> Overrides {
        let mut overrides = Overrides::default();
        for item in all {
            if item.expires_at.is_some_and(|end| end <= now) {
                continue;
            }
            match item.kind.clone() {
                OverrideKind::DrainCluster(name) => keep_latest(&mut overrides.clusters, name, item),
                OverrideKind::EvacuateRegion(name) => keep_latest(&mut overrides.regions, name, item),
                OverrideKind::DrainEdge(name) => keep_latest(&mut overrides.edges, name, item),
                OverrideKind::ForceRoute { service, cluster } => {
                    let before = overrides.forces.get(&service);
                    if before.is_none_or(|(_, before)| before.created_at <= item.created_at) {
                        overrides.forces.insert(service, (cluster, item));
                    }
                }
            }
        }
        overrides
    }

    /// The overrides that are still in force at `now`.
    pub(crate) fn without_expired(&self, now: Timestamp) -> Overrides {
        Overrides::in_force(self.all().cloned(), now)
    }

    /// These overrides with others in place of those of the same kind and object, and without those that are withdrawn.
    pub(crate) fn replaced(
        &self,
        added: &[Override],
        withdrawn: &[OverrideKind],
        now: Timestamp,
    ) -> Overrides {
        let replaced: BTreeSet<String> =
            added.iter().map(|item| item.kind.key()).chain(withdrawn.iter().map(OverrideKind::key)).collect();
        let kept = self.all().filter(|item| !replaced.contains(&item.kind.key()));
        Overrides::in_force(kept.chain(added).cloned(), now)
    }

    /// The next time at which an override ends.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.all().filter_map(|item| item.expires_at).min()
    }

    /// The override that drains a cluster of `region`, if any.
    pub(crate) fn drain_of(&self, cluster: &ClusterName, region: &RegionName) -> Option<&Override> {
        self.drains_of(cluster, region).next()
    }

    /// All overrides that drain a cluster of `region`.
    pub(crate) fn drains_of(
        &self,
        cluster: &ClusterName,
        region: &RegionName,
    ) -> impl Iterator<Item = &Override> {
        self.clusters.get(cluster).into_iter().chain(self.regions.get(region))
    }

    /// The override that drains an edge, if any.
    pub(crate) fn edge_drain_of(&self, edge: &EdgeName) -> Option<&Override> {
        self.edges.get(edge)
    }

    /// The cluster that a service's requests are forced to, if any.
    pub(crate) fn forced_route(&self, service: &ServiceName) -> Option<&(ClusterName, Override)> {
        self.forces.get(service)
    }

    /// The changes from these overrides to `after`. The withdrawals say who ended one.
    pub(crate) fn changes_to(
        &self,
        after: &Overrides,
        withdrawn: &BTreeMap<String, Withdrawal>,
    ) -> OverrideChanges {
        let end = |item: &Override| describe_end(item, withdrawn);
        let mut sentences = Vec::new();
        OverrideChanges {
            clusters: differing(&self.clusters, &after.clusters, |item| item, end, &mut sentences),
            regions: differing(&self.regions, &after.regions, |item| item, end, &mut sentences),
            edges: differing(&self.edges, &after.edges, |item| item, end, &mut sentences),
            services: differing(&self.forces, &after.forces, |(_, item)| item, end, &mut sentences),
            sentences,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Override> {
        let drains = self.clusters.values().chain(self.regions.values()).chain(self.edges.values());
        drains.chain(self.forces.values().map(|(_, item)| item))
    }
}

/// An override in one sentence: what, by whom, why.
pub(crate) fn describe(item: &Override) -> String {
    match item.reason.as_str() {
        "" => format!("{} by {}", item.kind, item.author),
        reason => format!("{} by {}: {reason}", item.kind, item.author),
    }
}

/// The end of an override in one sentence: who withdrew it and why, or that its time was over.
fn describe_end(item: &Override, withdrawn: &BTreeMap<String, Withdrawal>) -> String {
    let withdrawal = withdrawn.get(&item.kind.key()).filter(|end| end.withdrawn_at >= item.created_at);
    match withdrawal {
        Some(Withdrawal { author, reason, .. }) if !author.is_empty() => {
            let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            format!("end of {}, withdrawn by {author}{why}", describe(item))
        }
        Some(_) | None => format!("end of {}", describe(item)),
    }
}

fn keep_latest<K: Ord>(into: &mut BTreeMap<K, Override>, key: K, item: Override) {
    if into.get(&key).is_none_or(|before| before.created_at <= item.created_at) {
        into.insert(key, item);
    }
}

fn differing<K: Ord + Clone, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    item: impl Fn(&V) -> &Override,
    end: impl Fn(&Override) -> String,
    sentences: &mut Vec<String>,
) -> BTreeSet<K> {
    let keys: BTreeSet<&K> = before.keys().chain(after.keys()).collect();
    let mut differ = BTreeSet::new();
    for key in keys {
        match (before.get(key), after.get(key)) {
            (Some(before), None) => sentences.push(end(item(before))),
            (before, Some(after)) if before != Some(after) => sentences.push(describe(item(after))),
            (_, _) => continue,
        }
        differ.insert(key.clone());
    }
    differ
}
