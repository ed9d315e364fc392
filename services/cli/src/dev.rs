//! `tidegate dev`: prober, route-computer and edge in one process, on the in-process bus.

use std::path::Path;

use anyhow::Context as _;
use tidegate_bus::{Bus, fleet::FleetStore};
use tidegate_health_prober::ProberSettings;
use tidegate_model::{EdgeName, RegionName, fleet::Fleet};
use tidegate_proxy::{PortHolder, ProxySettings};
use tidegate_route_computer::RouteComputerSettings;
use tidegate_service::{
    Admin, CommonSettings, Context, Ports, Registry, files, settings::LogSection, shutdown, telemetry,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::{DevOptions, WrongArgument},
    author, check,
    followed::Followed,
};

/// Runs until interrupted. A changed fleet file is applied at once; an invalid one is reported and changes nothing.
pub async fn dev(options: DevOptions) -> anyhow::Result<()> {
    let (text, fleet) = check::read(&options.file)?;
    let (edge, region) = edge_of(&fleet, options.edge.as_ref())?;
    if !options.take_over {
        check_ports(&fleet, &edge)?;
    }
    let registry = Registry::default();
    let common = CommonSettings {
        log: LogSection { filter: "info".to_owned(), ..LogSection::default() },
        ..CommonSettings::default()
    };
    let guard = telemetry::init(&common, "tidegate-dev", edge.as_str(), &registry)?;
    files::raise_open_files().context("the limit of open files cannot be read")?;
    let stop = shutdown::on_signals()?;
    let admin = Admin::new(registry.clone());
    let listener = TcpListener::bind(options.admin_bind).await.with_context(|| {
        format!("the admin listener cannot be bound to {} (--admin-bind)", options.admin_bind)
    })?;
    let ports = Ports::new(options.ports_file.clone());
    ports.add("admin", listener.local_addr()?)?;
    let context = Context {
        instance: edge.to_string(),
        registry: registry.clone(),
        admin: admin.clone(),
        ports,
        spans: guard.spans(),
        shutdown: stop.clone(),
    };

    let others = fleet.edges.len().saturating_sub(1);
    tracing::info!(%edge, %region, "runs this edge; {others} others of the file run elsewhere, or with --edge");
    let bus = Bus::in_process();
    FleetStore::new(&bus).put(&text, &author::process_author()).await?;
    let temporary = std::env::temp_dir().join(format!("tidegate-dev-{}", std::process::id()));
    let state_dir = options.proxy_state_dir.clone().unwrap_or_else(|| temporary.clone());

    let mut proxy = ProxySettings {
        name: Some(edge),
        region: Some(region.clone()),
        take_over: options.take_over,
        ..ProxySettings::default()
    };
    proxy.proxy.workers = usize::from(options.proxy_workers);
    proxy.proxy.state_dir = state_dir;
    let prober = ProberSettings {
        region: Some(region.clone()),
        name: Some("dev".parse()?),
        ..ProberSettings::default()
    };
    let computer = RouteComputerSettings {
        region: Some(region),
        name: Some("dev".parse()?),
        ..RouteComputerSettings::default()
    };

    let stop_admin = CancellationToken::new();
    // The proxy drains first; the other services run until it has.
    let stop_others = CancellationToken::new();
    let others = Context { shutdown: stop_others.clone(), ..context.clone() };
    let ran = {
        let proxy = async {
            let ran = tidegate_proxy::run(proxy, bus.clone(), context).await;
            stop_others.cancel();
            stop_admin.cancel();
            ran
        };
        tokio::try_join!(
            proxy,
            tidegate_health_prober::run(prober, bus.clone(), others.clone()),
            tidegate_route_computer::run(computer, bus.clone(), others),
            follow_file(&options.file, text, &bus, &stop_others),
            async {
                admin.serve(listener, stop_admin.clone()).await;
                Ok(())
            },
        )
    };
    if options.proxy_state_dir.is_none() {
        // Without `--proxy-state-dir` nothing is kept.
        _ = std::fs::remove_dir_all(&temporary);
    }
    ran.map(|_| ())
}

fn edge_of(fleet: &Fleet, wanted: Option<&EdgeName>) -> anyhow::Result<(EdgeName, RegionName)> {
    let found = match wanted {
        Some(name) => fleet
            .edges
            .get_key_value(name)
            .ok_or_else(|| WrongArgument(format!("the fleet has no edge {name} (--edge)")))?,
        None => fleet
            .edges
            .iter()
            .next()
            .ok_or_else(|| WrongArgument("the fleet has no edge: nothing would listen".to_owned()))?,
    };
    Ok((found.0.clone(), found.1.region.clone()))
}

/// Checks that the addresses of the edge's listeners are free: a service waits for an address, but `dev` has a user in front
/// of it.
fn check_ports(fleet: &Fleet, edge: &EdgeName) -> anyhow::Result<()> {
    for name in fleet.edges.get(edge).into_iter().flat_map(|edge| &edge.listeners) {
        let Some(listener) = fleet.listeners.get(name) else { continue };
        std::net::TcpListener::bind(listener.bind).with_context(|| {
            let holder = PortHolder::find(listener.bind);
            let holder =
                holder.map(|by| format!(", held by {by}; stop it first, or hand over with --take-over"));
            format!("the listener {name} cannot be bound to {}{}", listener.bind, holder.unwrap_or_default())
        })?;
    }
    Ok(())
}

/// Applies the file again whenever it has changed.
async fn follow_file(
    file: &Path,
    mut applied: String,
    bus: &Bus,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    if check::is_standard_input(file) {
        stop.cancelled().await;
        return Ok(());
    }
    let store = FleetStore::new(bus);
    let mut followed = Followed::new(file, applied.clone());
    while let Some((text, _)) = stop.run_until_cancelled(followed.fleet()).await {
        // It may equal the content before an invalid one.
        if text != applied {
            store.put(&text, &author::process_author()).await?;
            applied = text;
            tracing::info!(file = %file.display(), "applied the changed fleet file");
        }
    }
    Ok(())
}
