//! Fleet files for one edge, in which a test only writes what matters to it.

use std::net::SocketAddr;

/// A fleet with the edge `edge-1` in the region `here`, the listener `web`, clusters, and the service `site` on host
/// `site.test`.
pub struct FleetFile {
    clusters: Vec<String>,
    listener: String,
    service: String,
    order: Option<String>,
    routes: String,
    hosts: String,
}

impl FleetFile {
    /// No clusters yet; hedging is off, so that each request is sent as often as a test expects.
    pub fn new() -> FleetFile {
        FleetFile {
            clusters: Vec::new(),
            listener: String::new(),
            service: "retry: { hedge_after: off }, timeout: 10s".to_owned(),
            order: None,
            routes: String::new(),
            hosts: "site.test".to_owned(),
        }
    }

    /// One cluster `a` of plain HTTP/1.1 origins.
    pub fn of(origins: &[SocketAddr]) -> FleetFile {
        FleetFile::new().cluster("a", origins, "")
    }

    /// Another cluster; `more` are further fields, such as `protocol: http2`.
    pub fn cluster(self, name: &str, origins: &[SocketAddr], more: &str) -> FleetFile {
        self.cluster_in("here", name, origins, more)
    }

    /// Another cluster, in `region`.
    pub fn cluster_in(mut self, region: &str, name: &str, origins: &[SocketAddr], more: &str) -> FleetFile {
        let endpoints: Vec<String> =
            origins.iter().map(|address| format!("{address:?}", address = address.to_string())).collect();
        let more = if more.is_empty() { String::new() } else { format!(", {more}") };
        self.clusters
            .push(format!("  {name}: {{ region: {region}, endpoints: [{}]{more} }}", endpoints.join(", ")));
        self
    }

    /// The fields of the listener beside `bind`; `protocol: http` without.
    pub fn listener(mut self, fields: &str) -> FleetFile {
        fields.clone_into(&mut self.listener);
        self
    }

    /// The fields of the service beside `hosts`, `clusters` and `routes`.
    pub fn service(mut self, fields: &str) -> FleetFile {
        fields.clone_into(&mut self.service);
        self
    }

    /// The service's `hosts`; `site.test` without.
    pub fn hosts(mut self, hosts: &str) -> FleetFile {
        hosts.clone_into(&mut self.hosts);
        self
    }

    /// What `clusters` of the service says, in place of all clusters in order.
    pub fn prefer(mut self, clusters: &str) -> FleetFile {
        self.order = Some(clusters.to_owned());
        self
    }

    /// The service's `routes`: items of a list.
    pub fn routes(mut self, routes: &str) -> FleetFile {
        self.routes = format!(", routes: [{routes}]");
        self
    }

    /// The file.
    pub fn text(&self) -> String {
        let names: Vec<&str> =
            self.clusters.iter().filter_map(|line| line.trim().split(':').next()).collect();
        let order = self.order.clone().unwrap_or_else(|| format!("[{}]", names.join(", ")));
        let listener = if self.listener.is_empty() { "protocol: http" } else { &self.listener };
        format!(
            "regions: {{ here: {{ location: [0, 0] }}, there: {{ location: [40, 40] }} }}\n\
             clusters:\n{}\n\
             edges: {{ edge-1: {{ region: here, listeners: [web] }} }}\n\
             listeners: {{ web: {{ bind: \"127.0.0.1:0\", {listener} }} }}\n\
             services: {{ site: {{ hosts: [{}], clusters: {order}, {}{} }} }}\n",
            self.clusters.join("\n"),
            self.hosts,
            self.service,
            self.routes,
        )
    }
}
