//! The bus, as a command reaches it.

use std::time::Duration;

use anyhow::Context as _;
use tidegate_bus::{Bus, BusError};
use tidegate_service::settings::NatsSection;

use crate::{
    arguments::{BusOptions, WrongArgument},
    nats_probe::{describe_connect_failure, probe_servers},
};

/// Connects, and does not wait until the bus is there.
pub async fn open(options: &BusOptions) -> anyhow::Result<Bus> {
    let settings = NatsSection {
        servers: options
            .nats_servers
            .split(',')
            .map(|server| server.trim().to_owned())
            .filter(|server| !server.is_empty())
            .collect(),
        credentials: options.nats_credentials.clone(),
        user: options.nats_user.clone(),
        password: options.nats_password.clone(),
        password_file: options.nats_password_file.clone(),
        token: options.nats_token.clone(),
        ca: options.nats_ca.clone(),
        certificate: options.nats_certificate.clone(),
        key: options.nats_key.clone(),
        bucket_replicas: options.nats_bucket_replicas,
    };
    settings
        .check()
        .map_err(|(key, problem)| WrongArgument(format!("--{}: {problem}", key.replace(['.', '_'], "-"))))?;
    tidegate_service::bus::connect(&settings, "tidegate").await.context("the bus cannot be used")
}

/// Connects, and waits until the bus is there.
pub async fn connect(options: &BusOptions) -> anyhow::Result<Bus> {
    let bus = open(options).await?;
    if bus.ready(options.timeout).await {
        return Ok(bus);
    }
    let why = bus
        .connect_error()
        .unwrap_or_else(|| format!("no NATS server responds within {:?}", options.timeout));
    let found = probe_servers(&options.nats_servers, PROBE_LIMIT).await;
    let user = options.nats_user.as_deref().map(|user| format!("user {user}"));
    anyhow::bail!("{}", describe_connect_failure(&options.nats_servers, user.as_deref(), &found, &why));
}

/// How long to look for what answers at the servers' addresses once connecting has failed.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// The pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Retries while the bus is away; prints each reason once.
#[derive(Default)]
pub struct BusRetry {
    reported: Option<&'static str>,
}

impl BusRetry {
    /// Prints the error, unless it is of the kind that was printed last, and pauses.
    pub async fn wait(&mut self, error: &BusError) {
        // The kind, not the text: the text says for how long the bus has been away.
        if self.reported != Some(error.reason()) {
            eprintln!("waiting for the bus: {error}");
            self.reported = Some(error.reason());
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }

    /// Records that a call succeeded.
    pub fn succeeded(&mut self) {
        self.reported = None;
    }
}
