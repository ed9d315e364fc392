//! Every subject and bucket of Tidegate, in one place. Names can't hold dots, so a subject can be taken apart again.

use tidegate_model::{ClusterName, EdgeName, ProberName, RegionName};

/// Nudge: the fleet in its bucket was changed.
pub const FLEET: &str = "tidegate.v1.fleet";
/// Nudge: the overrides in their bucket were changed.
pub const OVERRIDES: &str = "tidegate.v1.overrides";
/// Every prober's table.
pub const ALL_PROBES: &str = "tidegate.v1.probe.*.*";
/// Every region's table of routes.
pub const ALL_ROUTES: &str = "tidegate.v1.routes.*";
/// What every edge applied.
pub const ALL_APPLIED: &str = "tidegate.v1.applied.*.*";
/// What every edge forwarded.
pub const ALL_LOAD: &str = "tidegate.v1.load.*.*";
/// Questions why a service's requests go where they go: see [`explain`].
pub const EXPLAIN: &str = "tidegate.v1.explain";
/// What every region's bus holds of the fleet and the overrides.
pub const ALL_CARRY: &str = "tidegate.v1.carry.*";
/// Which names every process bears.
pub const ALL_BEARERS: &str = "tidegate.v1.bearer.*.*.*";
/// Every suspicion.
pub const ALL_SUSPICIONS: &str = "tidegate.v1.suspect.*.*.*";
/// Where every edge is asked to clear its epoch fence.
pub const ALL_RESETS: &str = "tidegate.v1.reset.*.*";
/// Every event: what a history keeps.
pub const ALL_EVENTS: &str = "tidegate.v1.event.*.*";

/// Stream of the events.
pub const EVENT_STREAM: &str = "tidegate-events";
/// Bucket of the fleet file.
pub const FLEET_BUCKET: &str = "tidegate-fleet";
/// Bucket of the regions' last tables of routes; the key is [`routes_key`].
pub const ROUTES_BUCKET: &str = "tidegate-routes";
/// Bucket of the overrides.
pub const OVERRIDES_BUCKET: &str = "tidegate-overrides";
/// Bucket of the regions' leases; the key is the region.
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

/// What an edge applied.
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

/// What every edge of a region applied.
pub fn applied_in(region: &RegionName) -> String {
    format!("tidegate.v1.applied.{region}.*")
}

/// What an edge forwarded.
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

/// Where an edge is asked to clear its epoch fence. The body is empty, and so is the response.
pub fn reset(region: &RegionName, edge: &EdgeName) -> String {
    format!("tidegate.v1.reset.{region}.{edge}")
}

/// Where a region's route-computers are asked why a service's requests go where they go. The body is the service's name,
/// the answer JSON.
pub fn explain(region: &RegionName) -> String {
    format!("{EXPLAIN}.{region}")
}

/// What a region's bus holds of the fleet and the overrides.
pub fn carry(region: &RegionName) -> String {
    format!("tidegate.v1.carry.{region}")
}

/// The region of a subject made by [`carry`].
pub fn parse_carry(subject: &str) -> Option<RegionName> {
    subject.strip_prefix("tidegate.v1.carry.")?.parse().ok()
}

/// Where a region is asked for its fleet and overrides.
pub fn carry_request(region: &RegionName) -> String {
    format!("{}.request", carry(region))
}

/// What an edge or a route-computer of a region, `source`, tells of what happened.
pub fn event(region: &RegionName, source: &str) -> String {
    format!("tidegate.v1.event.{region}.{source}")
}

/// Where processes of a `kind` say which name they bear in a region: see [`crate::presence`].
pub fn bearer(kind: &str, region: &RegionName, name: &str) -> String {
    format!("tidegate.v1.bearer.{kind}.{region}.{name}")
}

/// The kind, the region and the name of a subject made by [`bearer`].
pub fn parse_bearer(subject: &str) -> Option<(&str, RegionName, &str)> {
    let (kind, rest) = subject.strip_prefix("tidegate.v1.bearer.")?.split_once('.')?;
    let (region, name) = rest.split_once('.')?;
    Some((kind, region.parse().ok()?, name))
}

/// Every event of a region.
pub fn events_in(region: &RegionName) -> String {
    format!("tidegate.v1.event.{region}.*")
}

/// Where a table's snapshot is asked for.
pub fn snapshot(table: &str) -> String {
    format!("{table}.snapshot")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::covers;

    #[test]
    fn a_subject_can_be_taken_apart_again() {
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
