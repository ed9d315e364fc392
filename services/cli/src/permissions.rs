//! `tidegate bus-permissions`: who may say what on the bus, with a user for each edge of a fleet.

use std::{fmt::Write as _, path::Path};

use anyhow::Context as _;
use tidegate_model::{EdgeName, RegionName, fleet::Fleet};

use crate::{check, say::say};

/// Rights by kind of service, as they are deployed.
const BY_KIND: &str = include_str!("../../../k8s/base/permissions.conf");
/// How the user that all edges share begins there, and where the next one does.
const EDGE: &str = "    {\n      user: edge\n";
const NEXT: &str = "    {\n      user: ";

/// Prints the authorization of a nats-server with a user for each edge of the fleet.
pub fn print(file: &Path) -> anyhow::Result<()> {
    let (_, fleet) = check::read(file)?;
    say(by_name(&fleet).context("the permissions by kind have no user for edges")?)
}

/// The rights by kind, but for edges by name: each may speak for itself only.
fn by_name(fleet: &Fleet) -> Option<String> {
    let (before, rest) = BY_KIND.split_once(EDGE)?;
    let end = rest.find(NEXT)?;
    let (rights, after) = rest.split_at(end);
    let mut text = before.to_owned();
    for (name, edge) in &fleet.edges {
        // Writing to a String does not fail.
        _ = write!(text, "    {{\n      user: \"{}\"\n{}", user(name), own(rights, &edge.region, name));
    }
    text.push_str(after);
    Some(text)
}

/// The user of an edge.
fn user(edge: &EdgeName) -> String {
    format!("edge-{edge}")
}

/// The rights of all edges, narrowed to those of one.
fn own(rights: &str, region: &RegionName, edge: &EdgeName) -> String {
    let variable = format!("NATS_EDGE_{}_PASSWORD", edge.as_str().replace('-', "_").to_uppercase());
    let mut own = rights.replace("NATS_EDGE_PASSWORD", &variable);
    for subject in ["suspect", "applied", "load", "event", "bearer.edge", "reset"] {
        let prefix = format!("\"tidegate.v1.{subject}.");
        own = own.replace(&format!("{prefix}*.*"), &format!("{prefix}{region}.{edge}"));
    }
    own.replace("\"tidegate.v1.routes.*", &format!("\"tidegate.v1.routes.{region}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLEET: &str = "
regions: { us: {}, eu: {} }
clusters: { a: { region: us, endpoints: [\"127.0.0.1:1\"] } }
edges: { e-1: { region: us, listeners: [web] }, e-2: { region: eu, listeners: [web] } }
listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }
services: { site: { hosts: [\"*\"], clusters: [a] } }
";

    #[test]
    fn an_edge_may_speak_for_itself_only() {
        let text = by_name(&Fleet::parse(FLEET, "fleet.yaml").unwrap()).unwrap();
        let start = text.find("user: \"edge-e-1\"").unwrap();
        let rights = &text[start..start + text[start..].find("user: \"edge-e-2\"").unwrap()];
        for subject in [
            "suspect.us.e-1.*",
            "applied.us.e-1",
            "load.us.e-1",
            "event.us.e-1",
            "bearer.edge.us.e-1",
            "reset.us.e-1",
            "routes.us",
            "routes.us.snapshot",
        ] {
            assert!(rights.contains(&format!("\"tidegate.v1.{subject}\"")), "{subject}\n{rights}");
        }
        assert!(!rights.contains(".*.*") && rights.contains("$NATS_EDGE_E_1_PASSWORD"), "{rights}");
        assert!(!text.contains("user: edge\n") && text.contains("user: prober\n"));
    }
}
