//! The `tidegate-replicator` binary.

use std::process::ExitCode;

use tidegate_replicator::ReplicatorSettings;
use tidegate_service::{Context, Description};

fn main() -> ExitCode {
    let about = Description {
        name: "tidegate-replicator",
        about: "Maintains a region's buckets and history, and replicates the fleet and overrides between regions.",
        version: env!("CARGO_PKG_VERSION"),
    };
    tidegate_service::main(about, |settings: ReplicatorSettings, context: Context| async move {
        let name = format!("{} {}", about.name, context.instance);
        let bus = tidegate_service::bus::connect(&settings.nats, &name).await?;
        tidegate_replicator::run(settings, bus, context).await
    })
}
