//! The bus, as a command reaches it.

use anyhow::Context as _;
use tidegate_bus::Bus;
use tidegate_service::settings::NatsSection;

use crate::arguments::BusOptions;

/// Connects, and waits until the bus is there.
pub async fn connect(options: &BusOptions) -> anyhow::Result<Bus> {
    let settings = NatsSection {
        servers: options.nats_servers.split(',').map(|server| server.trim().to_owned()).collect(),
        credentials: options.nats_credentials.clone(),
        bucket_replicas: options.nats_bucket_replicas,
        ..NatsSection::default()
    };
    let bus =
        tidegate_service::bus::connect(&settings, "tidegate").await.context("the bus cannot be used")?;
    anyhow::ensure!(
        bus.ready(options.timeout).await,
        "no NATS server answers at {} within {:?} (--nats-servers)",
        options.nats_servers,
        options.timeout
    );
    Ok(bus)
}

/// Who runs this command.
pub fn author(given: Option<String>) -> String {
    given
        .or_else(|| std::env::var("USER").ok())
        .or_else(|| std::env::var("LOGNAME").ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}
