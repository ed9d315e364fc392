//! Every subject and bucket of Tidegate. Names hold no dots, so a subject can be parsed again.

use tidegate_model::{ClusterName, EdgeName, ProberName, RegionName};

/// Change notification: the fleet in its bucket was written.
pub const FLEET: &str = "tidegate.v1.fleet";
/// Change notification: an override in the bucket was written.
pub const OVERRIDES: &str = "tidegate.v1.overrides";
/// Every prober's table.
pub const ALL_PROBES: &str = "tidegate.v1.probe.*.*";
/// Every region's table of routes.
pub const ALL_ROUTES: &str = "tidegate.v1.routes.*";
/// Every edge's report of the routes that it serves.
pub const ALL_APPLIED: &str = "tidegate.v1.applied.*.*";
/// Every edge's load report.
pub const ALL_LOAD: &str = "tidegate.v1.load.*.*";
/// Requests to explain a service's routes: see [`explain`].
pub const EXPLAIN: &str = "tidegate.v1.explain";
/// Requests to compute the effect of a hypothesis: see [`what_if`].
pub const WHAT_IF: &str = "tidegate.v1.what-if";
/// Every region's digest of its fleet and overrides.
pub const ALL_DIGESTS: &str = "tidegate.v1.digest.*";
/// The pull requests to every region.
pub const ALL_PULLS: &str = "tidegate.v1.pull.*";
/// Every identity claim.
pub const ALL_CLAIMS: &str = "tidegate.v1.claim.*.*.*";
/// Every suspicion.
pub const ALL_SUSPICIONS: &str = "tidegate.v1.suspect.*.*.*";
/// Requests to every edge to clear its epoch fence.
pub const ALL_RESETS: &str = "tidegate.v1.reset.*.*";
/// Every event of the history.
pub const ALL_EVENTS: &str = "tidegate.v1.event.*.*";

/// The stream of the events.
pub const EVENT_STREAM: &str = "tidegate-events";
/// The bucket of the fleet file.
pub const FLEET_BUCKET: &str = "tidegate-fleet";
/// The bucket of the regions' last tables of routes; the key is [`routes_key`].
pub const ROUTES_BUCKET: &str = "tidegate-routes";
/// The bucket of the overrides.
pub const OVERRIDES_BUCKET: &str = "tidegate-overrides";
/// The bucket of the regions' leases; the key is the region.
pub const LEASE_BUCKET: &str = "tidegate-lease";

/// Every bucket.
pub const BUCKETS: [&str; 4] = [FLEET_BUCKET, ROUTES_BUCKET, OVERRIDES_BUCKET, LEASE_BUCKET];

/// A prober's table of observations.
pub fn probe(region: &RegionName, prober: &ProberName) -> String {
    format!("tidegate.v1.probe.{region}.{prober}")
}

/// The tables of all of a region's probers.
pub fn probes_in(region: &RegionName) -> String {
    format!("tidegate.v1.probe.{region}.*")
}

/// The region and the prober of a subject made by [`probe`].
pub fn parse_probe(subject: &str) -> Option<(RegionName, ProberName)> {
    let (region, prober) = subject.strip_prefix("tidegate.v1.probe.")?.split_once('.')?;
    Some((region.parse().ok()?, prober.parse().ok()?))
}

/// A region's table of routes.
pub fn routes(region: &RegionName) -> String {
    format!("tidegate.v1.routes.{region}")
}

/// The region of a subject made by [`routes`].
pub fn parse_routes(subject: &str) -> Option<RegionName> {
    subject.strip_prefix("tidegate.v1.routes.")?.parse().ok()
}

/// The key of a region's table in [`ROUTES_BUCKET`].
pub fn routes_key(region: &RegionName) -> String {
    region.to_string()
}

/// An edge's report of the routes that it serves.
pub fn applied(region: &RegionName, edge: &EdgeName) -> String {
    format!("tidegate.v1.applied.{region}.{edge}")
}

/// The region and the edge of a subject made by [`applied`] or [`load`].
pub fn parse_report(subject: &str) -> Option<(RegionName, EdgeName)> {
    let rest =
        subject.strip_prefix("tidegate.v1.applied.").or_else(|| subject.strip_prefix("tidegate.v1.load."))?;
    let (region, edge) = rest.split_once('.')?;
    Some((region.parse().ok()?, edge.parse().ok()?))
}

/// The reports of all edges of a region of the routes that they serve.
pub fn applied_in(region: &RegionName) -> String {
    format!("tidegate.v1.applied.{region}.*")
}

/// An edge's load report.
pub fn load(region: &RegionName, edge: &EdgeName) -> String {
    format!("tidegate.v1.load.{region}.{edge}")
}

/// A suspicion by an `edge` of `region` against an endpoint of `cluster`.
pub fn suspect(region: &RegionName, edge: &EdgeName, cluster: &ClusterName) -> String {
    format!("tidegate.v1.suspect.{region}.{edge}.{cluster}")
}

/// All suspicions by an edge.
pub fn suspicions_of(region: &RegionName, edge: &EdgeName) -> String {
    format!("tidegate.v1.suspect.{region}.{edge}.*")
}

/// Requests to an edge to clear its epoch fence. The request and the response are empty.
pub fn reset(region: &RegionName, edge: &EdgeName) -> String {
    format!("tidegate.v1.reset.{region}.{edge}")
}

/// Requests to a region's route-computers to explain a service's routes. The request is the service's name, the response
/// is JSON.
pub fn explain(region: &RegionName) -> String {
    format!("{EXPLAIN}.{region}")
}

/// Requests to a region's route-computers to compute the effect of a hypothesis. The request and the response are JSON.
pub fn what_if(region: &RegionName) -> String {
    format!("{WHAT_IF}.{region}")
}

/// A region's digest of its fleet and overrides: see [`crate::replicate`].
pub fn digest(region: &RegionName) -> String {
    format!("tidegate.v1.digest.{region}")
}

/// The region of a subject made by [`digest`].
pub fn parse_digest(subject: &str) -> Option<RegionName> {
    subject.strip_prefix("tidegate.v1.digest.")?.parse().ok()
}

/// Pull requests for a region's fleet and overrides.
pub fn pull(region: &RegionName) -> String {
    format!("tidegate.v1.pull.{region}")
}

/// The events that `source`, an edge or a route-computer of a region, publishes.
pub fn event(region: &RegionName, source: &str) -> String {
    format!("tidegate.v1.event.{region}.{source}")
}

/// The claims of processes of a `kind` on a name in a region: see [`crate::claims`].
pub fn claim(kind: &str, region: &RegionName, name: &str) -> String {
    format!("tidegate.v1.claim.{kind}.{region}.{name}")
}

/// The kind, the region and the name of a subject made by [`claim`].
pub fn parse_claim(subject: &str) -> Option<(&str, RegionName, &str)> {
    let (kind, rest) = subject.strip_prefix("tidegate.v1.claim.")?.split_once('.')?;
    let (region, name) = rest.split_once('.')?;
    Some((kind, region.parse().ok()?, name))
}

/// Every event of a region.
pub fn events_in(region: &RegionName) -> String {
    format!("tidegate.v1.event.{region}.*")
}

/// Requests for a table's snapshot.
pub fn snapshot(table: &str) -> String {
    format!("{table}.snapshot")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::covers;

    #[test]
    fn a_subject_can_be_parsed_again() {
        let (region, prober) = ("eu-west".parse().unwrap(), "prober-1".parse().unwrap());
        let subject = probe(&region, &prober);
        assert_eq!(parse_probe(&subject), Some((region.clone(), prober)));
        assert_eq!(parse_routes(&routes(&region)), Some(region.clone()));
        let edge: EdgeName = "edge-1".parse().unwrap();
        for subject in [load(&region, &edge), applied(&region, &edge)] {
            assert_eq!(parse_report(&subject), Some((region.clone(), edge.clone())));
        }
    }

    #[test]
    fn requests_for_snapshots_are_not_taken_for_tables() {
        // A prober may be called `snapshot`.
        let subject = probe(&"eu".parse().unwrap(), &"snapshot".parse().unwrap());
        assert!(covers(ALL_PROBES, &subject));
        assert!(!covers(ALL_PROBES, &snapshot(&subject)));
    }
}
