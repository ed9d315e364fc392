//! `tidegate check` and `tidegate schema`.

use std::{collections::BTreeSet, fmt, fs, io, path::Path};

use crate::{say::say_line, words::count};
use tidegate_model::fleet::{self, Fleet, FleetErrors, Service};

/// The errors of a fleet file.
#[derive(Debug)]
pub struct WrongFile(FleetErrors);

impl fmt::Display for WrongFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for WrongFile {}

/// The error of a file that cannot be read.
#[derive(Debug)]
pub struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

/// Whether a file is given as `-`, which is standard input.
pub fn is_standard_input(file: &Path) -> bool {
    file == Path::new("-")
}

/// The name of a file for people.
pub fn name_of(file: &Path) -> String {
    if is_standard_input(file) { "standard input".to_owned() } else { file.display().to_string() }
}

/// Reads a fleet file, or standard input for `-`: its text and the fleet.
pub fn read(file: &Path) -> anyhow::Result<(String, Fleet)> {
    let name = name_of(file);
    let text =
        if is_standard_input(file) { io::read_to_string(io::stdin()) } else { fs::read_to_string(file) };
    let text = text.map_err(|error| Unreadable(format!("{name} cannot be read: {error}")))?;
    let fleet = Fleet::parse(&text, &name).map_err(WrongFile)?;
    Ok((text, fleet))
}

/// Checks a fleet file.
pub fn check(file: &Path) -> anyhow::Result<()> {
    let (_, fleet) = read(file)?;
    say_line(format_args!(
        "{} is valid: {}, {} with {}, {}, {}, {}",
        name_of(file),
        count(fleet.regions.len(), "region"),
        count(fleet.clusters.len(), "cluster"),
        count(fleet.clusters.values().map(|cluster| cluster.endpoints.len()).sum::<usize>(), "endpoint"),
        count(fleet.edges.len(), "edge"),
        count(fleet.listeners.len(), "listener"),
        count(fleet.services.len(), "service"),
    ))?;
    for idle in idle(&fleet) {
        say_line(format_args!("  {idle}"))?;
    }
    Ok(())
}

/// Clusters and listeners that are valid but unused, which may be a mistake.
fn idle(fleet: &Fleet) -> Vec<String> {
    let served: BTreeSet<_> = fleet
        .services
        .values()
        .flat_map(Service::actions)
        .flat_map(|action| action.clusters.clusters())
        .collect();
    let opened: BTreeSet<_> = fleet.edges.values().flat_map(|edge| &edge.listeners).collect();
    let clusters = fleet.clusters.keys().filter(|name| !served.contains(name));
    let listeners = fleet.listeners.keys().filter(|name| !opened.contains(name));
    clusters
        .map(|name| format!("no service uses the cluster {name}: it is not probed"))
        .chain(listeners.map(|name| format!("no edge has the listener {name}")))
        .collect()
}

/// Prints the JSON Schema, or the reference in Markdown.
pub fn schema(markdown: bool) -> anyhow::Result<()> {
    if markdown {
        say_line(fleet::reference().trim_end())?;
    } else {
        say_line(serde_json::to_string_pretty(&fleet::schema())?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unused_is_reported_and_nothing_else() {
        let text = "regions: { home: {} }
clusters:
  a: { region: home, endpoints: [\"127.0.0.1:1\"] }
  b: { region: home, endpoints: [\"127.0.0.1:2\"] }
edges: { e: { region: home, listeners: [http] } }
listeners:
  http: { bind: \"127.0.0.1:80\", protocol: http }
  other: { bind: \"127.0.0.1:81\", protocol: http }
services: { s: { hosts: [\"*\"], clusters: [a] } }
";
        let fleet = Fleet::parse(text, "fleet.yaml").unwrap();
        let expected = ["no service uses the cluster b: it is not probed", "no edge has the listener other"];
        assert_eq!(idle(&fleet), expected);
    }
}
