//! The connection to NATS.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{ConnectOptions, Event, HeaderMap, HeaderValue, connection::State, jetstream};
use bytes::Bytes;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    BusError, BusState, Subscription, TraceContext, backoff,
    deadline::within,
    limit::{ProblemLog, ProblemNotice},
    lock::lock,
    message::{Inner, PART, Part},
    transport::trace::{TRACEPARENT, TRACESTATE},
};

pub(crate) mod history;
mod settings;
pub(crate) mod store;

use settings::parse_server;
pub use settings::{Credentials, NatsSettings, NatsTls};

/// How long a call on a bucket or on the history may take.
pub(crate) const BUCKET_LIMIT: Duration = Duration::from_secs(2);
/// The prefix of the subjects of replies.
pub(crate) const INBOX: &str = "_INBOX.tidegate";
/// How long a publication may wait for space in the client's queue.
const SEND_LIMIT: Duration = Duration::from_secs(2);
/// A server that sends nothing for three of these intervals counts as dead.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(2);
/// The client may drop events when many come at once, so its state is also checked at this interval.
const STATE_CHECK: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct NatsBus {
    client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) bucket_replicas: usize,
    lost: Arc<AtomicU64>,
    /// The number of history events that were dropped because the bus was away.
    pub(crate) dropped_events: AtomicU64,
    state: watch::Receiver<BusState>,
    /// The last refusal of the server.
    refused: watch::Receiver<String>,
    /// Why the last attempt to connect failed; nothing while connected.
    connect_error: Arc<Mutex<Option<String>>>,
    refusal: Refusal,
    log: Arc<Mutex<ConnectionLog>>,
    inbox: String,
    monitor: JoinHandle<()>,
}

impl NatsBus {
    pub(crate) async fn connect(settings: NatsSettings) -> Result<NatsBus, BusError> {
        if settings.servers.is_empty() {
            return Err(BusError::NoServer);
        }
        let servers =
            settings.servers.iter().map(|server| parse_server(server)).collect::<Result<Vec<_>, _>>()?;
        let lost = Arc::new(AtomicU64::new(0));
        let changed = Arc::new(Notify::new());
        let (events_lost, events_changed) = (lost.clone(), changed.clone());
        let (refuse, refused) = watch::channel(String::new());
        let connect_error = Arc::new(Mutex::new(None));
        let last_connect_error = connect_error.clone();
        let log = Arc::new(Mutex::new(ConnectionLog::default()));
        let connection_log = log.clone();
        let refusal = Arc::new(Mutex::new(None));
        let last_refusal: Refusal = refusal.clone();
        let inbox = inbox(&settings.credentials);
        let options = with_credentials(ConnectOptions::new(), settings.credentials).await?;
        let options = with_tls(options, settings.tls)
            .name(&settings.name)
            .custom_inbox_prefix(&inbox)
            .retry_on_initial_connect()
            .connection_timeout(CONNECT_TIMEOUT)
            // The limit of each call is shorter and comes first: its error says what the server refused.
            .request_timeout(Some(BUCKET_LIMIT * 2))
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(settings.subscription_capacity)
            .reconnect_delay_callback(|attempts| {
                // The first attempt has jitter, too: all clients of a server see its death at once.
                backoff::delay(u32::try_from(attempts).unwrap_or(u32::MAX), FIRST_RETRY / 2, MAX_RETRY)
            })
            .event_callback(move |event| {
                match event {
                    Event::SlowConsumer(_) => _ = events_lost.fetch_add(1, Ordering::Relaxed),
                    Event::ServerError(error) => {
                        let reason = error.to_string();
                        lock(&log).record_refusal(&reason);
                        *lock(&last_refusal) = Some((reason.clone(), Instant::now()));
                        refuse.send_replace(reason);
                    }
                    Event::ClientError(error) => {
                        let why = describe(&error);
                        lock(&log).record_connect_error(&why);
                        *lock(&last_connect_error) = Some(why);
                    }
                    Event::Connected => {
                        lock(&log).record_connected();
                        *lock(&last_connect_error) = None;
                        events_changed.notify_one();
                    }
                    Event::Disconnected | Event::Closed => events_changed.notify_one(),
                    Event::LameDuckMode | Event::Draining => {}
                }
                std::future::ready(())
            });
        // With `retry_on_initial_connect` this does not wait for a server; only malformed addresses fail.
        let client = options.connect(servers).await.map_err(|error| BusError::Address {
            address: settings.servers.join(","),
            reason: error.to_string(),
        })?;
        let (sender, state) = watch::channel(BusState { away_since: Some(Instant::now()), reconnects: 0 });
        let monitor = tokio::spawn(watch_connection(client.clone(), changed, sender));
        let jetstream = jetstream::new(client.clone());
        Ok(NatsBus {
            client,
            jetstream,
            bucket_replicas: settings.bucket_replicas,
            lost,
            dropped_events: AtomicU64::new(0),
            state,
            refused,
            connect_error,
            refusal,
            log: connection_log,
            inbox,
            monitor,
        })
    }

    pub(crate) fn watch_state(&self) -> watch::Receiver<BusState> {
        self.state.clone()
    }

    pub(crate) fn lost_messages(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The prefix of the subjects of replies to this connection's requests, which no other user may subscribe to.
    pub(crate) fn inbox(&self) -> &str {
        &self.inbox
    }

    pub(crate) fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Fails while there is no connection.
    pub(crate) fn check_connected(&self) -> Result<(), BusError> {
        if self.client.connection_state() == State::Connected {
            return Ok(());
        }
        let away_for = self.state.borrow().away_for().unwrap_or_default();
        Err(BusError::Away { away_for, why: self.connect_error() })
    }

    /// What the server refused within [`REFUSAL_LIFETIME`].
    pub(crate) fn refusal(&self) -> Option<String> {
        let refusal = lock(&self.refusal);
        refusal.as_ref().filter(|(_, at)| at.elapsed() < REFUSAL_LIFETIME).map(|(why, _)| why.clone())
    }

    /// All that the server has refused.
    pub(crate) fn refusals(&self) -> Vec<String> {
        lock(&self.log).refusals.keys().cloned().collect()
    }

    /// Why the last attempt to connect failed; nothing while connected.
    pub(crate) fn connect_error(&self) -> Option<String> {
        lock(&self.connect_error).clone()
    }

    /// Ends `call` after `limit`. The server does not respond to a call without permission but reports the refusal separately:
    /// the error then names what was refused meanwhile.
    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        what: impl Fn() -> String,
        call: impl Future<Output = Result<T, BusError>>,
    ) -> Result<T, BusError> {
        let mut refused = self.refused.clone();
        refused.mark_unchanged();
        match within(limit, &what, call).await {
            Err(BusError::TimedOut { .. }) if refused.has_changed().unwrap_or_default() => {
                Err(BusError::Refused { what: what(), reason: refused.borrow().clone() })
            }
            ended => ended,
        }
    }

    pub(crate) async fn subscribe(&self, pattern: &str) -> Result<Subscription, BusError> {
        let subscribed = async {
            match self.client.subscribe(pattern.to_owned()).await {
                Ok(subscriber) => Ok(Subscription(Inner::Nats(subscriber))),
                Err(error) if error.kind() == async_nats::SubscribeErrorKind::InvalidSubject => {
                    Err(BusError::Subject(pattern.to_owned()))
                }
                Err(_) => Err(BusError::Closed),
            }
        };
        within(SEND_LIMIT, || format!("subscribing to {pattern}"), subscribed).await
    }

    pub(crate) async fn send(
        &self,
        subject: &str,
        reply: Option<&str>,
        trace: Option<&TraceContext>,
        part: Option<Part>,
        body: Bytes,
    ) -> Result<(), BusError> {
        self.check_connected()?;
        let size = body.len();
        let headers = headers(trace, part);
        let (to, reply) = (subject.to_owned(), reply.map(str::to_owned));
        let sent = async {
            let sent = match (reply, headers) {
                (Some(reply), Some(h)) => {
                    self.client.publish_with_reply_and_headers(to, reply, h, body).await
                }
                (Some(reply), None) => self.client.publish_with_reply(to, reply, body).await,
                (None, Some(headers)) => self.client.publish_with_headers(to, headers, body).await,
                (None, None) => self.client.publish(to, body).await,
            };
            sent.map_err(|error| match error.kind() {
                async_nats::PublishErrorKind::MaxPayloadExceeded => {
                    BusError::TooLarge { subject: subject.to_owned(), size, limit: self.max_payload() }
                }
                async_nats::PublishErrorKind::InvalidSubject => BusError::Subject(subject.to_owned()),
                async_nats::PublishErrorKind::Send => BusError::Closed,
            })
        };
        within(SEND_LIMIT, || format!("publishing to {subject}"), sent).await
    }

    /// Waits until everything sent before is written to the connection.
    pub(crate) async fn flush(&self) -> Result<(), BusError> {
        let flushed = async { self.client.flush().await.map_err(|_| BusError::Closed) };
        within(SEND_LIMIT, || "flushing publications".to_owned(), flushed).await
    }
}

impl Drop for NatsBus {
    fn drop(&mut self) {
        self.monitor.abort();
    }
}

/// Describes why an attempt to connect failed: the client's error names no more than the kind.
fn describe(error: &async_nats::ClientError) -> String {
    match error {
        async_nats::ClientError::Other(kind) => match kind.as_str() {
            "IO error" => "no server accepts the connection".to_owned(),
            "timed out" => "no server responds in time".to_owned(),
            "DNS error" => "the server's name is not found".to_owned(),
            "TLS error" => {
                "the TLS handshake with the server failed (check its name, authorities, certificates)"
                    .to_owned()
            }
            other => other.to_owned(),
        },
        error => error.to_string(),
    }
}

/// The last refusal of the server, and when it came.
type Refusal = Arc<Mutex<Option<(String, Instant)>>>;

/// How long a refusal is reported: a client that keeps trying is refused again.
const REFUSAL_LIFETIME: Duration = Duration::from_secs(5);

/// The maximum number of refusals that are distinguished. A client has few subjects.
const MOST_REFUSALS: usize = 256;

/// Logs why the server cannot be reached, and what it refuses: both are tried again and again.
#[derive(Debug, Default)]
struct ConnectionLog {
    connecting: ProblemLog,
    refusals: HashMap<String, ProblemLog>,
}

impl ConnectionLog {
    /// Records why an attempt to connect failed.
    fn record_connect_error(&mut self, why: &str) {
        match self.connecting.record(Some(why), Instant::now()) {
            Some(ProblemNotice::Began) => tracing::warn!(why, "the bus cannot be reached"),
            Some(ProblemNotice::Lasts(lasts)) => {
                tracing::warn!(why, ?lasts, "the bus still cannot be reached");
            }
            Some(ProblemNotice::Over(_)) | None => {}
        }
    }

    /// Records that there is a connection, which is logged elsewhere.
    fn record_connected(&mut self) {
        self.connecting = ProblemLog::default();
    }

    /// Records what the server refused.
    fn record_refusal(&mut self, reason: &str) {
        if self.refusals.len() >= MOST_REFUSALS && !self.refusals.contains_key(reason) {
            self.refusals.clear();
        }
        let log = self.refusals.entry(reason.to_owned()).or_default();
        if log.record(Some(reason), Instant::now()).is_some() {
            tracing::warn!(error = reason, "the bus server refused something");
        }
    }
}

fn headers(trace: Option<&TraceContext>, part: Option<Part>) -> Option<HeaderMap> {
    if trace.is_none() && part.is_none() {
        return None;
    }
    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: &str| {
        // A text that can't be a header's value (one with a line break) is omitted.
        if let Ok(value) = value.parse::<HeaderValue>() {
            headers.insert(name, value);
        }
    };
    if let Some(trace) = trace {
        set(TRACEPARENT, &trace.traceparent);
        if let Some(state) = &trace.tracestate {
            set(TRACESTATE, state);
        }
    }
    if let Some(part) = part {
        set(PART, &part.to_header());
    }
    Some(headers)
}

/// The inbox of a client with these credentials: permissions let a user subscribe to its own inbox only. Relays between
/// regions pass all of them.
fn inbox(credentials: &Credentials) -> String {
    match credentials {
        Credentials::Password { user, .. } => {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            let user: String = user.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
            format!("{INBOX}.{user}")
        }
        Credentials::None | Credentials::File(_) | Credentials::Token(_) => INBOX.to_owned(),
    }
}

async fn with_credentials(
    options: ConnectOptions,
    credentials: Credentials,
) -> Result<ConnectOptions, BusError> {
    Ok(match credentials {
        Credentials::None => options,
        Credentials::Password { user, password } => options.user_and_password(user, password),
        Credentials::Token(token) => options.token(token),
        Credentials::File(path) => options
            .credentials_file(&path)
            .await
            .map_err(|error| BusError::Credentials(format!("{}: {error}", path.display())))?,
    })
}

fn with_tls(options: ConnectOptions, tls: Option<NatsTls>) -> ConnectOptions {
    let Some(tls) = tls else { return options };
    let options = options.require_tls(true);
    let options = match tls.ca {
        Some(ca) => options.add_root_certificates(ca),
        None => options,
    };
    match tls.client_certificate {
        Some((chain, key)) => options.add_client_certificate(chain, key),
        None => options,
    }
}

/// Maintains the state that [`NatsBus::watch_state`] shows.
async fn watch_connection(client: async_nats::Client, changed: Arc<Notify>, state: watch::Sender<BusState>) {
    loop {
        let connected = client.connection_state() == State::Connected;
        let connects = client.statistics().connects.load(Ordering::Relaxed);
        state.send_if_modified(|state| {
            let before = *state;
            state.reconnects = connects.saturating_sub(1);
            state.away_since =
                if connected { None } else { state.away_since.or_else(|| Some(Instant::now())) };
            if before.connected() != connected {
                match before.away_for() {
                    Some(away) => tracing::info!(?away, reconnects = state.reconnects, "the bus is there"),
                    None => tracing::warn!("the bus is away"),
                }
            }
            before != *state
        });
        _ = tokio::time::timeout(STATE_CHECK, changed.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_an_inbox_of_its_own() {
        let of =
            |user: &str| inbox(&Credentials::Password { user: user.to_owned(), password: String::new() });
        assert_eq!(of("edge-us-1"), "_INBOX.tidegate.edge-us-1");
        assert_eq!(of("a.b *>"), "_INBOX.tidegate.a_b___");
        assert_eq!(inbox(&Credentials::None), "_INBOX.tidegate");
    }
}
