//! The fleet on the bus, and its names.

use anyhow::Context as _;
use tidegate_bus::{Bus, fleet::FleetStore};
use tidegate_model::fleet::Fleet;

use crate::arguments::WrongArgument;

/// Reads the fleet that was applied last.
pub async fn read(bus: &Bus) -> anyhow::Result<Fleet> {
    let text = FleetStore::new(bus).get().await?.context("no fleet was applied yet (tidegate apply)")?;
    Fleet::parse(&text.text, "fleet").map_err(|errors| {
        anyhow::anyhow!("the fleet on the bus cannot be read by this version of tidegate: {errors}")
    })
}

/// Refuses a name that is not in the fleet.
pub fn known<N: ToString>(kind: &str, name: &str, names: impl Iterator<Item = N>) -> anyhow::Result<()> {
    let names: Vec<String> = names.map(|name| name.to_string()).collect();
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let wrong = match names.is_empty() {
        true => format!("the fleet has no {kind} {name}, and no other"),
        false => format!("the fleet has no {kind} {name}; it has {}", names.join(", ")),
    };
    Err(WrongArgument(wrong).into())
}
