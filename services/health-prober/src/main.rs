//! The `tidegate-health-prober` binary.

use std::process::ExitCode;

use tidegate_health_prober::{ProberSettings, run_with};
use tidegate_service::{Context, Description, bus};

const ABOUT: Description = Description {
    name: "tidegate-health-prober",
    about: "Probes every endpoint of the fleet and publishes its observations.",
    version: env!("CARGO_PKG_VERSION"),
};

fn main() -> ExitCode {
    tidegate_service::main(ABOUT, serve)
}

async fn serve(settings: ProberSettings, context: Context) -> anyhow::Result<()> {
    let bus = bus::connect(&settings.nats, &format!("{} {}", ABOUT.name, context.instance)).await?;
    bus::observe(&context.registry, &bus);
    context.admin.check("bus", bus::check(&bus));
    context.admin.started();
    run_with(settings, bus, &context.registry, context.shutdown).await
}
