//! Connects a service to the bus: settings, metrics, readiness and the claim of its name.

use tidegate_bus::{Bus, BusError, Credentials, NatsSettings, NatsTls, claims::NameConflictMonitor, clock};

use crate::{Context, Registry, settings::NatsSection};

/// Connects to the bus, without waiting for it. The server shows `name`.
///
/// # Errors
/// When an address or the credentials can't be used.
pub async fn connect(settings: &NatsSection, name: &str) -> Result<Bus, BusError> {
    let credentials = credentials(settings)?;
    let files =
        [("nats.ca", &settings.ca), ("nats.certificate", &settings.certificate), ("nats.key", &settings.key)];
    for (setting, file) in files {
        if let Some(file) = file {
            std::fs::File::open(file)
                .map_err(|error| BusError::Credentials(format!("{}: {error} ({setting})", file.display())))?;
        }
    }
    let client_certificate = settings.certificate.clone().zip(settings.key.clone());
    let tls = (settings.ca.is_some() || client_certificate.is_some())
        .then(|| NatsTls { ca: settings.ca.clone(), client_certificate });
    let mut nats = NatsSettings::new(settings.servers.clone(), name);
    nats.credentials = credentials;
    nats.tls = tls;
    nats.bucket_replicas = settings.bucket_replicas;
    Bus::connect(nats).await
}

/// The credentials of the settings.
fn credentials(settings: &NatsSection) -> Result<Credentials, BusError> {
    Ok(match settings {
        NatsSection { credentials: Some(file), .. } => Credentials::File(file.clone()),
        NatsSection { token: Some(token), .. } => Credentials::Token(token.clone()),
        NatsSection { user: Some(user), password: Some(password), .. } => {
            Credentials::Password { user: user.clone(), password: password.clone() }
        }
        NatsSection { user: Some(user), password_file: Some(file), .. } => {
            let password = std::fs::read_to_string(file).map_err(|error| {
                BusError::Credentials(format!("{}: {error} (nats.password_file)", file.display()))
            })?;
            Credentials::Password { user: user.clone(), password: password.trim_end().to_owned() }
        }
        _ => Credentials::None,
    })
}

/// Adds the metrics of the bus: connection, reconnects, lost messages, dropped events.
pub fn observe(registry: &Registry, bus: &Bus) {
    let bus = bus.clone();
    registry.collect(move |samples| {
        let state = bus.state();
        let away = state.away_for().unwrap_or_default().as_secs_f64();
        let connected = f64::from(u8::from(state.connected()));
        samples.gauge("tidegate_bus_connected", "Whether there is a connection to the bus.", &[], connected);
        samples.gauge(
            "tidegate_bus_away_seconds",
            "How long there has been no connection to the bus; 0 while connected.",
            &[],
            away,
        );
        let (name, help) = ("tidegate_bus_reconnects_total", "Reconnects to the bus.");
        samples.counter(name, help, &[], state.reconnects as f64);
        let (name, help) =
            ("tidegate_bus_lost_messages_total", "Messages lost because they were not read in time.");
        samples.counter(name, help, &[], bus.lost_messages() as f64);
        let (name, help) =
            ("tidegate_bus_dropped_events_total", "Events that were dropped because the bus was away.");
        samples.counter(name, help, &[], bus.dropped_events() as f64);
    });
}

/// A readiness check: the bus is connected and refuses no publication of this user.
pub fn check(bus: &Bus) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
    let bus = bus.clone();
    move || match bus.state().away_for() {
        None => bus.refusal().map_or(Ok(()), |why| Err(format!("the bus server refuses this user: {why}"))),
        Some(away_for) => Err(BusError::Away { away_for, why: bus.connect_error() }.to_string()),
    }
}

/// Claims the name of this process, `what` (such as `edge edge-1 of us-east`), on `subject`, until shutdown, and says in the
/// claim what is wrong with it. A conflicting claim is logged and shown by a metric.
///
/// # Errors
/// As for [`NameConflictMonitor::start`].
pub async fn claim_name(
    context: &Context,
    bus: &Bus,
    subject: String,
    what: String,
) -> Result<NameConflictMonitor, BusError> {
    let admin = context.admin.clone();
    let problems = move || admin.problems(clock::now());
    let monitor = NameConflictMonitor::start(bus, subject, what, problems, context.shutdown.clone()).await?;
    let shown = monitor.clone();
    context.registry.collect(move |samples| {
        let (name, help) =
            ("tidegate_name_shared", "Whether another process of this kind claims the same name.");
        samples.gauge(name, help, &[], f64::from(u8::from(shown.conflicting_claim().is_some())));
    });
    Ok(monitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_may_be_in_a_file() {
        let file = std::env::temp_dir().join(format!("tidegate-password-{}", std::process::id()));
        let given = |password: Option<&str>| NatsSection {
            user: Some("edge-1".to_owned()),
            password: password.map(str::to_owned),
            password_file: Some(file.clone()),
            ..NatsSection::default()
        };
        std::fs::write(&file, "secret\n").unwrap();
        let read = credentials(&given(None)).unwrap();
        assert!(
            matches!(read, Credentials::Password { user, password } if user == "edge-1" && password == "secret")
        );
        std::fs::remove_file(&file).unwrap();
        assert!(credentials(&given(None)).unwrap_err().to_string().contains("nats.password_file"));

        assert_eq!(given(None).check(), Ok(()));
        assert_eq!(given(Some("x")).check().unwrap_err().0, "nats.password_file");
    }
}
