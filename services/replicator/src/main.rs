//! The `tidegate-replicator` binary.

use std::process::ExitCode;

use tidegate_service::Description;

fn main() -> ExitCode {
    let about = Description {
        name: "tidegate-replicator",
        about: "Maintains a region's buckets and history, and replicates the fleet and overrides between regions.",
        version: env!("CARGO_PKG_VERSION"),
    };
    tidegate_service::main(about, tidegate_replicator::run)
}
