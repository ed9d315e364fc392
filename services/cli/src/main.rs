//! The `tidegate` command: checks and applies fleet files, shows and overrides routing, and runs all services in one process.
//!
//! This crate must not decide anything that a service decides: it queries and commands services over the bus.
#![forbid(unsafe_code)]

mod apply;
mod arguments;
mod author;
mod check;
mod contradiction;
mod dev;
mod drain;
mod edge;
mod effect;
mod environment;
mod events;
mod explain;
mod fleet;
mod followed;
mod guard;
mod init;
mod link;
mod nats_probe;
mod origin;
mod permissions;
mod revisions;
mod say;
mod status;
mod what_if;
mod words;

use std::process::ExitCode;

use clap::Parser as _;

use arguments::{Arguments, BusOptions, Command, EdgeAction, FleetAction, WithheldChange, WrongArgument};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code for invalid files and arguments.
const WRONG_INPUT: u8 = 2;
/// The exit code when nothing failed and somebody has to look: a change was withheld, or a status shows a problem.
const NEEDS_ATTENTION: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    if let Err(error) = environment::check(variables) {
        eprintln!("tidegate: {error}");
        return ExitCode::from(WRONG_INPUT);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let ran = runtime.block_on(async {
        match arguments.command {
            Command::Init { file, force } => init::init(&file, force),
            Command::Check { file, strict } => check::check(&file, strict),
            Command::Schema { markdown } => check::schema(markdown),
            Command::Apply { file, watch: true, options, bus } => apply::watch(&file, options, &bus).await,
            Command::Apply { file, watch: false, options, bus } => apply::apply(&file, options, &bus).await,
            Command::Fleet { action, bus } => fleet_action(action, &bus).await,
            Command::Status { json, watch, bus } => status::status(json, watch, &bus).await,
            Command::Drain { target, options, bus } => drain::drain(target, options, &bus).await,
            Command::Undrain { target, options, bus } => drain::undrain(target, options, &bus).await,
            Command::Force { service, to, options, bus } => drain::force(service, to, options, &bus).await,
            Command::Unforce { service, options, bus } => drain::unforce(service, options, &bus).await,
            Command::Explain { service, region, json, bus } => {
                explain::explain(&service, &region, json, &bus).await
            }
            Command::WhatIf { options, bus } => what_if::what_if(options, &bus).await,
            Command::Events { follow, since, region, json, bus } => {
                events::events(follow, since, region.as_ref(), json, &bus).await
            }
            Command::Edge { action: EdgeAction::Reset { name }, bus } => edge::reset(&name, &bus).await,
            Command::BusPermissions { file, region, passwords } => {
                permissions::print(&file, region.as_ref(), passwords.as_deref())
            }
            Command::SigningKey { out } => edge::signing_key(&out),
            Command::Dev(options) => dev::dev(options).await,
            Command::Origin(options) => origin::origin(options).await,
        }
    });
    // Threads that still resolve a name or read a file are not awaited.
    runtime.shutdown_background();
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn fleet_action(action: FleetAction, bus: &BusOptions) -> anyhow::Result<()> {
    match action {
        FleetAction::Get { revision } => revisions::get(revision, bus).await,
        FleetAction::Diff { from, to, file, json } => {
            revisions::diff(from, to, file.as_deref(), json, bus).await
        }
        FleetAction::History { json } => revisions::history(json, bus).await,
        FleetAction::Rollback { revision, options } => revisions::rollback(revision, options, bus).await,
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    if say::is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    match error.downcast_ref::<check::WrongFile>() {
        Some(wrong) => {
            eprintln!("{}", wrong.to_string().trim_end());
            ExitCode::from(WRONG_INPUT)
        }
        None if error.is::<WrongArgument>() || error.is::<check::Unreadable>() => {
            eprintln!("tidegate: {error:#}");
            ExitCode::from(WRONG_INPUT)
        }
        None if error.is::<check::Warned>() => ExitCode::from(WRONG_INPUT),
        None if error.is::<status::NotWell>() => ExitCode::from(NEEDS_ATTENTION),
        None if error.is::<WithheldChange>() => {
            eprintln!("tidegate: {error:#}");
            ExitCode::from(NEEDS_ATTENTION)
        }
        None => {
            eprintln!("tidegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}
