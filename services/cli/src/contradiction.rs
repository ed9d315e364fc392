//! What speaks against an override: others that contradict it, and its own effect.

use std::collections::BTreeSet;

use tidegate_model::{
    ClusterName, EdgeName, ServiceName, Timestamp,
    fleet::{Edge, Fleet},
    overrides::{Override, OverrideKind},
};

use crate::effect::{Effects, percent, shares};

/// What an operator has to know before an override is created.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contradictions {
    /// Reasons for which it would not do what it says. Each needs confirmation.
    pub objections: Vec<String>,
    /// What is worth knowing besides.
    pub notes: Vec<String>,
    /// The forced routes to clusters that it drains: already objections.
    forced: BTreeSet<(ServiceName, ClusterName)>,
}

impl Contradictions {
    /// What follows from the other overrides that are in force at `now`.
    pub fn with_overrides<'a>(
        new: &OverrideKind,
        others: impl IntoIterator<Item = &'a Override>,
        fleet: &Fleet,
        now: Timestamp,
    ) -> Contradictions {
        let in_force =
            |item: &&Override| item.expires_at.is_none_or(|end| end > now) && item.kind.key() != new.key();
        let others: Vec<&Override> = others.into_iter().collect();
        let mut found = Contradictions::default();
        for other in others.iter().copied().filter(in_force) {
            found.objections.extend(contradiction(new, other, fleet));
            if let OverrideKind::ForceRoute { service, cluster } = &other.kind {
                found.forced.insert((service.clone(), cluster.clone()));
            }
        }
        let is_in_force = |item: &&&Override| item.expires_at.is_none_or(|end| end > now);
        if let Some(same) = others.iter().filter(is_in_force).find(|item| item.kind.key() == new.key()) {
            found.notes.push(format!("it replaces: {}", describe(same)));
        }
        match new {
            OverrideKind::ForceRoute { service, cluster } => {
                let listed = fleet.services.get(service).is_some_and(|service| {
                    service.actions().any(|action| action.clusters.clusters().contains(&cluster))
                });
                if !listed {
                    found.notes.push(format!(
                        "{cluster} is not among the clusters of {service} in the fleet file: it is probed for it from now on"
                    ));
                }
            }
            OverrideKind::DrainEdge(edge) => {
                let drained: Vec<&OverrideKind> =
                    others.iter().filter(|item| in_force(item)).map(|item| &item.kind).collect();
                last_edge(edge, &drained, &mut found, fleet);
            }
            OverrideKind::DrainCluster(_) | OverrideKind::EvacuateRegion(_) => {}
        }
        found
    }

    /// Adds what follows from its effect.
    pub fn add_effect(&mut self, new: &OverrideKind, effects: &Effects, fleet: &Fleet) {
        let mut moves = false;
        for (region, action) in effects.actions() {
            let (Some(before), Some(after)) = (&action.before, &action.after) else { continue };
            moves |= before.shares != after.shares;
            let route = action.route.as_ref().map(|route| format!(" route ({route})")).unwrap_or_default();
            let service = format!("{}{route}", action.service);
            let gets = |cluster: &ClusterName| {
                after.shares.iter().any(|(name, share)| name == cluster && *share > 0)
            };
            match new {
                OverrideKind::ForceRoute { service: forced, cluster } if *forced == action.service => {
                    if !gets(cluster) || after.fail_open {
                        self.objections.push(format!(
                            "in {region}, {service} would go to {}, and not to {cluster} alone: {}",
                            shares(after),
                            action.reason
                        ));
                    }
                }
                OverrideKind::DrainCluster(_) | OverrideKind::EvacuateRegion(_) => {
                    let drained =
                        after.shares.iter().map(|(name, _)| name).filter(|name| drains(new, name, fleet));
                    let is_forced =
                        |name: &ClusterName| self.forced.contains(&(action.service.clone(), name.clone()));
                    let kept: Vec<&str> = drained
                        .filter(|name| gets(name) && !is_forced(name))
                        .map(ClusterName::as_str)
                        .collect();
                    if !kept.is_empty() {
                        self.objections.push(format!(
                            "in {region}, {service} would go on to {}, since nothing else may serve it: {}",
                            kept.join(", "),
                            action.reason
                        ));
                    }
                }
                OverrideKind::ForceRoute { .. } | OverrideKind::DrainEdge(_) => {}
            }
            if after.shed_permille > before.shed_permille {
                self.notes.push(format!(
                    "in {region}, {} % of the requests of {service} would be shed for lack of capacity (now {} %)",
                    percent(after.shed_permille),
                    percent(before.shed_permille)
                ));
            }
        }
        for (region, why) in &effects.unknown {
            self.notes.push(format!("the effect on {region} could not be computed: {why}"));
        }
        if !moves
            && effects.unknown.is_empty()
            && !effects.by_region.is_empty()
            && !matches!(new, OverrideKind::DrainEdge(_))
        {
            self.notes.push("no requests would move".to_owned());
        }
    }
}

/// Why two overrides contradict each other, and what would be right.
fn contradiction(new: &OverrideKind, other: &Override, fleet: &Fleet) -> Option<String> {
    match (new, &other.kind) {
        (
            OverrideKind::DrainCluster(_) | OverrideKind::EvacuateRegion(_),
            OverrideKind::ForceRoute { service, cluster },
        ) if drains(new, cluster, fleet) => Some(format!(
            "{service} would go on to {cluster}, since a forced route takes precedence over a drain: {} (tidegate unforce {service})",
            describe(other)
        )),
        (OverrideKind::ForceRoute { service, cluster }, drain) if drains(drain, cluster, fleet) => {
            Some(format!(
                "{service} would go to {cluster} although it is drained, since a forced route takes precedence: {} ({})",
                describe(other),
                match drain {
                    OverrideKind::EvacuateRegion(region) => format!("tidegate undrain region {region}"),
                    OverrideKind::DrainCluster(_)
                    | OverrideKind::DrainEdge(_)
                    | OverrideKind::ForceRoute { .. } => {
                        format!("tidegate undrain cluster {cluster}")
                    }
                }
            ))
        }
        (_, _) => None,
    }
}

/// Whether an override drains a cluster.
fn drains(kind: &OverrideKind, cluster: &ClusterName, fleet: &Fleet) -> bool {
    match kind {
        OverrideKind::DrainCluster(name) => name == cluster,
        OverrideKind::EvacuateRegion(region) => {
            fleet.clusters.get(cluster).is_some_and(|cluster| cluster.region == *region)
        }
        OverrideKind::DrainEdge(_) | OverrideKind::ForceRoute { .. } => false,
    }
}

/// What follows from a drain of an edge if it is the last one of its region, or of all, that is not drained.
fn last_edge(edge: &EdgeName, others: &[&OverrideKind], found: &mut Contradictions, fleet: &Fleet) {
    let Some(Edge { region, .. }) = fleet.edges.get(edge) else { return };
    let left: Vec<&Edge> = fleet
        .edges
        .iter()
        .filter(|(name, _)| *name != edge && !others.contains(&&OverrideKind::DrainEdge((*name).clone())))
        .map(|(_, other)| other)
        .collect();
    if left.is_empty() {
        found
            .objections
            .push(format!("{edge} is the last edge that is not drained: balancers would find none"));
    } else if left.iter().all(|other| other.region != *region) {
        found.notes.push(format!("{edge} is the last edge of {region} that is not drained"));
    }
}

fn describe(item: &Override) -> String {
    match item.reason.as_str() {
        "" => format!("{} by {}", item.kind, item.author),
        reason => format!("{} by {}: {reason}", item.kind, item.author),
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::event::Destination;
    use tidegate_routing::{ActionEffect, Effect, EffectTotals};

    use super::*;

    const NOW: Timestamp = Timestamp(100);
    const FLEET: &str = "
regions: { us: {}, eu: {} }
clusters:
  us-1: { region: us, endpoints: [\"127.0.0.1:1\"] }
  eu-1: { region: eu, endpoints: [\"127.0.0.1:2\"] }
edges:
  e-1: { region: us, listeners: [web] }
  e-2: { region: us, listeners: [web] }
  e-3: { region: eu, listeners: [web] }
listeners: { web: { bind: \"127.0.0.1:80\", protocol: http } }
services: { shop: { hosts: [\"*\"], clusters: [us-1, eu-1] } }
";

    fn fleet() -> Fleet {
        Fleet::parse(FLEET, "fleet").unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn drain(cluster: &str) -> OverrideKind {
        OverrideKind::DrainCluster(cluster.parse().unwrap())
    }

    fn force(cluster: &str) -> OverrideKind {
        OverrideKind::ForceRoute { service: "shop".parse().unwrap(), cluster: cluster.parse().unwrap() }
    }

    fn by_ann(kind: OverrideKind) -> Override {
        let (author, reason) = ("ann".to_owned(), "a test".to_owned());
        Override { kind, author, reason, created_at: Timestamp(1), expires_at: None }
    }

    fn found(new: &OverrideKind, others: &[Override]) -> Contradictions {
        Contradictions::with_overrides(new, others, &fleet(), NOW)
    }

    /// The effect on the requests of the service from region us.
    fn effect(before: &[(&str, u16)], after: &[(&str, u16)]) -> Effects {
        let destination = |shares: &[(&str, u16)]| Destination {
            shares: shares.iter().map(|(name, share)| (name.parse().unwrap(), *share)).collect(),
            ..Destination::default()
        };
        let action = ActionEffect {
            service: "shop".parse().unwrap(),
            route: None,
            demand_before: 0,
            demand_after: 0,
            before: Some(destination(before)),
            after: Some(destination(after)),
            moved_permille: 0,
            reason: "the reason".to_owned(),
        };
        let effect = Effect {
            region: "us".parse().unwrap(),
            actions: vec![action],
            more_actions: 0,
            clusters: Vec::new(),
            more_clusters: 0,
            totals: EffectTotals::default(),
            assumed: Vec::new(),
        };
        Effects { by_region: [("us".parse().unwrap(), effect)].into(), ..Effects::default() }
    }

    #[test]
    fn a_drain_of_what_a_service_is_forced_to_contradicts_it_and_the_other_way_round() {
        let region = OverrideKind::EvacuateRegion("us".parse().unwrap());
        for new in [drain("us-1"), region.clone()] {
            let found = found(&new, &[by_ann(force("us-1"))]);
            let [objection] = found.objections.as_slice() else { panic!("{found:?}") };
            assert!(
                objection.contains("shop would go on to us-1") && objection.contains("ann: a test"),
                "{objection}"
            );
            assert!(objection.contains("tidegate unforce shop"), "{objection}");
        }
        for (other, undo) in [(drain("us-1"), "undrain cluster us-1"), (region, "undrain region us")] {
            let found = found(&force("us-1"), &[by_ann(other)]);
            assert!(found.objections[0].contains(undo), "{found:?}");
        }
    }

    #[test]
    fn what_is_elsewhere_or_has_expired_contradicts_nothing() {
        assert_eq!(found(&drain("eu-1"), &[by_ann(force("us-1"))]).objections, Vec::<String>::new());
        assert_eq!(found(&force("us-1"), &[by_ann(drain("eu-1"))]).objections, Vec::<String>::new());
        let expired = Override { expires_at: Some(NOW), ..by_ann(force("us-1")) };
        assert_eq!(found(&drain("us-1"), &[expired]).objections, Vec::<String>::new());
    }

    #[test]
    fn a_forced_route_that_replaces_another_is_noted() {
        let found = found(&force("eu-1"), &[by_ann(force("us-1"))]);
        assert!(
            found.objections.is_empty() && found.notes[0].contains("shop forced to us-1 by ann"),
            "{found:?}"
        );
    }

    #[test]
    fn the_last_edge_of_a_region_is_noted_and_the_last_of_all_needs_confirmation() {
        let edge = |name: &str| OverrideKind::DrainEdge(name.parse().unwrap());
        assert_eq!(found(&edge("e-1"), &[]), Contradictions::default());
        let of_region = found(&edge("e-1"), &[by_ann(edge("e-2"))]);
        assert!(of_region.objections.is_empty(), "{of_region:?}");
        assert_eq!(of_region.notes, ["e-1 is the last edge of us that is not drained"]);
        let of_all = found(&edge("e-1"), &[by_ann(edge("e-2")), by_ann(edge("e-3"))]);
        assert!(of_all.objections[0].contains("the last edge that is not drained"), "{of_all:?}");
    }

    #[test]
    fn a_drain_that_leaves_nothing_else_is_an_objection_once() {
        let kept = effect(&[("us-1", 1000)], &[("us-1", 1000)]);
        let mut alone = found(&drain("us-1"), &[]);
        alone.add_effect(&drain("us-1"), &kept, &fleet());
        assert!(alone.objections[0].contains("nothing else may serve it: the reason"), "{alone:?}");

        let mut forced = found(&drain("us-1"), &[by_ann(force("us-1"))]);
        forced.add_effect(&drain("us-1"), &kept, &fleet());
        assert_eq!(forced.objections.len(), 1, "{forced:?}");

        let mut moved = found(&drain("us-1"), &[]);
        moved.add_effect(&drain("us-1"), &effect(&[("us-1", 1000)], &[("eu-1", 1000)]), &fleet());
        assert_eq!(moved, Contradictions::default());
    }

    #[test]
    fn a_forced_route_to_what_is_down_is_an_objection() {
        let mut found = found(&force("us-1"), &[]);
        found.add_effect(&force("us-1"), &effect(&[("eu-1", 1000)], &[("eu-1", 1000)]), &fleet());
        assert!(
            found.objections[0].contains("shop would go to eu-1 100 %, and not to us-1 alone"),
            "{found:?}"
        );
    }
}
