//! `tidegate apply`.

use std::path::Path;

use tidegate_bus::fleet::FleetStore;

use crate::say::say_line;
use crate::{arguments::BusOptions, check, link};

/// Checks a fleet file and writes it to the bus. A wrong one changes nothing.
pub async fn apply(file: &Path, author: Option<String>, options: &BusOptions) -> anyhow::Result<()> {
    let (text, fleet) = check::read(file)?;
    let bus = link::connect(options).await?;
    let head = FleetStore::new(&bus).put(&text, &link::author(author)).await?;
    say_line(format_args!(
        "applied {} as revision {}: {} clusters, {} services",
        file.display(),
        head.revision,
        fleet.clusters.len(),
        fleet.services.len()
    ))?;
    Ok(())
}
