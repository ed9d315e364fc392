//! One connection of the load: takes requests as they are due, connects again whenever it broke.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle};

use super::{
    Shared,
    record::{Method, Outcome, Record},
};
use crate::plan::HOST;

/// One POST in so many requests.
const POST_EVERY: u64 = 4;
/// How long to wait for an answer: longer than any service's own limit.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The body of a POST.
const BODY: &[u8] = b"{\"item\":\"umbrella\",\"count\":1}";

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sends requests until the load is stopped.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut connection = None;
    while let Some((number, due)) = shared.take() {
        tokio::time::sleep_until(shared.began + due).await;
        let method = if number % POST_EVERY == POST_EVERY - 1 { Method::Post } else { Method::Get };
        let exchange = exchange(&shared, &mut connection, method);
        let (outcome, id) = match tokio::time::timeout(ANSWER_LIMIT, exchange).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => {
                connection = None;
                (Outcome::Broken(format!("{error:#}")), None)
            }
            Err(_) => {
                connection = None;
                (Outcome::Broken("no answer".to_owned()), None)
            }
        };
        let latency = shared.began.elapsed().saturating_sub(due);
        shared.record(Record { method, due_at: shared.at(due), latency, outcome, id });
    }
}

async fn exchange(
    shared: &Shared,
    connection: &mut Option<Connection>,
    method: Method,
) -> anyhow::Result<(Outcome, Option<String>)> {
    let request = Request::builder().uri("/orders").header(header::HOST, HOST);
    let request = match method {
        Method::Get => request.method("GET").body(Full::default()),
        Method::Post => request.method("POST").body(Full::new(Bytes::from_static(BODY))),
    }?;
    // An idle connection that the edge has closed is no failure of a request: nothing was sent on it.
    let usable = match connection {
        Some(open) => open.sender.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        *connection = Some(connect(shared).await?);
    }
    let Some(open) = connection else { anyhow::bail!("no connection") };
    let (head, body) = open.sender.send_request(request).await?.into_parts();
    body.collect().await?;
    let field = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let outcome = Outcome::Answered { status: head.status.as_u16(), origin: field("x-origin") };
    Ok((outcome, field("x-request-id")))
}

async fn connect(shared: &Shared) -> anyhow::Result<Connection> {
    let stream = TcpStream::connect(shared.plan.target).await?;
    stream.set_nodelay(true)?;
    let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    // How it ends, its requests learn.
    let driver = tokio::spawn(async move { _ = driver.await });
    Ok(Connection { sender, driver })
}
