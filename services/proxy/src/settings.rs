//! The proxy's settings.

use std::{path::PathBuf, time::Duration};

use documented::DocumentedFields;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use tidegate_model::{EdgeName, RegionName, SigningPublicKey};
use tidegate_service::{
    CommonSettings, Settings,
    settings::{AdminSection, LogSection, NatsSection, TelemetrySection, comma_separated, docs_of, duration},
};

use crate::{limits::memory_limit, wire::IdleLimits};

/// The proxy's settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct ProxySettings {
    /// The edge's name, as in the fleet file.
    pub name: Option<EdgeName>,
    /// The edge's region. If absent: the region in the fleet file, or that of the last table on disk if the bus cannot
    /// be reached.
    pub region: Option<RegionName>,
    /// Whether this process takes over from another one of the same edge on this host: it starts although that one holds
    /// the state directory and the ports, and shares the ports until that one has been stopped. Without it, the second
    /// process refuses to start.
    pub take_over: bool,
    /// How the proxy works.
    pub proxy: ProxySection,
    /// The access log.
    pub access_log: AccessLogSection,
    /// How to reach the bus.
    pub nats: NatsSection,
    /// The admin listener.
    pub admin: AdminSection,
    /// The log.
    pub log: LogSection,
    /// Traces and metrics over OTLP.
    pub telemetry: TelemetrySection,
}

/// Parses a list of at least one key: an empty flag must not fall back to the keys of the fleet. (An empty environment
/// variable counts as absent, as for every setting.)
fn at_least_one_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SigningPublicKey>, D::Error> {
    let keys: Vec<SigningPublicKey> = comma_separated(deserializer)?;
    if keys.is_empty() {
        return Err(D::Error::custom(
            "it contains no key; leave this setting out to use the keys in the fleet",
        ));
    }
    Ok(keys)
}

/// The upper limit of `proxy.workers`.
pub const MOST_WORKERS: u16 = 1024;

/// How a proxy works.
#[derive(Debug, Clone, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct ProxySection {
    /// The public keys whose tables the edge accepts, instead of those in the fleet file.
    #[serde(deserialize_with = "at_least_one_key")]
    pub signing_keys: Vec<SigningPublicKey>,
    /// The number of worker threads; 0: one per core.
    pub workers: usize,
    /// The directory in which the last table is kept.
    pub state_dir: PathBuf,
    /// How long a shutdown reports "draining" to external load balancers before it stops accepting connections.
    #[serde(with = "duration")]
    pub drain_delay: Duration,
    /// How long open connections may take to end after that.
    #[serde(with = "duration")]
    pub drain_limit: Duration,
    /// The idle timeout of a request whose response has begun, in both directions.
    #[serde(with = "duration")]
    pub stream_idle_timeout: Duration,
    /// The idle timeout of an upgraded connection (WebSocket), in both directions.
    #[serde(with = "duration")]
    pub tunnel_idle_timeout: Duration,
    /// The memory in MiB for buffers of clients: request heads, bodies kept for retries, responses that the client does
    /// not read. Above it, the connection with the largest buffers is closed. 0: a quarter of what the process may use.
    pub client_memory_mib: u64,
    /// The share of requests that are traced, 0 to 1, if a collector is configured. Errors, retries and hedges are
    /// always traced.
    pub trace_ratio: f64,
    /// Whether the sampled flag in a request's `traceparent` decides if it is traced. On a public edge this lets any
    /// client have all of its requests traced.
    pub trace_follows_clients: bool,
}

/// The access log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLogSection {
    /// The file, reopened after it was moved away; `-` is standard output; absent: no access log.
    pub path: Option<PathBuf>,
    /// The format of its lines.
    pub format: AccessFormat,
    /// The share of requests that are logged, 0 to 1. Errors, retries and hedges are always logged.
    pub ratio: f64,
    /// Only responses with at least this status are logged: 400 for errors only.
    pub min_status: u16,
    /// Only requests that took at least this long are logged.
    #[serde(with = "duration")]
    pub slower_than: Duration,
}

/// The format of the access log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessFormat {
    /// One JSON object on each line.
    Json,
    /// Apache's combined log format.
    Common,
}

impl Default for AccessLogSection {
    fn default() -> Self {
        AccessLogSection {
            path: None,
            format: AccessFormat::Json,
            ratio: 1.0,
            min_status: 0,
            slower_than: Duration::ZERO,
        }
    }
}

impl Default for ProxySection {
    fn default() -> Self {
        ProxySection {
            signing_keys: Vec::new(),
            workers: 0,
            state_dir: PathBuf::from("/var/lib/tidegate"),
            drain_delay: Duration::ZERO,
            drain_limit: Duration::from_secs(30),
            // Envoy's `stream_idle_timeout`, and what HAProxy's manual advises for `timeout tunnel`.
            stream_idle_timeout: Duration::from_secs(300),
            tunnel_idle_timeout: Duration::from_secs(3600),
            client_memory_mib: 0,
            trace_ratio: 0.01,
            trace_follows_clients: true,
        }
    }
}

impl ProxySection {
    /// The bytes that may be buffered for clients.
    pub(crate) fn client_memory(&self) -> u64 {
        match self.client_memory_mib {
            0 => memory_limit().map_or(u64::MAX, |limit| limit / 4),
            mib => mib.saturating_mul(1024 * 1024),
        }
    }

    /// The idle timeouts of streams and tunnels.
    pub(crate) fn idle_limits(&self) -> IdleLimits {
        IdleLimits { stream: self.stream_idle_timeout, tunnel: self.tunnel_idle_timeout }
    }

    /// The number of workers.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        }
    }
}

impl Settings for ProxySettings {
    fn common(&self) -> CommonSettings {
        CommonSettings {
            nats: self.nats.clone(),
            admin: self.admin.clone(),
            log: self.log.clone(),
            telemetry: self.telemetry.clone(),
        }
    }

    fn instance(&self) -> String {
        self.name.as_ref().map_or_else(|| "unnamed".to_owned(), ToString::to_string)
    }

    fn docs(key: &str) -> Option<&'static str> {
        docs_of::<ProxySettings>("", key)
            .or_else(|| docs_of::<ProxySection>("proxy", key))
            .or_else(|| docs_of::<AccessLogSection>("access_log", key))
    }

    fn check(&self) -> Result<(), (String, String)> {
        if self.name.is_none() {
            return Err(("name".to_owned(), "the edge's name, as in the fleet file, is required".to_owned()));
        }
        if self.proxy.workers > usize::from(MOST_WORKERS) {
            return Err(("proxy.workers".to_owned(), format!("at most {MOST_WORKERS}; 0 is one per core")));
        }
        if let Some(limit) = memory_limit().map(|limit| limit / (1024 * 1024))
            && self.proxy.client_memory_mib > limit
        {
            let problem =
                format!("more than the {limit} MiB that this process may use; 0 is a quarter of that");
            return Err(("proxy.client_memory_mib".to_owned(), problem));
        }
        for (key, ratio) in
            [("proxy.trace_ratio", self.proxy.trace_ratio), ("access_log.ratio", self.access_log.ratio)]
        {
            if !(0.0..=1.0).contains(&ratio) {
                return Err((key.to_owned(), "a number from 0 to 1".to_owned()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidegate_service::{Description, settings};

    use super::*;

    #[test]
    fn signing_keys_are_given_by_a_flag_a_variable_or_a_file() {
        let about = Description { name: "tidegate-proxy", about: "Is tested.", version: "1.2.3" };
        let keys = [SigningPublicKey([1; 32]), SigningPublicKey([2; 32])];
        let text = keys.map(|key| key.to_string()).join(",");
        let file = std::env::temp_dir().join(format!("tidegate-proxy-settings-{}.toml", std::process::id()));
        std::fs::write(&file, format!("proxy.signing_keys = [\"{}\", \"{}\"]", keys[0], keys[1])).unwrap();
        let read = |flags: &[&str], variables: &[(&str, &str)]| {
            let flags = ["tidegate-proxy", "--name", "edge-1"].iter().chain(flags).map(Into::into);
            let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            settings::load::<ProxySettings>(&about, flags, variables)
        };
        let load = |flags: &[&str], variables: &[(&str, &str)]| {
            read(flags, variables).unwrap().settings.proxy.signing_keys
        };
        assert_eq!(load(&["--proxy-signing-keys", &text], &[]), keys);
        assert_eq!(load(&[], &[("TIDEGATE_PROXY__SIGNING_KEYS", &text)]), keys);
        assert_eq!(load(&["--config", file.to_str().unwrap()], &[]), keys);
        std::fs::remove_file(&file).unwrap();
        // An empty flag must not unpin an edge.
        assert!(read(&["--proxy-signing-keys", ""], &[]).is_err());
        assert!(read(&[], &[("TIDEGATE_PROXY__SIGNING_KEYS", ",")]).is_err());
    }

    #[test]
    fn the_memory_for_clients_is_memory_that_is_there() {
        let budget = |client_memory_mib| ProxySettings {
            name: Some("edge-1".parse().unwrap()),
            proxy: ProxySection { client_memory_mib, ..ProxySection::default() },
            ..ProxySettings::default()
        };
        assert_eq!(budget(16).check(), Ok(()));
        assert_eq!(budget(99_999_999).check().unwrap_err().0, "proxy.client_memory_mib");
    }
}
