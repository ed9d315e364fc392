//! Learns an edge's region from the fleet file, for an edge that knows only its name.

use std::time::Duration;

use tidegate_bus::{Bus, BusError, fleet::FleetStore};
use tidegate_model::{EdgeName, RegionName, SigningPublicKey, fleet::Fleet};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

const ASK_AGAIN: Duration = Duration::from_secs(1);
const CONNECTS_WITHIN: Duration = Duration::from_millis(500);
/// How long the bus may take to answer an edge that could serve by its last table.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What an edge learns of the fleet as it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// Its region.
    pub region: RegionName,
    /// The keys of the region's route-computers; absent: the fleet was not read.
    pub signing_keys: Option<Vec<SigningPublicKey>>,
}

/// The keys with which `region`'s route-computers sign, as the fleet on the bus names them; nothing when no fleet was
/// applied yet.
///
/// # Errors
/// Why it cannot be read.
pub async fn signing_keys(bus: &Bus, region: &RegionName) -> Result<Option<Vec<SigningPublicKey>>, String> {
    let text = FleetStore::new(bus).get().await.map_err(|error| error.to_string())?;
    let Some(text) = text else { return Ok(None) };
    let fleet =
        Fleet::parse(&text.text, "fleet").map_err(|_| "the fleet on the bus cannot be read".to_owned())?;
    let region = fleet.regions.get(region).ok_or_else(|| format!("the fleet has no region {region}"))?;
    Ok(Some(region.signing_keys.clone()))
}

/// What the fleet on the bus says.
enum Word {
    Region(RegionName, Vec<SigningPublicKey>),
    /// Nothing of this edge.
    Nothing(String),
    /// The bus does not answer.
    IdleTimer(String),
}

/// The edge's region: what the fleet says, or else `last`, the region of the last table on disk: at once when the fleet
/// has nothing to say of the edge, after two seconds when the bus does not answer. Without `last` the fleet is waited
/// for. Nothing when asked to stop before.
pub async fn learn(
    bus: &Bus,
    edge: &EdgeName,
    last: Option<&RegionName>,
    shutdown: &CancellationToken,
) -> Option<Learned> {
    let store = FleetStore::new(bus);
    let patience = last.map(|last| (Instant::now() + ANSWER_WITHIN, last));
    let mut said = String::new();
    // A connection that is only being made is nothing to tell.
    bus.ready(CONNECTS_WITHIN).await;
    loop {
        let word = match patience {
            None => ask(&store, edge).await,
            Some((until, _)) => timeout_at(until, ask(&store, edge))
                .await
                .unwrap_or_else(|_| Word::IdleTimer("the bus does not answer".to_owned())),
        };
        let mut next = Instant::now() + ASK_AGAIN;
        let why = match (word, patience) {
            (Word::Region(region, keys), _) => return Some(Learned { region, signing_keys: Some(keys) }),
            (Word::Nothing(why), Some((_, last))) => return Some(fall_back(edge, last, &why)),
            (Word::IdleTimer(why), Some((until, last))) if Instant::now() >= until => {
                return Some(fall_back(edge, last, &why));
            }
            (Word::IdleTimer(why), Some((until, _))) => {
                next = (Instant::now() + ASK_AGAIN / 10).min(until);
                why
            }
            (Word::Nothing(why) | Word::IdleTimer(why), None) => why,
        };
        if why != said {
            tracing::warn!(%edge, "waiting to learn the edge's region: {why}");
            said = why;
        }
        tokio::select! {
            () = sleep_until(next) => {}
            () = shutdown.cancelled() => return None,
        }
    }
}

fn fall_back(edge: &EdgeName, last: &RegionName, why: &str) -> Learned {
    tracing::warn!(%edge, region = %last, "the edge's region is taken from its last table: {why}");
    Learned { region: last.clone(), signing_keys: None }
}

async fn ask(store: &FleetStore, edge: &EdgeName) -> Word {
    match store.get().await {
        Ok(Some(fleet)) => match Fleet::parse(&fleet.text, "fleet") {
            Ok(fleet) => match fleet.edges.get(edge) {
                Some(edge) => {
                    let keys = fleet.regions.get(&edge.region).map(|region| region.signing_keys.clone());
                    Word::Region(edge.region.clone(), keys.unwrap_or_default())
                }
                None => Word::Nothing(format!("the fleet has no edge {edge}")),
            },
            Err(_) => Word::Nothing("the fleet on the bus cannot be read".to_owned()),
        },
        Ok(None) => Word::Nothing("no fleet was applied yet".to_owned()),
        // Without the time, which would be another one whenever it is told.
        Err(BusError::Away { why, .. }) => Word::IdleTimer(
            why.map_or_else(|| "the bus is away".to_owned(), |why| format!("the bus is away: {why}")),
        ),
        Err(error) => Word::IdleTimer(error.to_string()),
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
        let learned = learn(bus, &edge, last.as_ref(), &CancellationToken::new()).await;
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
