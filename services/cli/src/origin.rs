//! `tidegate origin`: a server that responds with its own name.
//!
//! After `POST /control/fail` it responds to every request, including health checks, with 503, until
//! `POST /control/recover`.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::arguments::OriginOptions;
use crate::say::say_line;

/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Origin {
    name: String,
    body: Bytes,
    options: OriginOptions,
    fails: AtomicBool,
    requests: AtomicU64,
}

/// Serves until interrupted.
pub async fn origin(options: OriginOptions) -> anyhow::Result<()> {
    let shutdown = tidegate_service::shutdown::on_signals()?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("{} cannot be bound (--listen)", options.listen))?;
    let address = listener.local_addr()?;
    let name = options.name.clone().unwrap_or_else(|| address.to_string());
    let mut body = format!("{name}\n").into_bytes();
    body.resize(body.len().max(options.size), b'.');
    tidegate_service::Ports::new(options.ports_file.clone()).add("origin", address)?;
    say_line(format_args!("{name} answers on http://{address}"))?;
    let origin = Arc::new(Origin {
        name,
        body: body.into(),
        options,
        fails: AtomicBool::new(false),
        requests: AtomicU64::new(0),
    });
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // A shortage of file descriptors passes; spinning would not help.
                Err(_) => { tokio::time::sleep(ACCEPT_PAUSE).await; continue }
            },
            _ = connections.join_next(), if !connections.is_empty() => continue,
            () = shutdown.cancelled() => return Ok(()),
        };
        // A connection that fails here fails at its first read as well.
        _ = stream.set_nodelay(true);
        let origin = origin.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| answer(origin.clone(), request));
            // A client that aborts is not an origin's concern.
            _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    origin: Arc<Origin>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    if head.method == Method::POST && head.uri.path().starts_with("/control/") {
        let status = match head.uri.path() {
            "/control/fail" => {
                origin.fails.store(true, Relaxed);
                StatusCode::NO_CONTENT
            }
            "/control/recover" => {
                origin.fails.store(false, Relaxed);
                StatusCode::NO_CONTENT
            }
            _ => StatusCode::NOT_FOUND,
        };
        return Ok(reply(&origin, status, Bytes::new()));
    }
    // The body is read whole, as an application would, so that a connection can be used again.
    let read = body.collect().await.map(|collected| collected.to_bytes().len()).unwrap_or_default();
    origin.requests.fetch_add(1, Relaxed);
    if let Some(delay) = origin.options.delay {
        tokio::time::sleep(delay).await;
    }
    if origin.fails.load(Relaxed) {
        return Ok(reply(&origin, StatusCode::SERVICE_UNAVAILABLE, Bytes::from_static(b"told to fail\n")));
    }
    let mut response = reply(&origin, StatusCode::OK, origin.body.clone());
    if read > 0 {
        response.headers_mut().insert("x-origin-read", read.into());
    }
    Ok(response)
}

fn reply(origin: &Origin, status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    if let Ok(name) = http::HeaderValue::from_str(&origin.name) {
        response.headers_mut().insert("x-origin", name);
    }
    response
}
