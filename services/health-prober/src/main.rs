//! The `tidegate-health-prober` binary.

use std::process::ExitCode;

use tidegate_service::Description;

fn main() -> ExitCode {
    let about = Description {
        name: "tidegate-health-prober",
        about: "Probes every endpoint of the fleet and publishes its observations.",
        version: env!("CARGO_PKG_VERSION"),
    };
    tidegate_service::main(about, tidegate_health_prober::run)
}
