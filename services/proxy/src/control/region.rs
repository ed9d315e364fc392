//! Learns an edge's region from the fleet file, for an edge that knows only its name.

use std::time::Duration;

use tidegate_bus::{Bus, fleet::FleetStore};
use tidegate_model::{EdgeName, RegionName, fleet::Fleet};
use tokio_util::sync::CancellationToken;

const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The edge's region, once the fleet has it; nothing when asked to stop before.
pub async fn learn(bus: &Bus, edge: &EdgeName, shutdown: &CancellationToken) -> Option<RegionName> {
    let store = FleetStore::new(bus);
    let mut said = String::new();
    loop {
        let why = match store.get().await {
            Ok(Some(fleet)) => match Fleet::parse(&fleet.text, "fleet") {
                Ok(fleet) => match fleet.edges.get(edge) {
                    Some(edge) => return Some(edge.region.clone()),
                    None => format!("the fleet has no edge {edge}"),
                },
                Err(_) => "the fleet on the bus cannot be read".to_owned(),
            },
            Ok(None) => "no fleet was applied yet".to_owned(),
            Err(error) => error.to_string(),
        };
        if why != said {
            tracing::warn!(%edge, "waiting to learn the edge's region: {why}");
            said = why;
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_AGAIN) => {}
            () = shutdown.cancelled() => return None,
        }
    }
}
