//! The fleet on the bus: its names, and descriptions of its routes.

use anyhow::Context as _;
use tidegate_bus::{Bus, fleet::FleetStore};
use tidegate_model::fleet::{Fleet, RouteMatch};

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

/// Describes the requests of a route, such as `/api and below, GET or HEAD`.
pub fn requests(matches: &RouteMatch) -> String {
    let RouteMatch { path_prefix, path, methods, headers } = matches;
    let mut parts = Vec::new();
    parts.extend(path.clone());
    parts.extend(path_prefix.as_ref().map(|prefix| format!("{prefix} and below")));
    if !methods.is_empty() {
        parts.push(methods.join(" or "));
    }
    parts.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
    if parts.is_empty() { "all requests".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_described_by_all_that_it_matches() {
        let mut matches = RouteMatch { path_prefix: Some("/api".to_owned()), ..RouteMatch::default() };
        assert_eq!(requests(&matches), "/api and below");
        matches.methods = vec!["GET".to_owned(), "HEAD".to_owned()];
        matches.headers.insert("x-beta".to_owned(), "1".to_owned());
        assert_eq!(requests(&matches), "/api and below, GET or HEAD, x-beta: 1");
        assert_eq!(requests(&RouteMatch::default()), "all requests");
    }
}
