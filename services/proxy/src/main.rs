//! The `tidegate-proxy` binary.

use std::process::ExitCode;

use tidegate_proxy::ProxySettings;
use tidegate_service::{Context, Description};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let about = Description {
        name: "tidegate-proxy",
        about: "Receives clients' requests and forwards them to the clusters in the region's route table.",
        version: env!("CARGO_PKG_VERSION"),
    };
    tidegate_service::main(about, |settings: ProxySettings, context: Context| async move {
        let bus = tidegate_service::bus::connect(&settings.nats, about.name).await?;
        tidegate_proxy::run(settings, bus, context).await
    })
}
