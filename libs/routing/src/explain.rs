//! Why a service's requests go where they go.

use serde::{Deserialize, Serialize};
use tidegate_model::{ClusterName, RegionName, ServiceName, routes::ActionTiers, verdict::Verdict};

use crate::{
    atlas::{Atlas, ClusterId, LaneId, ServiceId},
    engine::Engine,
    health::Health,
    overrides,
    plan::Facts,
    proximity::Proximity,
};

/// Why a service's requests go where they go, in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The region.
    pub region: RegionName,
    /// The service.
    pub service: ServiceName,
    /// Who is shed first when nobody has room: 0 is the most important.
    pub priority: u8,
    /// The default action, then each route's.
    pub actions: Vec<ActionExplanation>,
}

/// Why the requests of one action go where they go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionExplanation {
    /// The entry of the route table, with its reason.
    pub tiers: ActionTiers,
    /// What each region asks for, in requests per second: as measured, and as shares follow it. Regions that ask for
    /// nothing are not listed. Actions with the same clusters are counted together.
    pub demand: Vec<(RegionName, u64, u64)>,
    /// Every candidate, in the order of preference.
    pub candidates: Vec<Candidate>,
}

/// One candidate of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its region.
    pub region: RegionName,
    /// How near it is.
    pub proximity: Proximity,
    /// Its verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// The regions that reach it.
    pub reached_from: Vec<RegionName>,
    /// What it can take, in requests per second.
    pub capacity: Option<u32>,
    /// What all services that use clusters of limited capacity send it, from all regions, in requests per second.
    pub load: u64,
    /// The part of its share that slow start allows, in thousandths.
    pub slow_start_permille: u16,
    /// The override that it stands under, if any.
    pub overridden: Option<String>,
    /// The tier that it is in, from 0; absent: in none.
    pub tier: Option<usize>,
    /// Its part of the requests, shed ones not counted, in thousandths; zero below the first tier.
    pub share_permille: u16,
}

impl Engine {
    pub(crate) fn explain_service(&self, atlas: &Atlas, service: ServiceId) -> Explanation {
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
    ) -> Candidate {
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
        Candidate {
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
