//! The reports of edges that count: from an edge of the fleet, about itself, and within the rate limit.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use tidegate_bus::{
    Subscription,
    codec::{self, Wire},
    limit::SenderLimit,
    subjects,
};
use tidegate_model::{
    EdgeName, RegionName,
    fleet::Fleet,
    report::{Applied, Load},
};
use tidegate_service::{Registry, metrics::Counter};
use tokio::time::Instant;

/// An edge reports its load once a second, and each change that it applied.
const PER_SECOND: u32 = 20;
const BURST: u32 = 60;
/// The refused reports after which other tasks get their turn.
const IGNORED_PER_TURN: u32 = 32;

/// A report that names its sender.
pub trait FromEdge: Wire {
    /// The sender.
    fn sender(&self) -> (&RegionName, &EdgeName);
}

impl FromEdge for Applied {
    fn sender(&self) -> (&RegionName, &EdgeName) {
        (&self.region, &self.edge)
    }
}

impl FromEdge for Load {
    fn sender(&self) -> (&RegionName, &EdgeName) {
        (&self.region, &self.edge)
    }
}

/// The reason why a report is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReportRefusal {
    /// The fleet lacks this edge in this region.
    UnknownEdge,
    /// The edge exceeds the rate limit.
    Rate,
    /// Its subject names another edge than its body.
    Subject,
    /// It cannot be decoded.
    Unreadable,
}

impl ReportRefusal {
    const ALL: [ReportRefusal; 4] =
        [ReportRefusal::UnknownEdge, ReportRefusal::Rate, ReportRefusal::Subject, ReportRefusal::Unreadable];
}

impl fmt::Display for ReportRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReportRefusal::UnknownEdge => "unknown_edge",
            ReportRefusal::Rate => "rate",
            ReportRefusal::Subject => "subject",
            ReportRefusal::Unreadable => "unreadable",
        })
    }
}

/// Counters of refused reports by reason. Clones share them.
#[derive(Debug, Clone)]
pub struct ReportRefusals(BTreeMap<ReportRefusal, Counter>);

impl ReportRefusals {
    /// Counters in this registry.
    pub fn new(registry: &Registry) -> ReportRefusals {
        let counter = |reason: ReportRefusal| {
            let help = "Reports of edges that were refused: of edges that the fleet does not have in that region, too many of one \
                        edge, published for another edge, or unreadable.";
            let reason_text = reason.to_string();
            (reason, registry.counter("tidegate_reports_refused_total", help, &[("reason", &reason_text)]))
        };
        ReportRefusals(ReportRefusal::ALL.map(counter).into())
    }

    /// Counts a refused report.
    pub fn count(&self, refusal: ReportRefusal) {
        if let Some(counter) = self.0.get(&refusal) {
            counter.increment();
        }
    }
}

/// The reports of edges on one pattern.
pub struct EdgeReports<T> {
    subscription: Subscription,
    admission: Admission,
    refusals: ReportRefusals,
    ignored: u32,
    body: PhantomData<fn() -> T>,
}

impl<T: FromEdge> EdgeReports<T> {
    /// Reports of this subscription.
    pub fn new(subscription: Subscription, refusals: &ReportRefusals) -> EdgeReports<T> {
        let refusals = refusals.clone();
        EdgeReports { subscription, admission: Admission::new(), refusals, ignored: 0, body: PhantomData }
    }

    /// The next report that counts; absent once the bus is closed. Without a fleet, edges can't be verified: reports are
    /// skipped, and not counted as refused. Safe to cancel.
    pub async fn next(&mut self, fleet: Option<&Fleet>) -> Option<T> {
        loop {
            let message = self.subscription.next().await?;
            let admitted = fleet
                .map(|fleet| self.admission.admit(&message.subject, &message.body, fleet, Instant::now()));
            match admitted {
                Some(Ok(report)) => return Some(report),
                Some(Err(refusal)) => self.refusals.count(refusal),
                None => {}
            }
            self.ignored += 1;
            if self.ignored >= IGNORED_PER_TURN {
                self.ignored = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Removes edges that the fleet does not have.
    pub fn remove_unknown_edges(&mut self, fleet: &Fleet) {
        self.admission.limit.retain(|edge| fleet.edges.contains_key(edge));
    }
}

/// The admission of reports, without I/O.
struct Admission {
    limit: SenderLimit<EdgeName>,
}

impl Admission {
    fn new() -> Admission {
        Admission { limit: SenderLimit::new(PER_SECOND, BURST) }
    }

    /// Decodes a report, if its subject and the rate limit admit it.
    fn admit<T: FromEdge>(
        &mut self,
        subject: &str,
        body: &[u8],
        fleet: &Fleet,
        now: Instant,
    ) -> Result<T, ReportRefusal> {
        let (region, edge) = subjects::parse_report(subject).ok_or(ReportRefusal::Subject)?;
        if !fleet.has_edge(&edge, &region) {
            return Err(ReportRefusal::UnknownEdge);
        }
        if !self.limit.admit(&edge, now) {
            return Err(ReportRefusal::Rate);
        }
        let report: T = codec::decode(body).map_err(|_| ReportRefusal::Unreadable)?;
        if report.sender() != (&region, &edge) {
            return Err(ReportRefusal::Subject);
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FLEET: &str = "
regions: { us: {}, eu: {} }
clusters: { a: { region: us, endpoints: [\"127.0.0.1:1\"] } }
edges: { e-1: { region: us, listeners: [web] }, e-2: { region: us, listeners: [web] } }
listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }
services: { site: { hosts: [\"*\"], clusters: [a] } }
";

    fn load(region: &str, edge: &str) -> Load {
        Load {
            edge: edge.parse().unwrap(),
            region: region.parse().unwrap(),
            interval_ms: 1000,
            demand: BTreeMap::new(),
            clusters: BTreeMap::new(),
        }
    }

    fn fleet() -> Fleet {
        Fleet::parse(FLEET, "fleet.yaml").unwrap()
    }

    #[test]
    fn an_edge_that_floods_takes_nothing_from_another() {
        let (fleet, mut admission, now) = (fleet(), Admission::new(), Instant::now());
        let mut send = |edge: &str, at: u64| {
            let report = load("us", edge);
            let subject = subjects::load(&report.region, &report.edge);
            admission.admit::<Load>(
                &subject,
                &codec::encode(&report),
                &fleet,
                now + Duration::from_millis(at),
            )
        };
        let flood: Vec<_> = (0..1000).map(|at| send("e-1", at)).collect();
        let admitted = flood.iter().filter(|sent| sent.is_ok()).count();
        assert!(admitted <= (PER_SECOND + BURST) as usize, "{admitted}");
        assert_eq!(flood.last(), Some(&Err(ReportRefusal::Rate)));
        assert_eq!(send("e-2", 1000), Ok(load("us", "e-2")));
        assert_eq!(send("e-1", 1000 + 1000 / u64::from(PER_SECOND)), Ok(load("us", "e-1")));
    }

    #[test]
    fn only_reports_of_edges_of_the_fleet_about_themselves_count() {
        let (fleet, mut admission, now) = (fleet(), Admission::new(), Instant::now());
        let mut send = |subject: &str, body: &[u8]| admission.admit::<Load>(subject, body, &fleet, now);
        let report = codec::encode(&load("us", "e-1"));
        assert_eq!(send("tidegate.v1.load.us.e-2", &report), Err(ReportRefusal::Subject));
        assert_eq!(send("tidegate.v1.load.eu.e-1", &report), Err(ReportRefusal::UnknownEdge));
        assert_eq!(send("tidegate.v1.load.us.nobody", &report), Err(ReportRefusal::UnknownEdge));
        assert_eq!(send("tidegate.v1.load.us.e-1", b"?"), Err(ReportRefusal::Unreadable));
        assert_eq!(send("tidegate.v1.load.us.e-1", &report), Ok(load("us", "e-1")));
    }

    #[tokio::test]
    async fn reports_before_the_first_fleet_are_not_counted_as_refused() {
        let (bus, registry) = (tidegate_bus::Bus::in_process(), Registry::default());
        let subscription = bus.subscribe(subjects::ALL_LOAD).await.unwrap();
        let mut reports = EdgeReports::<Load>::new(subscription, &ReportRefusals::new(&registry));
        let report = load("us", "e-1");
        let subject = subjects::load(&report.region, &report.edge);
        bus.publish_report(&subject, None, &report).await.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(50), reports.next(None)).await;
        assert!(waited.is_err());

        bus.publish_report(&subject, None, &report).await.unwrap();
        assert_eq!(reports.next(Some(&fleet())).await, Some(report));
        let text = registry.to_text();
        let counted: Vec<&str> =
            text.lines().filter(|line| line.starts_with("tidegate_reports_refused_total{")).collect();
        assert!(counted.len() == 4 && counted.iter().all(|line| line.ends_with(" 0")), "{counted:?}");
    }
}
