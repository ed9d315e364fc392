//! The admin listener: `/livez`, `/readyz`, `/metrics`, and what a service adds.
//!
//! It is for operators and probes, on an address of its own, and read-only. It refuses a browser whose attacker lets a name
//! resolve to this address (DNS rebinding): see `hosts`.

mod hosts;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate_bus::{claims::Problem, clock::Timestamp};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{Registry, metrics::Counter};

/// The most concurrent connections; more wait.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send a request's head, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The lifetime of a connection: a slow reader must not hold a connection that others wait for.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// How long a client may take to read a response once the service shuts down.
const END_LIMIT: Duration = Duration::from_secs(1);

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
type Warning = Arc<dyn Fn() -> Option<String> + Send + Sync>;
type Route = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

/// The admin listener. Clones share it; checks and pages may be added at any time.
#[derive(Clone)]
pub struct Admin(Arc<Inner>);

struct Inner {
    refused: Counter,
    registry: Registry,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    started: bool,
    allowed_hosts: Vec<String>,
    checks: BTreeMap<String, Check>,
    warnings: BTreeMap<String, Warning>,
    intents: BTreeMap<String, Warning>,
    routes: BTreeMap<String, Route>,
    /// Since when each present problem has lasted, by check.
    since: BTreeMap<String, Timestamp>,
}

/// The results of all checks.
struct Results {
    checks: BTreeMap<String, Result<(), String>>,
    warnings: BTreeMap<String, String>,
    intents: BTreeMap<String, String>,
}

/// A response.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The media type.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// A JSON document with status 200.
    pub fn json(document: &impl serde::Serialize) -> Reply {
        match serde_json::to_vec(document) {
            Ok(body) => Reply { status: StatusCode::OK, content_type: "application/json", body: body.into() },
            Err(error) => Reply::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// Text.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Reply {
        Reply { status, content_type: "text/plain; charset=utf-8", body: text.into().into() }
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.shown();
        f.debug_struct("Admin")
            .field("started", &shown.started)
            .field("checks", &shown.checks.keys())
            .field("routes", &shown.routes.keys())
            .finish()
    }
}

impl Admin {
    /// An admin listener that serves the metrics of `registry`. It is not ready before [`Admin::started`].
    pub fn new(registry: Registry) -> Admin {
        let refused = registry.counter(
            "tidegate_admin_requests_refused_total",
            "Requests to the admin listener by a host name that it does not accept.",
            &[("reason", "host")],
        );
        Admin(Arc::new(Inner { refused, registry, shown: Mutex::default() }))
    }

    /// Accepts these host names, too (`admin.allowed_hosts`).
    pub fn allow_hosts(&self, hosts: Vec<String>) {
        self.shown().allowed_hosts = hosts;
    }

    /// Adds a readiness check, whose error is the reason why the service is not ready. It must not block.
    pub fn check(&self, name: &str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        self.shown().checks.insert(name.to_owned(), Arc::new(check));
    }

    /// Adds a warning that `/readyz` reports and that does not affect readiness: a problem that all instances may have at once
    /// must not take all of them out of rotation. It must not block.
    pub fn warn(&self, name: &str, warning: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.shown().warnings.insert(name.to_owned(), Arc::new(warning));
    }

    /// Adds a reason for not being ready that is intended, such as draining, and so no problem. It must not block.
    pub fn intend(&self, name: &str, reason: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.shown().intents.insert(name.to_owned(), Arc::new(reason));
    }

    /// What is wrong now: failed checks and warnings, each since the first call that found it.
    pub fn problems(&self, now: Timestamp) -> Vec<Problem> {
        let Results { checks, warnings, .. } = self.results();
        let failed = checks.into_iter().filter_map(|(check, result)| Some((check, result.err()?, true)));
        let found: Vec<(String, String, bool)> =
            failed.chain(warnings.into_iter().map(|(check, reason)| (check, reason, false))).collect();
        let since = &mut self.shown().since;
        since.retain(|check, _| found.iter().any(|(found, ..)| found == check));
        let problems = found.into_iter().map(|(check, reason, is_blocking)| {
            let since = *since.entry(check.clone()).or_insert(now);
            Problem { check, reason, since, is_blocking }
        });
        problems.collect()
    }

    /// The names of all checks and warnings.
    pub fn check_names(&self) -> Vec<String> {
        let shown = self.shown();
        shown.checks.keys().chain(shown.warnings.keys()).cloned().collect()
    }

    fn results(&self) -> Results {
        let (started, checks, warnings, intents) = {
            let shown = self.shown();
            (shown.started, shown.checks.clone(), shown.warnings.clone(), shown.intents.clone())
        };
        let mut results = BTreeMap::new();
        if !started {
            results.insert("start".to_owned(), Err("the service is starting".to_owned()));
        }
        results.extend(checks.into_iter().map(|(name, check)| (name, check())));
        let said = |reasons: BTreeMap<String, Warning>| {
            reasons.into_iter().filter_map(|(name, reason)| Some((name, reason()?))).collect()
        };
        Results { checks: results, warnings: said(warnings), intents: said(intents) }
    }

    /// Adds a page for GET on `path`; it gets the request's query, empty when there is none. It must not block.
    pub fn route(&self, path: &str, page: impl Fn(&str) -> Reply + Send + Sync + 'static) {
        self.shown().routes.insert(path.to_owned(), Arc::new(page));
    }

    /// Marks the service as started: from now on it is ready when all checks pass.
    pub fn started(&self) {
        self.shown().started = true;
    }

    /// Whether the service is ready, and the body of `/readyz`.
    pub fn readiness(&self) -> (bool, serde_json::Value) {
        let Results { checks, warnings, intents } = self.results();
        let ready = checks.values().all(Result::is_ok) && intents.is_empty();
        let ended =
            checks.into_iter().map(|(name, result)| (name, result.err().unwrap_or_else(|| "ok".to_owned())));
        let results: BTreeMap<String, String> = ended.chain(intents).collect();
        let mut body = serde_json::json!({ "ready": ready, "checks": results });
        if !warnings.is_empty() {
            body["warnings"] = serde_json::json!(warnings);
        }
        (ready, body)
    }

    /// Serves on a listener until `stop`, then ends after the responses in progress, a second later at most.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&listener, &room) => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let (stream, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // A shortage of file descriptors passes; spinning would not help.
                    tracing::warn!(%error, "the admin listener could not accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (admin, stop) = (self.clone(), stop.clone());
            connections.spawn(async move {
                let _permit = permit;
                let service = service_fn(move |request| {
                    let admin = admin.clone();
                    async move { Ok::<_, Infallible>(admin.answer(&request)) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                    () = tokio::time::sleep(CONNECTION_LIMIT) => {
                        connection.as_mut().graceful_shutdown();
                        // A connection that does not end by itself is dropped, with what its client does not read.
                        tokio::time::timeout(END_LIMIT, connection).await.unwrap_or(Ok(()))
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "an admin connection ended badly");
                }
            });
        }
        let ended = async { while connections.join_next().await.is_some() {} };
        // The remaining connections are dropped, with what their clients do not read.
        _ = tokio::time::timeout(END_LIMIT, ended).await;
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let reply = if !hosts::is_allowed(request, &self.shown().allowed_hosts) {
            self.0.refused.add(1);
            Reply::text(
                StatusCode::MISDIRECTED_REQUEST,
                "this listener does not accept this host name: use its address, or add the name to admin.allowed_hosts\n",
            )
        } else if matches!(*request.method(), Method::GET | Method::HEAD) {
            self.page(request.uri().path(), request.uri().query().unwrap_or_default())
        } else {
            Reply::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n")
        };
        let mut response = Response::new(Full::new(reply.body));
        *response.status_mut() = reply.status;
        let content_type = header::HeaderValue::from_static(reply.content_type);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        if reply.status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    fn page(&self, path: &str, query: &str) -> Reply {
        match path {
            "/livez" => Reply::text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let (ready, body) = self.readiness();
                let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Reply { status, ..Reply::json(&body) }
            }
            "/metrics" => Reply {
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                ..Reply::text(StatusCode::OK, self.0.registry.to_text())
            },
            path => {
                let route = self.shown().routes.get(path).cloned();
                match route {
                    Some(route) => route(query),
                    None => Reply::text(StatusCode::NOT_FOUND, self.contents()),
                }
            }
        }
    }

    fn contents(&self) -> String {
        let own = ["/livez", "/readyz", "/metrics"].map(str::to_owned);
        let paths: Vec<String> = own.into_iter().chain(self.shown().routes.keys().cloned()).collect();
        format!("there is: {}\n", paths.join(" "))
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _): (_, SocketAddr) = listener.accept().await?;
    Ok((stream, permit))
}
