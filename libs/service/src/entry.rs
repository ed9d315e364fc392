//! The `main` of a service: settings, telemetry, the admin listener, the bus, the service, the last flush.

use std::{env, ffi::OsString, process::ExitCode, time::Duration};

use anyhow::Context as _;
use tidegate_bus::Bus;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    Admin, Context, Description, Ports, Registry, bus, files, healthcheck, metrics, problems,
    settings::{self, Loaded, LogFormat, Settings, SettingsError},
    shutdown, telemetry,
};

/// The exit code of a service that failed.
const FAILED: u8 = 1;
/// The exit code for wrong settings.
const WRONG_SETTINGS: u8 = 2;
/// How long the last flush of telemetry may take.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Runs a service on a runtime of one thread; a service that needs more threads starts its own. With `healthcheck` as the
/// first argument, checks whether the service that runs with the same settings is ready instead. `main` returns the result.
///
/// Every service has the same shape: it gets its settings, the bus (which may be away) and its context, adds its metrics and
/// readiness checks, starts its tasks, calls [`Admin::started`], works until `context.shutdown`, and stops its tasks.
///
/// Exit codes: 0 after a requested shutdown, 1 when the service failed, 2 when its settings are wrong (with one readable
/// line).
pub fn main<S: Settings, F: Future<Output = anyhow::Result<()>>>(
    about: Description,
    service: impl FnOnce(S, Bus, Context) -> F,
) -> ExitCode {
    let mut args: Vec<OsString> = env::args_os().collect();
    let checks = args.get(1).is_some_and(|first| first == "healthcheck");
    if checks {
        args.remove(1);
    }
    let loaded = match settings::load::<S>(&about, args, variables()) {
        Ok(loaded) => loaded,
        // Help and the version come as errors, too.
        Err(SettingsError::Flags(error)) => error.exit(),
        Err(error) => {
            eprintln!("{}: {error}", about.name);
            return ExitCode::from(WRONG_SETTINGS);
        }
    };
    let log_format = loaded.settings.common().log.format;
    let ran = if checks {
        healthcheck::ask(loaded.settings.common().admin.bind, "/readyz").map(drop)
    } else {
        run(about, loaded, service)
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report_failure(about.name, &error, log_format);
            ExitCode::from(FAILED)
        }
    }
}

/// Prints an error once: as JSON where programs read standard error and the log is on, else as a line for people.
fn report_failure(name: &str, error: &anyhow::Error, log_format: LogFormat) {
    match log_format {
        LogFormat::Json if tracing::enabled!(tracing::Level::ERROR) => {
            tracing::error!(error = format!("{error:#}"), "failed");
        }
        LogFormat::Json | LogFormat::Human => eprintln!("{name}: {error:#}"),
    }
}

/// The environment variables that are text.
fn variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn run<S: Settings, F: Future<Output = anyhow::Result<()>>>(
    about: Description,
    loaded: Loaded<S>,
    service: impl FnOnce(S, Bus, Context) -> F,
) -> anyhow::Result<()> {
    let Loaded { settings, ports_file } = loaded;
    let (common, instance) = (settings.common(), settings.instance());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let registry = Registry::default();
    metrics::observe_process(&registry, &about);
    let telemetry = telemetry::init(&common, about.name, &instance, &registry)?;
    let ran = runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        let admin = Admin::new(registry.clone());
        admin.allow_hosts(common.admin.allowed_hosts.clone());
        let bind = common.admin.bind;
        let listener = TcpListener::bind(bind)
            .await
            .with_context(|| format!("the admin listener cannot be bound to {bind} (admin.bind)"))?;
        let ports = Ports::new(ports_file);
        ports.add("admin", listener.local_addr()?).context("the ports file cannot be written")?;
        let stop_admin = CancellationToken::new();
        let serving = tokio::spawn({
            let (admin, stop) = (admin.clone(), stop_admin.clone());
            async move { admin.serve(listener, stop).await }
        });
        match files::raise_open_files() {
            Ok(files) => tracing::info!(files, "open files at most"),
            Err(error) => tracing::warn!(%error, "the limit of open files cannot be read"),
        }
        tracing::info!(service = about.name, version = about.version, instance, "starting");
        let ran = match bus::connect(&common.nats, &format!("{} {instance}", about.name)).await {
            Ok(bus) => {
                bus::observe(&registry, &bus);
                problems::observe(&registry, &admin);
                let logging = tokio::spawn(problems::log(admin.clone(), stop_admin.clone()));
                let context =
                    Context { instance, registry, admin, ports, spans: telemetry.spans(), shutdown };
                let ran = service(settings, bus, context).await;
                logging.abort();
                ran
            }
            Err(error) => Err(error.into()),
        };
        // `/livez` and `/metrics` respond until here, also while the service drains.
        stop_admin.cancel();
        _ = serving.await;
        ran
    });
    if ran.is_ok() {
        tracing::info!("stopped");
    }
    telemetry.shutdown(FLUSH_LIMIT);
    ran
}
