//! Probes over HTTP/2.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http2::{Connection as Driver, SendRequest},
    rt::{Read, Write},
};
use hyper_util::rt::TokioExecutor;
use tidegate_model::observation::Failure;
use tokio::task::JoinHandle;

use super::{
    error::ExchangeError,
    response::{BODY_LIMIT, ProbeResponse},
};

/// An HTTP/2 connection. Dropping it ends the task that drives it.
#[derive(Debug)]
pub struct Http2 {
    requests: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

type Handshake<T> = (SendRequest<Full<Bytes>>, Driver<T, Full<Bytes>, TokioExecutor>);

impl Http2 {
    pub(super) fn start<T>(handshake: hyper::Result<Handshake<T>>) -> hyper::Result<Http2>
    where
        T: Read + Write + Send + Unpin + 'static,
    {
        let (requests, driver) = handshake?;
        // The request in flight reports the error.
        let driver = tokio::spawn(async move { drop(driver.await) });
        Ok(Http2 { requests, driver })
    }

    /// Sends a request and waits for the head of the response.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        self.requests.ready().await.map_err(|_| ExchangeError::NoResponse)?;
        self.requests.send_request(request).await.map_err(|error| {
            // A refused stream, or one that ended with its connection, got no response. A reset of one stream on a
            // connection that stays open is a failure of the endpoint.
            if error.is_canceled() || self.requests.is_closed() {
                ExchangeError::NoResponse
            } else {
                ExchangeError::Failed(Failure::Reset)
            }
        })
    }

    pub(super) fn into_reusable(self) -> Option<Http2> {
        (!self.requests.is_closed()).then_some(self)
    }
}

/// Reads the start of a body. Returns it with the trailers, and whether it is complete.
pub(super) async fn read_body(
    mut body: Incoming,
) -> Result<(Vec<u8>, Option<HeaderMap>, bool), ExchangeError> {
    let mut data = Vec::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ExchangeError::Failed(Failure::Reset))?;
        match frame.into_data() {
            Ok(bytes) => data.extend_from_slice(&bytes),
            Err(other) => trailers = other.into_trailers().ok(),
        }
        if data.len() >= BODY_LIMIT {
            data.truncate(BODY_LIMIT);
            // Dropping the body resets the stream and keeps the connection.
            return Ok((data, trailers, false));
        }
    }
    Ok((data, trailers, true))
}

/// Sends a GET for `path`.
pub(super) async fn get(
    mut http2: Http2,
    scheme: &str,
    path: &str,
    host: &str,
    needs_body: bool,
) -> Result<(ProbeResponse, Option<Http2>), ExchangeError> {
    let request = Request::get(format!("{scheme}://{host}{path}"))
        .header(header::USER_AGENT, "tidegate-health-prober")
        .header(header::ACCEPT, "*/*")
        .body(Full::default())
        .map_err(|_| ExchangeError::Failed(Failure::BadResponse))?;
    let response = http2.send(request).await?;
    let status = response.status().as_u16();
    let (body, _, _) = read_body(response.into_body()).await?;
    let body = if needs_body { body } else { Vec::new() };
    Ok((ProbeResponse::Http { status, body }, http2.into_reusable()))
}
