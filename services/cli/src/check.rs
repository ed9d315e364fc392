//! `tidegate check` and `tidegate schema`.

use std::{fmt, fs, path::Path};

use anyhow::Context as _;
use tidegate_model::fleet::{self, Fleet, FleetErrors};

/// A fleet file that is wrong.
#[derive(Debug)]
pub struct WrongFile(FleetErrors);

impl fmt::Display for WrongFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for WrongFile {}

/// Reads a fleet file: its text and what it says.
pub fn read(file: &Path) -> anyhow::Result<(String, Fleet)> {
    let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let fleet = Fleet::parse(&text, &file.display().to_string()).map_err(WrongFile)?;
    Ok((text, fleet))
}

/// Checks a fleet file.
pub fn check(file: &Path) -> anyhow::Result<()> {
    let (_, fleet) = read(file)?;
    println!(
        "{} is right: {} regions, {} clusters with {} endpoints, {} edges, {} listeners, {} services",
        file.display(),
        fleet.regions.len(),
        fleet.clusters.len(),
        fleet.clusters.values().map(|cluster| cluster.endpoints.len()).sum::<usize>(),
        fleet.edges.len(),
        fleet.listeners.len(),
        fleet.services.len(),
    );
    Ok(())
}

/// Prints the schema.
pub fn schema() -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(&fleet::schema())?);
    Ok(())
}
