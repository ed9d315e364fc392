//! The explanation of where a service's requests go.

use tidegate_model::{routes::ActionTiers, verdict::Verdict};

use super::Engine;
use crate::{
    explanation::{ActionExplanation, CandidateExplanation, Explanation, OverrideExplanation},
    fleet_index::{ClusterId, DemandClassId, FleetIndex, IndexedService, ServiceId},
    overrides,
    plan::CandidateState,
    regional_health::ClusterHealth,
};

impl Engine {
    pub(super) fn explain_service(&self, index: &FleetIndex, service: ServiceId) -> Explanation {
        let IndexedService { name, priority, .. } = index.service(service);
        let class_of = |action: usize| index.service(service).class(action);
        let actions = self.tiers_of(name).iter().enumerate();
        let demand = |class: DemandClassId| {
            let by_region = index.regions().filter_map(|(region, name)| {
                let (measured, settled) = self.demand_of(class, region);
                (measured > 0 || settled > 0).then(|| (name.clone(), measured / 1000, settled / 1000))
            });
            by_region.collect()
        };
        Explanation {
            region: index.region(index.home).clone(),
            service: name.clone(),
            priority: *priority,
            actions: actions
                .map(|(action, tiers)| ActionExplanation {
                    tiers: tiers.clone(),
                    demand: demand(class_of(action)),
                    candidates: self
                        .candidates(index, class_of(action))
                        .into_iter()
                        .map(|candidate| self.explain_candidate(index, service, tiers, candidate))
                        .collect(),
                })
                .collect(),
        }
    }

    fn explain_candidate(
        &self,
        index: &FleetIndex,
        service: ServiceId,
        tiers: &ActionTiers,
        (id, state): (ClusterId, CandidateState),
    ) -> CandidateExplanation {
        let cluster = index.cluster(id);
        let region = index.region(cluster.region);
        let health = self.health_of(&cluster.name, index.service(service).check);
        let in_tier = |tier: &tidegate_model::routes::Tier| {
            let share = tier.shares.iter().find(|(name, _)| *name == cluster.name)?.1;
            let whole: u32 = tier.shares.iter().map(|(_, share)| u32::from(*share)).sum();
            // At most 1000, since a share is at most the whole.
            Some((u32::from(share) * 1000 / whole.max(1)) as u16)
        };
        let position = tiers.tiers.iter().enumerate().find_map(|(at, tier)| Some((at, in_tier(tier)?)));
        CandidateExplanation {
            cluster: cluster.name.clone(),
            region: region.clone(),
            proximity: index.proximity(index.home, cluster.region),
            verdict: state.health.verdict,
            reason: health.map(|health| health.entry.reason.clone()).unwrap_or_default(),
            suppressed_until: health.and_then(ClusterHealth::suppressed_until),
            reached_from: health.map(ClusterHealth::reached_from).unwrap_or_default(),
            capacity: cluster.capacity,
            load: self.load_of(id) / 1000,
            slow_start_permille: state.ramp,
            overrides: self.explain_overrides(index, service, id, state),
            tier: position.map(|(tier, _)| tier),
            share_permille: position.filter(|(tier, _)| *tier == 0).map_or(0, |(_, share)| share),
        }
    }

    /// The overrides that are about a candidate: the forced route to it, or to another cluster, and all drains of it.
    fn explain_overrides(
        &self,
        index: &FleetIndex,
        service: ServiceId,
        id: ClusterId,
        state: CandidateState,
    ) -> Vec<OverrideExplanation> {
        let cluster = index.cluster(id);
        let force = self.overrides().forced_route(&index.service(service).name);
        let own = force.filter(|(forced, _)| *forced == cluster.name).map(|(_, item)| item);
        let mut all = Vec::new();
        if let Some(force) = own {
            let is_out = matches!(state.health.verdict, Verdict::Down | Verdict::PathDown);
            all.push(OverrideExplanation {
                text: overrides::describe(force),
                overruled: is_out.then(|| format!("{} is {}", cluster.name, state.health.verdict)),
            });
        }
        for drain in self.overrides().drains_of(&cluster.name, index.region(cluster.region)) {
            all.push(OverrideExplanation {
                text: overrides::describe(drain),
                overruled: own.map(|_| "a forced route takes precedence over a drain".to_owned()),
            });
        }
        all.sort_by_key(|item| item.overruled.is_some());
        all
    }
}
