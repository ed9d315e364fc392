//! The `tidegate-route-computer` binary.

use std::process::ExitCode;

use tidegate_service::Description;

fn main() -> ExitCode {
    let about = Description {
        name: "tidegate-route-computer",
        about: "Computes its region's route table from the observations of health-probers.",
        version: env!("CARGO_PKG_VERSION"),
    };
    tidegate_service::main(about, tidegate_route_computer::run)
}
