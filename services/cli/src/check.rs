//! `tidegate check` and `tidegate schema`.

use std::{fmt, fs, path::Path};

use crate::say::say_line;
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

/// A file that cannot be read.
#[derive(Debug)]
pub struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

/// Reads a fleet file: its text and what it says.
pub fn read(file: &Path) -> anyhow::Result<(String, Fleet)> {
    let text = fs::read_to_string(file)
        .map_err(|error| Unreadable(format!("{} cannot be read: {error}", file.display())))?;
    let fleet = Fleet::parse(&text, &file.display().to_string()).map_err(WrongFile)?;
    Ok((text, fleet))
}

/// Checks a fleet file.
pub fn check(file: &Path) -> anyhow::Result<()> {
    let (_, fleet) = read(file)?;
    say_line(format_args!(
        "{} is right: {} regions, {} clusters with {} endpoints, {} edges, {} listeners, {} services",
        file.display(),
        fleet.regions.len(),
        fleet.clusters.len(),
        fleet.clusters.values().map(|cluster| cluster.endpoints.len()).sum::<usize>(),
        fleet.edges.len(),
        fleet.listeners.len(),
        fleet.services.len(),
    ))?;
    Ok(())
}

/// Prints the schema.
pub fn schema() -> anyhow::Result<()> {
    say_line(serde_json::to_string_pretty(&fleet::schema())?)?;
    Ok(())
}
