//! A collector of spans by OTLP over HTTP.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinHandle};

/// A span with the process that it came from.
#[derive(Debug, Clone)]
pub struct Received {
    /// `service.instance.id` of its process.
    pub instance: String,
    /// The span.
    pub span: Span,
}

/// Receives until dropped.
pub struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Received>>>,
    serving: JoinHandle<()>,
}

impl Collector {
    /// Listens on a free port.
    pub async fn start() -> anyhow::Result<Collector> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let spans = Arc::<Mutex<Vec<Received>>>::default();
        let received = spans.clone();
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let received = received.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| receive(received.clone(), request));
                    // A process that was killed breaks off its connection.
                    _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Collector { endpoint, spans, serving })
    }

    /// Where to send to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Received> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn receive(
    spans: Arc<Mutex<Vec<Received>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut response = Response::new(Full::default());
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    if path == "/v1/traces" {
        match body.map(ExportTraceServiceRequest::decode) {
            Ok(Ok(export)) => {
                let mut spans = spans.lock().unwrap_or_else(PoisonError::into_inner);
                for resource in export.resource_spans {
                    let attributes =
                        resource.resource.map(|resource| resource.attributes).unwrap_or_default();
                    let instance = attribute(&attributes, "service.instance.id").unwrap_or_default();
                    let all = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                    spans.extend(all.map(|span| Received { instance: instance.clone(), span }));
                }
            }
            _ => *response.status_mut() = StatusCode::BAD_REQUEST,
        }
    }
    Ok(response)
}

/// The text of an attribute.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    match attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        Value::BoolValue(truth) => Some(truth.to_string()),
        _ => None,
    }
}
