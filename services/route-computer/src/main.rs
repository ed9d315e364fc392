//! The `tidegate-route-computer` binary.

use std::process::ExitCode;

use tidegate_route_computer::RouteComputerSettings;
use tidegate_service::{Context, Description};

fn main() -> ExitCode {
    let about = Description {
        name: "tidegate-route-computer",
        about: "Computes its region's route table from the observations of health-probers.",
        version: env!("CARGO_PKG_VERSION"),
    };
    tidegate_service::main(about, |settings: RouteComputerSettings, context: Context| async move {
        let name = format!("{} {}", about.name, context.instance);
        let bus = tidegate_service::bus::connect(&settings.nats, &name).await?;
        tidegate_route_computer::run(settings, bus, context).await
    })
}
