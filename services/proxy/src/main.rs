//! The `tidegate-proxy` binary.

use std::process::ExitCode;

use tidegate_service::Description;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let about = Description {
        name: "tidegate-proxy",
        about: "Receives clients' requests and forwards them to the clusters in the region's route table.",
        version: env!("CARGO_PKG_VERSION"),
    };
    tidegate_service::main(about, tidegate_proxy::run)
}
