//! The fleet file: YAML text to a [`Fleet`], with every error at once.
//!
//! The text becomes a tree whose nodes know their position ([`tree`]); the tree is walked by hand ([`walk`]), so that a
//! mistake in one field hides none in another. The fields are defined once, in [`fields`]: the walk refuses all others, and
//! the JSON Schema for editors is generated from them.

mod clusters;
mod edges;
mod error;
mod fields;
mod health;
mod preference;
mod protocols;
mod reference;
mod routes;
mod scalar;
mod schema;
mod services;
mod span;
mod suggestion;
mod tree;
mod values;
mod walk;
mod warnings;

use self::walk::{Names, Walk};
pub use self::{
    error::{FleetErrors, FleetProblem, FleetWarnings},
    reference::reference,
    scalar::duration as parse_duration,
    schema::schema,
};
use super::{Fleet, Service};

/// A commented fleet file to start from: two origins on 127.0.0.1:9001 and 127.0.0.1:9002 behind an edge that listens
/// on 127.0.0.1:8080.
pub const STARTER: &str = include_str!("starter.yaml");

impl Fleet {
    /// The fleet that the YAML `text` describes. `file_name` is only shown in errors.
    ///
    /// Paths of certificates stay as they are written: they are relative to the working directory of the service that
    /// opens them.
    ///
    /// # Errors
    /// All errors of the text, each with its position. A syntax error is the only one, because what follows it can't be
    /// trusted.
    ///
    /// ```
    /// use tidegate_model::fleet::Fleet;
    ///
    /// let errors = Fleet::parse("regions: { eu: {} }\nclusters: { a: { regoin: eu, endpoints: [] } }", "fleet.yaml").unwrap_err();
    /// let positions: Vec<_> = errors.iter().map(|e| (e.line, e.column, e.path.as_str())).collect();
    /// assert_eq!(positions, [(2, 13, "clusters.a"), (2, 18, "clusters.a.regoin"), (2, 41, "clusters.a.endpoints")]);
    /// ```
    pub fn parse(text: &str, file_name: &str) -> Result<Fleet, FleetErrors> {
        if text.len() > fields::MOST_BYTES {
            let start = span::Span { line: 1, column: 1, width: 1 };
            let problem =
                format!("a fleet file has at most {} bytes, this one has {}", fields::MOST_BYTES, text.len());
            return Err(FleetErrors::new(file_name, "", vec![FleetProblem::new(start, "", problem, None)]));
        }
        let (fleet, errors) = match tree::parse(text) {
            Ok(root) => {
                let mut walk = Walk::new(Names::declared(&root));
                let fleet = read(&mut walk, &root);
                (fleet, walk.into_errors())
            }
            Err(error) => (None, vec![error]),
        };
        match fleet {
            Some(fleet) if errors.is_empty() => Ok(fleet),
            _ => Err(FleetErrors::new(file_name, text, errors)),
        }
    }

    /// The warnings about this fleet, which was parsed from `text`: what is valid and probably not meant.
    ///
    /// ```
    /// use tidegate_model::fleet::Fleet;
    ///
    /// let text = "regions: { eu: {} }\nclusters: { a: { region: eu, endpoints: [\"h:80\"] } }";
    /// let fleet = Fleet::parse(text, "fleet.yaml").unwrap();
    /// let warnings = fleet.warnings(text, "fleet.yaml");
    /// let found: Vec<_> = warnings.iter().map(|w| (w.line, w.path.as_str(), w.problem.as_str())).collect();
    /// assert_eq!(found, [(2, "clusters.a", "no service uses this cluster, so it is not probed")]);
    /// ```
    pub fn warnings(&self, text: &str, file_name: &str) -> FleetWarnings {
        // The text was parsed before, so it is a tree.
        let warnings = tree::parse(text).map(|root| warnings::warnings(self, &root)).unwrap_or_default();
        FleetWarnings::new(file_name, text, warnings)
    }
}

fn read(walk: &mut Walk, root: &tree::Node) -> Option<Fleet> {
    let mut fields = walk.record(root, root.span, &fields::FLEET)?;
    let regions = walk.required(&mut fields, "regions", |w, node, _| w.map(node, edges::region)).value();
    if regions.as_ref().is_some_and(std::collections::BTreeMap::is_empty) {
        walk.error(root.span, "there is no region", Some("a fleet has at least one region".to_owned()));
    }
    let mut clusters =
        walk.optional(&mut fields, "clusters", |w, node, _| w.map(node, clusters::cluster)).or_default();
    let listeners =
        walk.optional(&mut fields, "listeners", |w, node, _| w.map(node, edges::listener)).or_default();
    let edges = walk
        .optional(&mut fields, "edges", |w, node, _| {
            w.map(node, |w, n, name, at| edges::edge(w, n, name, at, &listeners))
        })
        .or_default();
    let mut seen = services::Seen::default();
    let services = walk
        .optional(&mut fields, "services", |w, node, _| {
            w.map(node, |w, n, name, at| services::service(w, n, name, at, &clusters, &mut seen))
        })
        .or_default();
    fields.finish();
    protocols::resolve_auto(walk, &mut clusters, &services, seen.grpc_at());
    let endpoints: usize = clusters.values().map(|cluster| cluster.endpoints.len()).sum();
    let choices =
        services.values().flat_map(Service::actions).map(|action| action.clusters.clusters().len()).sum();
    for (what, count, most) in [
        ("endpoints", endpoints, fields::MOST_ENDPOINTS_IN_ALL),
        ("mentions of clusters in services and routes", choices, fields::MOST_CHOICES_IN_ALL),
    ] {
        if count > most {
            walk.error(root.span, format!("there are {count} {what}, more than {most}"), None);
        }
    }
    Some(Fleet { regions: regions?, clusters, edges, listeners, services })
}

#[cfg(test)]
mod tests;
