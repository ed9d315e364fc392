//! `tidegate drain` and `tidegate undrain`.

use anyhow::Context as _;
use tidegate_bus::{Bus, clock, fleet::FleetStore, overrides::OverrideStore};
use tidegate_model::{
    ClusterName, EdgeName,
    fleet::Fleet,
    overrides::{Override, OverrideKind},
};

use crate::{
    arguments::{BusOptions, DrainOptions, Target},
    link,
};

impl Target {
    fn kind(self) -> OverrideKind {
        match self {
            Target::Cluster { name } => OverrideKind::DrainCluster(name),
            Target::Edge { name } => OverrideKind::DrainEdge(name),
        }
    }

    /// Refuses a name that the fleet does not have.
    async fn check(&self, bus: &Bus) -> anyhow::Result<()> {
        let text = FleetStore::new(bus).get().await?.context("no fleet was applied yet (tidegate apply)")?;
        let fleet = Fleet::parse(&text.text, "fleet").map_err(|_| {
            anyhow::anyhow!("the fleet on the bus cannot be read by this version of tidegate")
        })?;
        let (known, kind, name, names) = match self {
            Target::Cluster { name } => {
                let names: Vec<&str> = fleet.clusters.keys().map(ClusterName::as_str).collect();
                (fleet.clusters.contains_key(name), "cluster", name.as_str(), names)
            }
            Target::Edge { name } => {
                let names: Vec<&str> = fleet.edges.keys().map(EdgeName::as_str).collect();
                (fleet.edges.contains_key(name), "edge", name.as_str(), names)
            }
        };
        anyhow::ensure!(known, "the fleet has no {kind} {name}; it has {}", names.join(", "));
        Ok(())
    }
}

/// Writes the override.
pub async fn drain(target: Target, options: DrainOptions, bus: &BusOptions) -> anyhow::Result<()> {
    let bus = link::connect(bus).await?;
    target.check(&bus).await?;
    let now = clock::now();
    let entry = Override {
        kind: target.kind(),
        author: link::author(options.author),
        reason: options.reason,
        created_at: now,
        expires_at: options.length.map(|length| now.plus(length)),
    };
    OverrideStore::new(&bus).put(&entry).await?;
    let until = options.length.map_or_else(
        || "until it is taken back (tidegate undrain)".to_owned(),
        |length| format!("for {length:?}"),
    );
    println!("{}, {until}", entry.kind);
    Ok(())
}

/// Removes the override.
pub async fn undrain(target: Target, bus: &BusOptions) -> anyhow::Result<()> {
    let bus = link::connect(bus).await?;
    let kind = target.kind();
    if OverrideStore::new(&bus).delete(&kind).await? {
        println!("{kind} was taken back");
        Ok(())
    } else {
        anyhow::bail!("there is no {kind}")
    }
}
