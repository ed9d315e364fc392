//! The sections that all services have.

use std::{net::SocketAddr, path::PathBuf};

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};
use tidegate_bus::NatsSettings;

use super::{docs::docs_of, list::comma_separated, log_filter::parse_log_filter};

/// The sections that all services have.
#[derive(Debug, Clone, Default)]
pub struct CommonSettings {
    /// How to reach the bus.
    pub nats: NatsSection,
    /// The admin listener.
    pub admin: AdminSection,
    /// The log.
    pub log: LogSection,
    /// Traces and metrics by OTLP.
    pub telemetry: TelemetrySection,
}

/// How to reach the bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct NatsSection {
    /// The servers' addresses.
    #[serde(deserialize_with = "comma_separated")]
    pub servers: Vec<String>,
    /// A `.creds` file.
    pub credentials: Option<PathBuf>,
    /// A user's name, with `password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// A file with the user's password, instead of `password`.
    pub password_file: Option<PathBuf>,
    /// A token, instead of a user.
    pub token: Option<String>,
    /// PEM file with the authorities that are trusted; with it TLS is required.
    pub ca: Option<PathBuf>,
    /// PEM file with the certificate that is shown to the server, with `key`.
    pub certificate: Option<PathBuf>,
    /// PEM file with the certificate's key.
    pub key: Option<PathBuf>,
    /// Copies of each bucket, on as many servers: 1, 3 or 5.
    pub bucket_replicas: usize,
}

impl Default for NatsSection {
    fn default() -> Self {
        NatsSection {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            credentials: None,
            user: None,
            password: None,
            password_file: None,
            token: None,
            ca: None,
            certificate: None,
            key: None,
            bucket_replicas: 1,
        }
    }
}

/// The admin listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSection {
    /// Its address; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Host names that it accepts besides addresses, `localhost` and names without a dot: `metrics.example.com`, or
    /// `*.example.com` for all below.
    #[serde(deserialize_with = "comma_separated")]
    pub allowed_hosts: Vec<String>,
}

impl Default for AdminSection {
    fn default() -> Self {
        AdminSection { bind: SocketAddr::from(([127, 0, 0, 1], 0)), allowed_hosts: Vec::new() }
    }
}

/// The log, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// The format: `human` or `json`.
    pub format: LogFormat,
    /// The levels that are logged, as `tracing` directives: `info,tidegate_bus=debug`.
    pub filter: String,
}

impl Default for LogSection {
    fn default() -> Self {
        // The client logs each event of its connection; the bus logs those that matter.
        LogSection { format: LogFormat::Human, filter: "info,async_nats=warn".to_owned() }
    }
}

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Human,
    /// One JSON object on each line.
    Json,
}

/// Traces and metrics by OTLP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySection {
    /// The address of the collector, such as `http://127.0.0.1:4318`; absent: nothing is sent.
    pub otlp_endpoint: Option<String>,
    /// The share of traces that are sent, 0 to 1. A trace that another service started is sent when that service samples it.
    pub sample_ratio: f64,
}

impl Default for TelemetrySection {
    fn default() -> Self {
        TelemetrySection { otlp_endpoint: None, sample_ratio: 1.0 }
    }
}

impl NatsSection {
    /// Checks what types can't express.
    ///
    /// # Errors
    /// The name of the wrong setting, and what would be right.
    pub fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, problem: &str| Err((key.to_owned(), problem.to_owned()));
        let nats = self;
        if nats.servers.is_empty() {
            return wrong("nats.servers", "at least one address such as nats://127.0.0.1:4222 is needed");
        }
        if nats.servers.iter().any(|server| server.contains('@')) {
            // Credentials in an address would appear in logs, and this client does not use them.
            return wrong(
                "nats.servers",
                "addresses without a user: that goes into nats.user and nats.password",
            );
        }
        if let Some(error) = nats.servers.iter().find_map(|server| NatsSettings::check_server(server).err()) {
            return wrong("nats.servers", &error.to_string());
        }
        if nats.password.is_some() && nats.password_file.is_some() {
            return wrong("nats.password_file", "only one of password and password_file can be used");
        }
        if nats.user.is_some() != (nats.password.is_some() || nats.password_file.is_some()) {
            return wrong("nats.password", "a user needs a password, and a password a user");
        }
        if nats.certificate.is_some() != nats.key.is_some() {
            return wrong("nats.key", "a certificate needs its key, and a key its certificate");
        }
        let ways = [nats.credentials.is_some(), nats.user.is_some(), nats.token.is_some()];
        if ways.into_iter().filter(|given| *given).count() > 1 {
            return wrong("nats.credentials", "only one of credentials, user and token can be used");
        }
        if ![1, 3, 5].contains(&nats.bucket_replicas) {
            return wrong("nats.bucket_replicas", "1, 3 or 5");
        }
        Ok(())
    }
}

impl CommonSettings {
    pub(super) fn docs(key: &str) -> Option<&'static str> {
        docs_of::<NatsSection>("nats", key)
            .or_else(|| docs_of::<AdminSection>("admin", key))
            .or_else(|| docs_of::<LogSection>("log", key))
            .or_else(|| docs_of::<TelemetrySection>("telemetry", key))
    }

    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, problem: &str| Err((key.to_owned(), problem.to_owned()));
        self.nats.check()?;
        if let Err(error) = parse_log_filter(&self.log.filter) {
            return wrong("log.filter", &format!("{error}; right would be info,tidegate_bus=debug"));
        }
        if !(0.0..=1.0).contains(&self.telemetry.sample_ratio) {
            return wrong("telemetry.sample_ratio", "a number from 0 to 1");
        }
        if let Some(endpoint) = &self.telemetry.otlp_endpoint
            && !is_plain_http(endpoint)
        {
            let problem = "an address such as http://127.0.0.1:4318 (plain HTTP: run a collector beside)";
            return wrong("telemetry.otlp_endpoint", problem);
        }
        Ok(())
    }
}

fn is_plain_http(endpoint: &str) -> bool {
    endpoint
        .parse::<hyper::Uri>()
        .is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()))
}
