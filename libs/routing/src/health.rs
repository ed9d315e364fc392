//! A cluster's health for one check: its verdict and why, as an entry of the route table.
//!
//! The reason holds no counts of probes or probers and no times: the entry changes only when the verdict of the cluster
//! or of an endpoint does, or the way in which an endpoint fails as the region's own prober saw it begin.

use tidegate_model::{
    ClusterName, RegionName, Timestamp,
    fleet::{Address, Endpoint},
    health::CheckId,
    observation::{Failure, Target},
    routes::{self, HealthEntry},
    verdict::Verdict,
};

use crate::{
    evidence::{Evidence, ProberKey, Testimony},
    view::{self, Standing, Views},
    word::Judgement,
};

/// How many endpoints a reason speaks of one by one.
const ENDPOINTS_NAMED: usize = 2;

/// The health of one cluster for one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    endpoints: Vec<Judged>,
    /// What this region makes of it.
    pub(crate) standing: Standing,
    /// The same as an entry of the table.
    pub(crate) entry: HealthEntry,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Judged {
    address: Address,
    views: Views,
    /// What speaks against it.
    note: Option<String>,
    /// Whether that is that it does not answer at all.
    silent: bool,
}

impl Health {
    /// The health that follows from the evidence; where nobody who can be heard has a word on an endpoint, what was
    /// known `before` stays.
    pub(crate) fn look(
        cluster: &ClusterName,
        check: CheckId,
        endpoints: &[Endpoint],
        evidence: &Evidence,
        region: &RegionName,
        before: Option<&Health>,
    ) -> Health {
        let endpoints: Vec<Judged> = endpoints
            .iter()
            .map(|endpoint| {
                let address = endpoint.address.clone();
                let target = Target { cluster: cluster.clone(), endpoint: address.clone(), check };
                match evidence.on(&target) {
                    Testimony::Words(words) => Judged {
                        views: Views::of(&words),
                        note: note(&address, &words, region),
                        silent: is_silent(&words, region),
                        address,
                    },
                    Testimony::Doubted => Judged {
                        views: Views::default(),
                        note: Some(format!("{address} only judged by a prober that sees everything down")),
                        silent: false,
                        address,
                    },
                    Testimony::Silence => before
                        .and_then(|health| health.endpoints.iter().find(|known| known.address == address))
                        .cloned()
                        .unwrap_or(Judged { address, views: Views::default(), note: None, silent: false }),
                }
            })
            .collect();
        let standings: Vec<Standing> = endpoints.iter().map(|endpoint| endpoint.views.from(region)).collect();
        let standing = view::cluster(standings.iter().copied());
        let entry = HealthEntry {
            verdict: standing.verdict,
            reason: reason(&endpoints, &standings, standing, region),
            endpoints: endpoints
                .iter()
                .zip(verdicts(&standings))
                .map(|(endpoint, verdict)| routes::EndpointHealth {
                    address: endpoint.address.clone(),
                    verdict,
                    silent: endpoint.silent && matches!(verdict, Verdict::Down | Verdict::PathDown),
                })
                .collect(),
        };
        Health { endpoints, standing, entry }
    }

    /// What `region` makes of it.
    pub(crate) fn from(&self, region: &RegionName) -> Standing {
        view::cluster(self.endpoints.iter().map(|endpoint| endpoint.views.from(region)))
    }

    /// All times at which a region saw an endpoint return.
    pub(crate) fn recoveries(&self) -> impl Iterator<Item = Timestamp> {
        self.endpoints.iter().flat_map(|endpoint| endpoint.views.recoveries())
    }

    /// The regions that reach one of its endpoints, in the order of names.
    pub(crate) fn reached_from(&self) -> Vec<RegionName> {
        let mut regions: Vec<RegionName> =
            self.endpoints.iter().flat_map(|endpoint| endpoint.views.regions_that_pass()).cloned().collect();
        regions.sort_unstable();
        regions.dedup();
        regions
    }
}

fn verdicts(standings: &[Standing]) -> impl Iterator<Item = Verdict> {
    standings.iter().map(|standing| standing.verdict)
}

/// The words that count for `region`: those of its own probers where they have any.
fn relevant<'a>(
    words: &'a [(&'a ProberKey, &'a Judgement)],
    region: &'a RegionName,
) -> impl Iterator<Item = &'a (&'a ProberKey, &'a Judgement)> {
    let of_region = words.iter().any(|(key, _)| key.region == *region);
    words.iter().filter(move |(key, _)| !of_region || key.region == *region)
}

/// What speaks against an endpoint: the first word against it.
fn note(address: &Address, words: &[(&ProberKey, &Judgement)], region: &RegionName) -> Option<String> {
    relevant(words, region).find_map(|(ProberKey { region, name }, judgement)| match judgement {
        Judgement::Failing { failure } => Some(format!("{address} {failure} ({name} in {region})")),
        Judgement::HeldOut { failure, .. } => Some(format!(
            "{address} passes again after {failure}, but flaps and is held out ({name} in {region})"
        )),
        Judgement::Passing { .. } | Judgement::Undecided => None,
    })
}

/// Whether the words against an endpoint are all that it does not answer.
fn is_silent(words: &[(&ProberKey, &Judgement)], region: &RegionName) -> bool {
    relevant(words, region).all(|(_, judgement)| match judgement {
        Judgement::Failing { failure } => match failure {
            Failure::ConnectRefused
            | Failure::ConnectTimeout
            | Failure::ConnectError
            | Failure::Reset
            | Failure::NoAnswer => true,
            Failure::Tls | Failure::Status(_) | Failure::BadAnswer => false,
        },
        Judgement::HeldOut { .. } | Judgement::Passing { .. } | Judgement::Undecided => false,
    })
}

fn reason(endpoints: &[Judged], standings: &[Standing], standing: Standing, region: &RegionName) -> String {
    let passing = verdicts(standings).filter(|verdict| *verdict == Verdict::Up).count();
    let notes: Vec<&str> = endpoints
        .iter()
        .zip(verdicts(standings))
        .filter(|(_, verdict)| *verdict != Verdict::Up)
        .filter_map(|(endpoint, _)| endpoint.note.as_deref())
        .collect();
    if standing.verdict == Verdict::Unknown && notes.is_empty() {
        return "no prober has spoken of it yet".to_owned();
    }
    let mut text = match standing.verdict {
        Verdict::PathDown => format!("not reached from {region}, and other regions last saw it pass: "),
        Verdict::Up | Verdict::Down | Verdict::Unknown => String::new(),
    };
    text += &format!("{passing} of {} endpoints pass", endpoints.len());
    if !notes.is_empty() {
        text += ": ";
        text += &notes[..notes.len().min(ENDPOINTS_NAMED)].join("; ");
        if notes.len() > ENDPOINTS_NAMED {
            text += &format!("; and {} more", notes.len() - ENDPOINTS_NAMED);
        }
    }
    text
}
