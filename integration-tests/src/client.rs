//! One request on a connection of its own: for admin pages, and for tests that look at a single answer.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Sends a request and reads its answer whole.
///
/// # Errors
/// When there is no connection, or no whole answer in time.
pub async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Bytes>> {
    let exchange = async {
        let stream = TcpStream::connect(to).await.with_context(|| format!("{to} cannot be reached"))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Response::from_parts(head, body))
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            ended = connection => {
                ended.with_context(|| format!("the connection to {to} broke"))?;
                answer.await
            }
        }
    };
    tokio::time::timeout(LIMIT, exchange).await.with_context(|| format!("{to} did not answer in time"))?
}

/// A GET of `path` at `host`.
///
/// # Errors
/// As for [`send`].
pub async fn get(to: SocketAddr, host: &str, path: &str) -> anyhow::Result<Response<Bytes>> {
    let request = Request::get(path).header(header::HOST, host).header(header::CONNECTION, "close");
    send(to, request.body(Full::default())?).await
}

/// A POST of `body` to `path` at `host`.
///
/// # Errors
/// As for [`send`].
pub async fn post(
    to: SocketAddr,
    host: &str,
    path: &str,
    body: &'static str,
) -> anyhow::Result<Response<Bytes>> {
    let request = Request::post(path).header(header::HOST, host).header(header::CONNECTION, "close");
    send(to, request.body(Full::new(Bytes::from_static(body.as_bytes())))?).await
}
