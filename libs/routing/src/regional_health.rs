//! Regional health: the probe states of an endpoint become each region's view of it, these become a verdict, and the
//! verdicts on its endpoints become a cluster's, with its reason.
//!
//! An endpoint passes in a region if at least half of the region's probers that count say so. One that reaches it proves
//! that it can be reached, and edges find out by themselves where it can't.
//! A region's verdict rests on its own probers. The other regions tell whether the endpoint is down or only the path to
//! it, and stand in where the region has no prober that counts.

use tidegate_model::{
    ClusterName, RegionName, Timestamp,
    fleet::{Address, Endpoint},
    health::CheckId,
    observation::{Failure, Target},
    routes::{self, HealthEntry},
    verdict::Verdict,
};

use crate::{
    probe_state::ProbeState,
    probers::{Assessment, ProberKey, Probers},
};

/// How many endpoints a reason names.
const ENDPOINTS_NAMED: usize = 2;

/// The health of one cluster by one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterHealth {
    endpoints: Vec<AssessedEndpoint>,
    /// The verdict of the region that the table is for.
    pub(crate) verdict: RegionalVerdict,
    /// The same as an entry of the route table.
    ///
    /// Its reason holds no counts of probes or probers and no times. So the entry changes only when the verdict on the
    /// cluster or on an endpoint does, or the first failure of an endpoint as the region's own prober saw it.
    pub(crate) entry: HealthEntry,
}

/// A region's verdict on an endpoint or a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegionalVerdict {
    pub(crate) verdict: Verdict,
    /// The verdict would be up without suppression: it answers, but flapped.
    pub(crate) suppressed: bool,
    /// When the verdict became up after another one. Known only while it is up.
    pub(crate) recovered_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct AssessedEndpoint {
    address: Address,
    health: EndpointHealth,
    /// What keeps it from passing, for the reason.
    problem: Option<String>,
    /// The problem is that it does not answer at all.
    unreachable: bool,
    /// When the last of the region's probers that suppress it ends that.
    suppressed_until: Option<Timestamp>,
}

/// The health of one endpoint in all regions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct EndpointHealth {
    /// In the order of the regions' names.
    regions: Vec<RegionalHealth>,
}

/// The health of one endpoint as one region's probers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RegionalHealth {
    region: RegionName,
    passes: bool,
    /// It would pass if suppressed probe states counted as passing.
    answers: bool,
    /// When it passed again after a failure.
    recovered_at: Option<Timestamp>,
}

impl ClusterHealth {
    /// The health that follows from the probe states. An endpoint that no prober can speak for keeps its health of
    /// `before`.
    pub(crate) fn assess(
        cluster: &ClusterName,
        check: CheckId,
        endpoints: &[Endpoint],
        probers: &Probers,
        region: &RegionName,
        before: Option<&ClusterHealth>,
    ) -> ClusterHealth {
        let endpoints: Vec<AssessedEndpoint> = endpoints
            .iter()
            .map(|endpoint| {
                let address = endpoint.address.clone();
                let target = Target { cluster: cluster.clone(), endpoint: address.clone(), check };
                match probers.assess(&target) {
                    Assessment::ProbeStates(states) => AssessedEndpoint {
                        health: EndpointHealth::of(&states),
                        problem: problem(&address, &states, region),
                        unreachable: is_unreachable(&states, region),
                        suppressed_until: relevant(&states, region)
                            .filter_map(|(_, state)| state.suppressed_until())
                            .max(),
                        address,
                    },
                    Assessment::OnlyDistrusted => AssessedEndpoint {
                        health: EndpointHealth::default(),
                        problem: Some(format!("{address} only probed by a prober that sees everything down")),
                        unreachable: false,
                        suppressed_until: None,
                        address,
                    },
                    Assessment::Absent => before
                        .and_then(|health| health.endpoints.iter().find(|known| known.address == address))
                        .cloned()
                        .unwrap_or(AssessedEndpoint {
                            address,
                            health: EndpointHealth::default(),
                            problem: None,
                            unreachable: false,
                            suppressed_until: None,
                        }),
                }
            })
            .collect();
        let verdicts: Vec<RegionalVerdict> =
            endpoints.iter().map(|endpoint| endpoint.health.verdict_in(region)).collect();
        let verdict = best_of(verdicts.iter().copied());
        let entry = HealthEntry {
            verdict: verdict.verdict,
            reason: reason(&endpoints, &verdicts, verdict, region),
            endpoints: endpoints
                .iter()
                .zip(&verdicts)
                .map(|(endpoint, RegionalVerdict { verdict, .. })| routes::EndpointHealth {
                    address: endpoint.address.clone(),
                    verdict: *verdict,
                    unreachable: endpoint.unreachable && matches!(verdict, Verdict::Down | Verdict::PathDown),
                })
                .collect(),
        };
        ClusterHealth { endpoints, verdict, entry }
    }

    /// The health of a cluster that is assumed to be up or down in every region.
    pub(crate) fn assumed(endpoints: &[Endpoint], region: &RegionName, is_up: bool) -> ClusterHealth {
        let regional =
            RegionalHealth { region: region.clone(), passes: is_up, answers: is_up, recovered_at: None };
        let health = EndpointHealth { regions: vec![regional] };
        let verdict = health.verdict_in(region);
        let verdicts = endpoints.iter().map(|endpoint| routes::EndpointHealth {
            address: endpoint.address.clone(),
            verdict: verdict.verdict,
            unreachable: !is_up,
        });
        let entry = HealthEntry {
            verdict: verdict.verdict,
            reason: "assumed".to_owned(),
            endpoints: verdicts.collect(),
        };
        let endpoints = endpoints.iter().map(|endpoint| AssessedEndpoint {
            address: endpoint.address.clone(),
            health: health.clone(),
            problem: None,
            unreachable: !is_up,
            suppressed_until: None,
        });
        ClusterHealth { endpoints: endpoints.collect(), verdict, entry }
    }

    /// When the first of its endpoints is no longer suppressed, if suppression alone keeps the cluster from being up. It may
    /// fail again before that.
    pub(crate) fn suppressed_until(&self) -> Option<Timestamp> {
        let endpoints = || self.endpoints.iter().filter_map(|endpoint| endpoint.suppressed_until);
        self.verdict.suppressed.then(|| endpoints().min()).flatten()
    }

    /// The verdict of `region`.
    pub(crate) fn verdict_in(&self, region: &RegionName) -> RegionalVerdict {
        best_of(self.endpoints.iter().map(|endpoint| endpoint.health.verdict_in(region)))
    }

    /// The times at which a region saw an endpoint recover.
    pub(crate) fn recoveries(&self) -> impl Iterator<Item = Timestamp> {
        let passing = self.endpoints.iter().flat_map(|endpoint| endpoint.health.passing());
        passing.filter_map(|regional| regional.recovered_at)
    }

    /// The regions that reach one of its endpoints, in the order of their names.
    pub(crate) fn reached_from(&self) -> Vec<RegionName> {
        let passing = self.endpoints.iter().flat_map(|endpoint| endpoint.health.passing());
        let mut regions: Vec<RegionName> = passing.map(|regional| regional.region.clone()).collect();
        regions.sort_unstable();
        regions.dedup();
        regions
    }
}

impl EndpointHealth {
    /// The health that follows from probe states in the order of the probers' keys.
    fn of(states: &[(&ProberKey, &ProbeState)]) -> EndpointHealth {
        let regions = states.chunk_by(|(a, _), (b, _)| a.region == b.region);
        EndpointHealth { regions: regions.map(RegionalHealth::of).collect() }
    }

    /// The verdict of `region`.
    fn verdict_in(&self, region: &RegionName) -> RegionalVerdict {
        let own = self.regions.binary_search_by(|regional| regional.region.cmp(region));
        let passes_somewhere = self.passing().next().is_some();
        match own.ok().map(|at| &self.regions[at]) {
            Some(RegionalHealth { passes: true, recovered_at, .. }) => RegionalVerdict::up(*recovered_at),
            Some(RegionalHealth { passes: false, answers, .. }) => RegionalVerdict {
                verdict: if passes_somewhere { Verdict::PathDown } else { Verdict::Down },
                suppressed: *answers,
                recovered_at: None,
            },
            None if passes_somewhere => {
                RegionalVerdict::up(self.passing().map(|regional| regional.recovered_at).min().flatten())
            }
            None if !self.regions.is_empty() => RegionalVerdict {
                verdict: Verdict::Down,
                suppressed: self.regions.iter().any(|regional| regional.answers),
                recovered_at: None,
            },
            None => RegionalVerdict::UNKNOWN,
        }
    }

    /// The regions in which it passes.
    fn passing(&self) -> impl Iterator<Item = &RegionalHealth> {
        self.regions.iter().filter(|regional| regional.passes)
    }
}

impl RegionalHealth {
    /// The health that follows from the probe states of one region's probers, at least one.
    fn of(states: &[(&ProberKey, &ProbeState)]) -> RegionalHealth {
        let mut passing: Vec<Option<Timestamp>> = Vec::new();
        let (mut suppressed, mut count) = (0, 0_usize);
        for (_, state) in states.iter().filter(|(_, state)| !missed_failure(state, states)) {
            count += 1;
            match state {
                ProbeState::Passing { since, flaps } => passing.push(flaps.map(|_| *since)),
                ProbeState::Suppressed { .. } => suppressed += 1,
                ProbeState::Failing { .. } | ProbeState::Undecided { .. } | ProbeState::Suspended { .. } => {}
            }
        }
        // It has passed since so many probers saw it pass.
        let needed = count.div_ceil(2);
        passing.sort_unstable();
        let passes = passing.len() >= needed;
        RegionalHealth {
            region: states[0].0.region.clone(),
            passes,
            answers: passing.len() + suppressed >= needed,
            recovered_at: if passes { passing[needed - 1] } else { None },
        }
    }
}

/// Whether a prober first probed the endpoint after another one had seen it fail. It knows nothing of that failure, and
/// would end the suppression or the slow start whenever a prober is started.
fn missed_failure(state: &ProbeState, states: &[(&ProberKey, &ProbeState)]) -> bool {
    let ProbeState::Passing { since: first_pass, flaps: None } = state else { return false };
    states.iter().any(|(_, other)| match other {
        ProbeState::Passing { flaps: Some(flaps), .. } | ProbeState::Suppressed { flaps, .. } => {
            flaps.failed_at <= *first_pass
        }
        ProbeState::Passing { flaps: None, .. }
        | ProbeState::Failing { .. }
        | ProbeState::Undecided { .. }
        | ProbeState::Suspended { .. } => false,
    })
}

impl RegionalVerdict {
    /// The verdict on what no prober has reported on.
    pub(crate) const UNKNOWN: RegionalVerdict =
        RegionalVerdict { verdict: Verdict::Unknown, suppressed: false, recovered_at: None };

    fn up(recovered_at: Option<Timestamp>) -> RegionalVerdict {
        RegionalVerdict { verdict: Verdict::Up, suppressed: false, recovered_at }
    }

    fn better_of(self, other: RegionalVerdict) -> RegionalVerdict {
        let rank = |verdict: Verdict| match verdict {
            Verdict::Up => 0,
            Verdict::Unknown => 1,
            Verdict::PathDown => 2,
            Verdict::Down => 3,
        };
        let best = if rank(other.verdict) < rank(self.verdict) { other } else { self };
        match best.verdict {
            // The cluster is up since its first endpoint was.
            Verdict::Up if self.verdict == other.verdict => {
                RegionalVerdict { recovered_at: self.recovered_at.min(other.recovered_at), ..best }
            }
            Verdict::Up | Verdict::Unknown => best,
            Verdict::PathDown | Verdict::Down => {
                RegionalVerdict { suppressed: self.suppressed || other.suppressed, ..best }
            }
        }
    }
}

/// A region's verdict on a cluster, from its verdicts on the endpoints.
fn best_of(endpoints: impl Iterator<Item = RegionalVerdict>) -> RegionalVerdict {
    endpoints.reduce(RegionalVerdict::better_of).unwrap_or(RegionalVerdict::UNKNOWN)
}

/// The probe states that explain a verdict of `region`: those of its own probers if it has any.
fn relevant<'a>(
    states: &'a [(&'a ProberKey, &'a ProbeState)],
    region: &'a RegionName,
) -> impl Iterator<Item = &'a (&'a ProberKey, &'a ProbeState)> {
    let has_own = states.iter().any(|(key, _)| key.region == *region);
    states.iter().filter(move |(key, _)| !has_own || key.region == *region)
}

/// What keeps an endpoint from passing, by the first prober that says so.
fn problem(address: &Address, states: &[(&ProberKey, &ProbeState)], region: &RegionName) -> Option<String> {
    relevant(states, region).find_map(|(ProberKey { region, name }, state)| match state {
        ProbeState::Failing { failure, .. } => Some(format!("{address} {failure} ({name} in {region})")),
        ProbeState::Suppressed { failure, .. } => Some(format!(
            "{address} passes again after {failure}, but flaps and is suppressed ({name} in {region})"
        )),
        ProbeState::Passing { .. } | ProbeState::Undecided { .. } | ProbeState::Suspended { .. } => None,
    })
}

/// Whether all probers that count say that an endpoint does not answer at all.
fn is_unreachable(states: &[(&ProberKey, &ProbeState)], region: &RegionName) -> bool {
    relevant(states, region).all(|(_, state)| match state {
        ProbeState::Failing { failure, .. } => match failure {
            Failure::ConnectRefused
            | Failure::ConnectTimeout
            | Failure::ConnectError
            | Failure::Reset
            | Failure::NoResponse => true,
            Failure::Tls | Failure::Status(_) | Failure::BadResponse => false,
        },
        ProbeState::Suppressed { .. }
        | ProbeState::Passing { .. }
        | ProbeState::Undecided { .. }
        | ProbeState::Suspended { .. } => false,
    })
}

fn reason(
    endpoints: &[AssessedEndpoint],
    verdicts: &[RegionalVerdict],
    verdict: RegionalVerdict,
    region: &RegionName,
) -> String {
    let is_up = |verdict: &RegionalVerdict| verdict.verdict == Verdict::Up;
    let passing = verdicts.iter().filter(|verdict| is_up(verdict)).count();
    let problems: Vec<&str> = endpoints
        .iter()
        .zip(verdicts)
        .filter(|(_, verdict)| !is_up(verdict))
        .filter_map(|(endpoint, _)| endpoint.problem.as_deref())
        .collect();
    if verdict.verdict == Verdict::Unknown && problems.is_empty() {
        return "no prober has reported on it yet".to_owned();
    }
    let mut text = match verdict.verdict {
        Verdict::PathDown => format!("not reached from {region}, and other regions last saw it pass: "),
        Verdict::Up | Verdict::Down | Verdict::Unknown => String::new(),
    };
    text += &format!("{passing} of {} endpoints pass", endpoints.len());
    if !problems.is_empty() {
        text += ": ";
        text += &problems[..problems.len().min(ENDPOINTS_NAMED)].join("; ");
        if problems.len() > ENDPOINTS_NAMED {
            text += &format!("; and {} more", problems.len() - ENDPOINTS_NAMED);
        }
    }
    text
}

#[cfg(test)]
mod tests;
