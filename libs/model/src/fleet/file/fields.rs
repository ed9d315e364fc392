//! The fields of the fleet file: the walk refuses all others, and the schema is generated from them.

/// The largest fleet file, in bytes: a fleet of 10,000 clusters takes about two million.
pub(super) const MOST_BYTES: usize = 8 * 1024 * 1024;
/// How many of something a file may have. Far more than what is known of any fleet; what a route-computer keeps grows with
/// regions times regions, and with services times the clusters that each may choose.
const MOST_REGIONS: usize = 256;
const MOST_CLUSTERS: usize = 20_000;
const MOST_EDGES: usize = 20_000;
const MOST_LISTENERS: usize = 1_000;
const MOST_SERVICES: usize = 10_000;
/// Of one cluster, and of all.
const MOST_ENDPOINTS: usize = 1_000;
pub(super) const MOST_ENDPOINTS_IN_ALL: usize = 200_000;
/// Of one service.
const MOST_ROUTES: usize = 1_000;
/// Clusters that one action chooses from, and all actions together.
const MOST_CHOICES: usize = 1_000;
pub(super) const MOST_CHOICES_IN_ALL: usize = 500_000;
const MOST_HOSTS: usize = 10_000;
const MOST_CERTIFICATES: usize = 10_000;
const MOST_KEYS: usize = 16;
const MOST_NETWORKS: usize = 64;
const MOST_STATUSES: usize = 500;
const MOST_METHODS: usize = 64;
const MOST_HEADERS: usize = 64;

/// A map with fixed fields.
pub(super) struct Record {
    /// What it is, with its article.
    pub name: &'static str,
    pub fields: &'static [Field],
}

/// A field of a record.
pub(super) struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// One sentence for editors.
    pub doc: &'static str,
}

/// What a field may hold.
pub(super) enum Kind {
    Text,
    /// The name of something; see `crate::name`.
    Name,
    /// An address with a port.
    Address,
    Boolean,
    True,
    Integer(u64, u64),
    /// Latitude and longitude.
    Location,
    /// A public key; see `crate::key`.
    SigningKey,
    /// A range of IP addresses; see `crate::fleet::Cidr`.
    Cidr,
    Duration,
    Size,
    Percent,
    Word(&'static [&'static str]),
    /// A list with at most so many items.
    List(&'static Kind, usize),
    /// The same with at least one item, each once.
    Set(&'static Kind, usize),
    /// A map from names, with at most so many.
    Names(&'static Kind, usize),
    /// A map from any text to text, with at most [`MOST_HEADERS`].
    Texts,
    Record(&'static Record),
    /// One of these.
    Any(&'static [Kind]),
}

impl Kind {
    /// The most items or entries that it may have, where there is a limit.
    pub fn most(&self) -> Option<usize> {
        match self {
            Kind::List(_, most) | Kind::Set(_, most) | Kind::Names(_, most) => Some(*most),
            Kind::Texts => Some(MOST_HEADERS),
            Kind::Any(kinds) => kinds.iter().find_map(Kind::most),
            _ => None,
        }
    }
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, kind, required: true, doc }
}

const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, kind, required: false, doc }
}

pub(super) static FLEET: Record = Record {
    name: "the fleet",
    fields: &[
        required(
            "regions",
            Kind::Names(&Kind::Record(&REGION), MOST_REGIONS),
            "Failure domains, at least one.",
        ),
        optional("clusters", Kind::Names(&Kind::Record(&CLUSTER), MOST_CLUSTERS), "Workload clusters."),
        optional("edges", Kind::Names(&Kind::Record(&EDGE), MOST_EDGES), "Edge proxies."),
        optional(
            "listeners",
            Kind::Names(&Kind::Record(&LISTENER), MOST_LISTENERS),
            "The listeners of edges.",
        ),
        optional(
            "services",
            Kind::Names(&Kind::Record(&SERVICE), MOST_SERVICES),
            "The services that edges forward.",
        ),
    ],
};

pub(super) static REGION: Record = Record {
    name: "a region",
    fields: &[
        optional("location", Kind::Location, "Latitude and longitude in degrees, for proximity."),
        optional(
            "latency",
            Kind::Names(&Kind::Duration, MOST_REGIONS),
            "One-way latencies to other regions; each overrides the distance.",
        ),
        optional(
            "signing_keys",
            Kind::Set(&Kind::SigningKey, MOST_KEYS),
            "Public keys of its route-computers, as `tidegate signing-key` prints them: tables that none of them signed are refused.",
        ),
    ],
};

pub(super) static CLUSTER: Record = Record {
    name: "a cluster",
    fields: &[
        required("region", Kind::Name, "The region it runs in."),
        required(
            "endpoints",
            Kind::Set(&Kind::Any(&[Kind::Address, Kind::Record(&ENDPOINT)]), MOST_ENDPOINTS),
            "The addresses of its ingress gateway.",
        ),
        optional(
            "protocol",
            Kind::Word(&["auto", "http1", "http2"]),
            "The HTTP version towards it. `auto`, the default: with TLS the one that ALPN selects; in clear text HTTP/1.1, or HTTP/2 if the health checks of its services are `grpc`.",
        ),
        optional(
            "tls",
            Kind::Any(&[Kind::Boolean, Kind::Record(&TLS)]),
            "TLS towards it; none without this and `identity`.",
        ),
        optional("identity", Kind::Text, "The SPIFFE ID that its certificate must carry; implies TLS."),
        optional(
            "idle_timeout",
            Kind::Duration,
            "How long an idle connection is kept; 4s, which is below what common origins use.",
        ),
        optional(
            "connect_timeout",
            Kind::Duration,
            "How long a connection may take to be made, TLS included; 1s.",
        ),
        optional(
            "max_requests",
            Kind::Integer(1, u32::MAX as u64),
            "The most concurrent requests to it from one edge; 10000.",
        ),
        optional("capacity", Kind::Integer(1, u32::MAX as u64), "Requests per second that it can take."),
    ],
};

pub(super) static ENDPOINT: Record = Record {
    name: "an endpoint",
    fields: &[
        required("address", Kind::Address, "Its host and port."),
        optional("network", Kind::Name, "The network it is on; internet."),
    ],
};

pub(super) static TLS: Record = Record {
    name: "the TLS of a cluster",
    fields: &[
        optional("server_name", Kind::Text, "The server name for SNI and verification; the endpoint's host."),
        optional("ca", Kind::Text, "PEM file with the authorities that are trusted; the system's."),
        optional(
            "client_certificate",
            Kind::Record(&CERTIFICATE),
            "The client certificate of edges and probers.",
        ),
    ],
};

pub(super) static CERTIFICATE: Record = Record {
    name: "a certificate",
    fields: &[
        required("chain", Kind::Text, "PEM file with the certificate chain, leaf first."),
        required("key", Kind::Text, "PEM file with the private key."),
    ],
};

pub(super) static EDGE: Record = Record {
    name: "an edge",
    fields: &[
        required("region", Kind::Name, "The region it runs in."),
        optional("address", Kind::Text, "The IP address that users reach it by, for DNS and status."),
        required("listeners", Kind::Set(&Kind::Name, MOST_LISTENERS), "Its listeners."),
        optional("networks", Kind::Set(&Kind::Name, MOST_NETWORKS), "All the networks it is on; internet."),
    ],
};

pub(super) static LISTENER: Record = Record {
    name: "a listener",
    fields: &[
        required("bind", Kind::Text, "The IP address and port to listen on; port 0 takes a free one."),
        required("protocol", Kind::Word(&["http", "https"]), "The protocol."),
        optional(
            "certificates",
            Kind::List(&Kind::Record(&CERTIFICATE), MOST_CERTIFICATES),
            "For https: selected by SNI, the first one is the default.",
        ),
        optional("limits", Kind::Record(&LIMITS), "The limits for clients."),
        optional(
            "underscores_in_headers",
            Kind::Word(&["drop", "refuse", "pass"]),
            "The policy for request header fields whose names have an underscore, or anything else than letters, digits and -; drop.",
        ),
        optional(
            "path_normalization",
            Kind::Word(&["normalize", "as_received"]),
            "Whether paths are normalized (dot segments, escapes of unreserved characters, backslashes) before they are matched and forwarded; normalize.",
        ),
        optional(
            "escaped_slashes",
            Kind::Word(&["keep", "refuse", "decode"]),
            "The policy for %2F and %5C in paths; keep.",
        ),
        optional("merge_slashes", Kind::Boolean, "Whether adjacent slashes in paths become one; true."),
        optional(
            "health_endpoints",
            Kind::Word(&["on", "edge", "off"]),
            "The endpoints under /.well-known/tidegate/health that it serves: all, that of the edge, none; on.",
        ),
        optional(
            "debug_from",
            Kind::Set(&Kind::Cidr, MOST_NETWORKS),
            "The networks whose clients learn which edge, cluster and endpoint served a request, and how long each took, if it has `x-tidegate-debug: 1`; nobody.",
        ),
    ],
};

pub(super) static LIMITS: Record = Record {
    name: "the limits of a listener",
    fields: &[
        optional("head_bytes", Kind::Size, "The largest request head; 64KiB."),
        optional("header_count", Kind::Integer(1, 256), "The most header fields in a request; 100."),
        optional(
            "head_timeout",
            Kind::Duration,
            "The time to send a request head or do a TLS handshake; 10s.",
        ),
        optional("idle_timeout", Kind::Duration, "The time that a client may be idle; 75s."),
        optional(
            "max_connections",
            Kind::Integer(1, u32::MAX as u64),
            "The most concurrent connections; 100000.",
        ),
    ],
};

pub(super) static SERVICE: Record = Record {
    name: "a service",
    fields: &[
        required(
            "hosts",
            Kind::Set(&Kind::Text, MOST_HOSTS),
            "The hosts that it serves: shop.example.com, *.example.com or *.",
        ),
        required("clusters", CLUSTERS, "Where its requests go."),
        optional("health", Kind::Record(&HEALTH), "The health check of its clusters; a TCP connection."),
        optional("retry", Kind::Record(&RETRY), "The retry policy."),
        optional(
            "timeout",
            Kind::Duration,
            "The time limit until the response head, all attempts included; 15s.",
        ),
        optional(
            "priority",
            Kind::Integer(0, 255),
            "The priority when no cluster has capacity: 0, the default, is shed last.",
        ),
        optional("max_request_body", Kind::Size, "The largest request body; no limit."),
        optional(
            "routes",
            Kind::List(&Kind::Record(&ROUTE), MOST_ROUTES),
            "Exceptions for some requests, matched in order.",
        ),
    ],
};

const CLUSTERS: Kind =
    Kind::Any(&[Kind::Set(&Kind::Name, MOST_CHOICES), Kind::Record(&NEAREST), Kind::Record(&WEIGHTS)]);

pub(super) static NEAREST: Record = Record {
    name: "a choice by nearness",
    fields: &[required(
        "nearest",
        Kind::Set(&Kind::Name, MOST_CHOICES),
        "These, the nearest to the edge's region first.",
    )],
};

pub(super) static WEIGHTS: Record = Record {
    name: "a choice by weight",
    fields: &[required(
        "weights",
        Kind::Names(&Kind::Integer(0, 1000), MOST_CHOICES),
        "Shares of the requests; a cluster with 0 is a fallback.",
    )],
};

pub(super) static HEALTH: Record = Record {
    name: "a health check",
    fields: &[
        optional("path", Kind::Text, "Requests this path with GET."),
        optional("host", Kind::Text, "The host header for `path`; the endpoint's address."),
        optional(
            "expect_status",
            Kind::Set(&Kind::Any(&[Kind::Integer(100, 599), Kind::Text]), MOST_STATUSES),
            "For `path`: statuses that pass, such as 200 or 200-299; 200-299.",
        ),
        optional("expect_body", Kind::Text, "For `path`: text that the first 64 KiB of the body hold."),
        optional(
            "grpc",
            Kind::Any(&[Kind::True, Kind::Text]),
            "Uses the gRPC health protocol: a service's name, or true for the whole server.",
        ),
        optional("tcp", Kind::True, "A connection is enough; the default."),
        optional("interval", Kind::Duration, "The time between two probes; 250ms."),
        optional(
            "timeout",
            Kind::Duration,
            "The time a probe may take; 200ms or four fifths of the interval, if that is less.",
        ),
        optional("unhealthy_after", Kind::Integer(1, 1000), "Failures in a row until it is down; 2."),
        optional("healthy_after", Kind::Integer(1, 1000), "Passes in a row until it is up again; 3."),
    ],
};

pub(super) static RETRY: Record = Record {
    name: "a retry policy",
    fields: &[
        optional("attempts", Kind::Integer(0, 10), "The most attempts after the first; 2."),
        optional(
            "per_try_timeout",
            Kind::Duration,
            "The time limit of one attempt until the response head; none.",
        ),
        optional(
            "hedge_after",
            Kind::Any(&[Kind::Word(&["auto", "off"]), Kind::Duration]),
            "When a repeatable request without a response is also sent to another endpoint; auto.",
        ),
        optional("budget", Kind::Percent, "Retries and hedges, as a share of requests; 20%."),
    ],
};

pub(super) static ROUTE: Record = Record {
    name: "a route",
    fields: &[
        optional("path_prefix", Kind::Text, "Requests for this path or below it, by whole segments."),
        optional("path", Kind::Text, "Requests for exactly this path."),
        optional("methods", Kind::Set(&Kind::Text, MOST_METHODS), "Requests with one of these methods."),
        optional("headers", Kind::Texts, "Requests that have each of these headers with this value."),
        optional("clusters", CLUSTERS, "The clusters for them; the service's."),
        optional("timeout", Kind::Duration, "As the service's, for this route."),
        optional("retry", Kind::Record(&RETRY), "Overrides fields of the service's retry policy."),
    ],
};
