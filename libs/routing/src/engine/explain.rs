//! The explanation of where a service's requests go.

use tidegate_model::routes::ActionTiers;

use super::Engine;
use crate::{
    atlas::{Atlas, ClusterId, LaneId, ServiceId},
    explanation::{ActionExplanation, CandidateExplanation, Explanation},
    health::Health,
    overrides,
    plan::Facts,
};

impl Engine {
    pub(super) fn explain_service(&self, atlas: &Atlas, service: ServiceId) -> Explanation {
        let facts = atlas.service(service);
        let actions = self.tiers_of(&facts.name).iter().enumerate();
        let demand = |lane: LaneId| {
            let by_region = atlas.regions().filter_map(|(region, name)| {
                let figures = self.demand_of(lane, region);
                (figures != (0, 0)).then(|| (name.clone(), figures.0 / 1000, figures.1 / 1000))
            });
            by_region.collect()
        };
        Explanation {
            region: atlas.region(atlas.home).clone(),
            service: facts.name.clone(),
            priority: facts.priority,
            actions: actions
                .map(|(action, tiers)| ActionExplanation {
                    tiers: tiers.clone(),
                    demand: demand(facts.lane(action)),
                    candidates: self
                        .candidates(atlas, facts.lane(action))
                        .into_iter()
                        .map(|(cluster, facts)| self.candidate(atlas, service, tiers, (cluster, facts)))
                        .collect(),
                })
                .collect(),
        }
    }

    fn candidate(
        &self,
        atlas: &Atlas,
        service: ServiceId,
        tiers: &ActionTiers,
        (cluster, facts): (ClusterId, Facts),
    ) -> CandidateExplanation {
        let cluster_facts = atlas.cluster(cluster);
        let region = atlas.region(cluster_facts.region);
        let health = self.health_of(&cluster_facts.name, atlas.service(service).check);
        let in_tier = |tier: &tidegate_model::routes::Tier| {
            let share = tier.shares.iter().find(|(name, _)| *name == cluster_facts.name)?.1;
            let whole: u32 = tier.shares.iter().map(|(_, share)| u32::from(*share)).sum();
            // A part of a whole in thousandths is at most 1000.
            Some((u32::from(share) * 1000 / whole.max(1)) as u16)
        };
        let place = tiers.tiers.iter().enumerate().find_map(|(at, tier)| Some((at, in_tier(tier)?)));
        let force = self.overrides().force(&atlas.service(service).name);
        let overridden = force
            .filter(|(forced, _)| *forced == cluster_facts.name)
            .map(|(_, item)| item)
            .or_else(|| self.overrides().drain(&cluster_facts.name, region));
        CandidateExplanation {
            cluster: cluster_facts.name.clone(),
            region: region.clone(),
            proximity: atlas.proximity(atlas.home, cluster_facts.region),
            verdict: facts.standing.verdict,
            reason: health.map(|health| health.entry.reason.clone()).unwrap_or_default(),
            reached_from: health.map(Health::reached_from).unwrap_or_default(),
            capacity: cluster_facts.capacity,
            load: self.load_of(cluster) / 1000,
            slow_start_permille: facts.ramp,
            overridden: overridden.map(overrides::sentence),
            tier: place.map(|(tier, _)| tier),
            share_permille: place.filter(|(tier, _)| *tier == 0).map_or(0, |(_, share)| share),
        }
    }
}
