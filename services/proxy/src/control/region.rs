//! Looks up an edge's region in the fleet, for an edge that is only configured with its name.

use std::time::Duration;

use tidegate_bus::{
    Bus, BusError,
    fleet::FleetStore,
    limit::{ProblemLog, ProblemNotice},
};
use tidegate_model::{EdgeName, RegionName, SigningPublicKey, fleet::Fleet};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

const ASK_AGAIN: Duration = Duration::from_secs(1);
const CONNECTS_WITHIN: Duration = Duration::from_millis(500);
/// How long an edge that could serve by its last table waits for the bus.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What an edge reads from the fleet at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeAssignment {
    /// Its region.
    pub region: RegionName,
    /// The signing keys of the region's route-computers; absent: the fleet was not read.
    pub signing_keys: Option<Vec<SigningPublicKey>>,
}

/// Reads the signing keys of `region`'s route-computers from the fleet on the bus; nothing if no fleet was applied yet.
///
/// # Errors
/// Why the fleet cannot be read.
pub async fn signing_keys(bus: &Bus, region: &RegionName) -> Result<Option<Vec<SigningPublicKey>>, String> {
    let text = FleetStore::new(bus).get().await.map_err(|error| error.to_string())?;
    let Some(text) = text else { return Ok(None) };
    let fleet =
        Fleet::parse(&text.text, "fleet").map_err(|_| "the fleet on the bus cannot be read".to_owned())?;
    let region = fleet.regions.get(region).ok_or_else(|| format!("the fleet has no region {region}"))?;
    Ok(Some(region.signing_keys.clone()))
}

/// The result of looking an edge up in the fleet.
enum FleetLookup {
    Region(RegionName, Vec<SigningPublicKey>),
    /// The fleet does not contain the edge.
    Unknown(String),
    /// The bus does not respond.
    Unavailable(String),
}

/// Determines the edge's region from the fleet. Falls back to `last`, the region of the last table on disk: at once if
/// the fleet does not contain the edge, after two seconds if the bus does not respond. Without `last` it waits for the
/// fleet. Nothing on shutdown.
pub async fn learn_region(
    bus: &Bus,
    edge: &EdgeName,
    last: Option<&RegionName>,
    shutdown: &CancellationToken,
) -> Option<EdgeAssignment> {
    let store = FleetStore::new(bus);
    let fallback = last.map(|last| (Instant::now() + ANSWER_WITHIN, last));
    let mut log = ProblemLog::default();
    // A bus connection that is still being opened is not worth a warning.
    bus.ready(CONNECTS_WITHIN).await;
    loop {
        let found = match fallback {
            None => look_up(&store, edge).await,
            Some((until, _)) => timeout_at(until, look_up(&store, edge))
                .await
                .unwrap_or_else(|_| FleetLookup::Unavailable("the bus does not respond".to_owned())),
        };
        let mut next = Instant::now() + ASK_AGAIN;
        let why = match (found, fallback) {
            (FleetLookup::Region(region, keys), _) => {
                if let Some(ProblemNotice::Over(waited)) = log.record(None, Instant::now()) {
                    tracing::info!(%edge, %region, ?waited, "the fleet has the edge's region");
                }
                return Some(EdgeAssignment { region, signing_keys: Some(keys) });
            }
            (FleetLookup::Unknown(why), Some((_, last))) => return Some(fall_back(edge, last, &why)),
            (FleetLookup::Unavailable(why), Some((until, last))) if Instant::now() >= until => {
                return Some(fall_back(edge, last, &why));
            }
            (FleetLookup::Unavailable(why), Some((until, _))) => {
                next = (Instant::now() + ASK_AGAIN / 10).min(until);
                why
            }
            (FleetLookup::Unknown(why) | FleetLookup::Unavailable(why), None) => why,
        };
        match log.record(Some(&why), Instant::now()) {
            Some(ProblemNotice::Began) => tracing::warn!(%edge, "waiting for the edge's region: {why}"),
            Some(ProblemNotice::Lasts(waited)) => {
                tracing::warn!(%edge, ?waited, "still waiting for the edge's region: {why}");
            }
            Some(ProblemNotice::Over(_)) | None => {}
        }
        tokio::select! {
            () = sleep_until(next) => {}
            () = shutdown.cancelled() => return None,
        }
    }
}

fn fall_back(edge: &EdgeName, last: &RegionName, why: &str) -> EdgeAssignment {
    tracing::warn!(%edge, region = %last, "the edge's region is taken from its last table: {why}");
    EdgeAssignment { region: last.clone(), signing_keys: None }
}

async fn look_up(store: &FleetStore, edge: &EdgeName) -> FleetLookup {
    match store.get().await {
        Ok(Some(fleet)) => match Fleet::parse(&fleet.text, "fleet") {
            Ok(fleet) => match fleet.edges.get(edge) {
                Some(edge) => {
                    let keys = fleet.regions.get(&edge.region).map(|region| region.signing_keys.clone());
                    FleetLookup::Region(edge.region.clone(), keys.unwrap_or_default())
                }
                None => FleetLookup::Unknown(format!("the fleet has no edge {edge}")),
            },
            Err(_) => FleetLookup::Unknown("the fleet on the bus cannot be read".to_owned()),
        },
        Ok(None) => FleetLookup::Unknown("no fleet was applied yet".to_owned()),
        // Without the time, which would be a new reason each time.
        Err(BusError::Away { why, .. }) => FleetLookup::Unavailable(
            why.map_or_else(|| "the bus is away".to_owned(), |why| format!("the bus is away: {why}")),
        ),
        Err(error) => FleetLookup::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(edge: &str, region: &str) -> String {
        format!(
            "regions: {{ here: {{}}, there: {{}} }}\n\
             clusters: {{ a: {{ region: here, endpoints: [\"127.0.0.1:1\"] }} }}\n\
             edges: {{ {edge}: {{ region: {region}, listeners: [web] }} }}\n\
             listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http }} }}\n\
             services: {{ site: {{ hosts: [\"*\"], clusters: [a] }} }}\n"
        )
    }

    async fn learned(bus: &Bus, last: Option<&str>) -> String {
        let last = last.map(|last| last.parse().unwrap());
        let edge = "edge-1".parse().unwrap();
        let learned = learn_region(bus, &edge, last.as_ref(), &CancellationToken::new()).await;
        learned.unwrap().region.to_string()
    }

    #[tokio::test]
    async fn an_edge_that_was_moved_serves_its_new_region() {
        let bus = Bus::in_process();
        FleetStore::new(&bus).put(&fleet("edge-1", "there"), "a test").await.unwrap();
        assert_eq!(learned(&bus, Some("here")).await, "there");
        assert_eq!(learned(&bus, None).await, "there");
    }

    #[tokio::test]
    async fn an_edge_of_which_the_fleet_says_nothing_serves_on() {
        let bus = Bus::in_process();
        assert_eq!(learned(&bus, Some("here")).await, "here");
        FleetStore::new(&bus).put(&fleet("edge-2", "there"), "a test").await.unwrap();
        assert_eq!(learned(&bus, Some("here")).await, "here");
    }

    #[tokio::test]
    async fn an_edge_without_a_last_table_waits_for_the_fleet() {
        let bus = Bus::in_process();
        let (learned, ()) = tokio::join!(learned(&bus, None), async {
            tokio::task::yield_now().await;
            FleetStore::new(&bus).put(&fleet("edge-1", "there"), "a test").await.unwrap();
        });
        assert_eq!(learned, "there");
    }
}
