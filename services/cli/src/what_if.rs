//! `tidegate what-if`.

use tidegate_routing::{Hypothesis, Loss};

use crate::{
    arguments::{BusOptions, WhatIfOptions},
    effect::{Effects, regions_with_edges},
    fleet::{self, known},
    link,
    say::{say, say_line},
};

/// Prints what would happen with clusters, edges or regions lost, and with another demand.
pub async fn what_if(options: WhatIfOptions, bus: &BusOptions) -> anyhow::Result<()> {
    let link = link::connect(bus).await?;
    let fleet = fleet::read(&link).await?;
    for loss in &options.lose {
        match loss {
            Loss::Region(name) => known("region", name.as_str(), fleet.regions.keys())?,
            Loss::Cluster(name) => known("cluster", name.as_str(), fleet.clusters.keys())?,
            Loss::Edge(name) => known("edge", name.as_str(), fleet.edges.keys())?,
        }
    }
    let regions = regions_with_edges(&fleet, &options.lose);
    let hypothesis = Hypothesis {
        lost: options.lose,
        demand_permille: options.demand.map_or(1000, |factor| factor.0),
        ..Hypothesis::default()
    };
    let effects = Effects::compute(&link, regions, &hypothesis, bus.timeout).await?;
    if options.json {
        say_line(effects.json())?;
    } else {
        say(effects.text())?;
        if effects.by_region.is_empty() && effects.unknown.is_empty() {
            say_line("no region with an edge is left")?;
        }
    }
    anyhow::ensure!(effects.unknown.is_empty(), "not all could be computed");
    Ok(())
}
