//! Runs a test against both buses: `on_both! { name … }` for functions `async fn name(bus: Bus)`.

use std::time::Duration;

use tidegate_bus::{Bus, NatsSettings, testing::NatsServer};

/// Longer than anything takes; a test that reaches it fails.
pub const LONG: Duration = Duration::from_secs(20);

pub async fn over_nats(server: &NatsServer) -> Bus {
    let bus = Bus::connect(NatsSettings::new([server.url()], "test")).await.unwrap();
    assert!(bus.ready(LONG).await);
    bus
}

macro_rules! on_both {
    ($($name:ident)*) => {
        mod nats { $(
            #[tokio::test]
            async fn $name() {
                let server = tidegate_bus::testing::NatsServer::start();
                super::$name(crate::both::over_nats(&server).await).await;
            }
        )* }
        mod in_process { $(
            #[tokio::test]
            async fn $name() {
                super::$name(tidegate_bus::Bus::in_process()).await;
            }
        )* }
    };
}
pub(crate) use on_both;
