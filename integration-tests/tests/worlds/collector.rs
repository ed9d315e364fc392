//! A collector of spans, and of the names of metrics, by OTLP over HTTP.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io::Read as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_ENCODING};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::Span,
};
use prost::Message as _;
use tidegate_model::Timestamp;
use tokio::{net::TcpListener, task::JoinHandle};

/// A span with the process that it came from.
#[derive(Debug, Clone)]
pub struct Received {
    /// `service.instance.id` of its process.
    pub instance: String,
    /// The span.
    pub span: Span,
}

impl Received {
    /// The id of its trace, as people write it.
    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// The id of the span that it is a part of, as people write it.
    pub fn parent_id(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// When it began.
    pub fn began(&self) -> Timestamp {
        Timestamp(self.span.start_time_unix_nano / 1000)
    }

    /// When it ended.
    pub fn ended(&self) -> Timestamp {
        Timestamp(self.span.end_time_unix_nano / 1000)
    }

    /// The text of one of its attributes.
    pub fn attribute(&self, key: &str) -> Option<String> {
        attribute(&self.span.attributes, key)
    }
}

/// The names of metrics, by `service.instance.id` of their process.
pub type MetricNames = BTreeMap<String, BTreeSet<String>>;

/// Receives until dropped.
pub struct Collector {
    endpoint: String,
    all: Arc<Mutex<All>>,
    serving: JoinHandle<()>,
}

/// What was received.
#[derive(Default)]
struct All {
    spans: Vec<Received>,
    metrics: MetricNames,
}

impl Collector {
    /// Listens on a free port.
    pub async fn start() -> anyhow::Result<Collector> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let all = Arc::<Mutex<All>>::default();
        let received = all.clone();
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
        Ok(Collector { endpoint, all, serving })
    }

    /// Where to send to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Received> {
        locked(&self.all).spans.clone()
    }

    /// The names of all metrics so far.
    pub fn metrics(&self) -> MetricNames {
        locked(&self.all).metrics.clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn receive(
    all: Arc<Mutex<All>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let is_packed = request.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    let body = body.ok().and_then(|body| if is_packed { unpacked(&body).ok() } else { Some(body) });
    let understood = body.is_some_and(|body| locked(&all).take(&path, body).is_ok());
    let mut response = Response::new(Full::default());
    if !understood {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    Ok(response)
}

fn unpacked(body: &[u8]) -> std::io::Result<Bytes> {
    let mut whole = Vec::new();
    flate2::read::GzDecoder::new(body).read_to_end(&mut whole)?;
    Ok(whole.into())
}

fn locked(all: &Mutex<All>) -> MutexGuard<'_, All> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

impl All {
    fn take(&mut self, path: &str, body: Bytes) -> Result<(), prost::DecodeError> {
        match path {
            "/v1/traces" => {
                for of_process in ExportTraceServiceRequest::decode(body)?.resource_spans {
                    let instance = instance(of_process.resource);
                    let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
                    self.spans.extend(spans.map(|span| Received { instance: instance.clone(), span }));
                }
            }
            "/v1/metrics" => {
                for of_process in ExportMetricsServiceRequest::decode(body)?.resource_metrics {
                    let names = self.metrics.entry(instance(of_process.resource)).or_default();
                    let metrics = of_process.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
                    names.extend(metrics.map(|metric| metric.name));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn instance(resource: Option<Resource>) -> String {
    let attributes = resource.map(|resource| resource.attributes).unwrap_or_default();
    attribute(&attributes, "service.instance.id").unwrap_or_default()
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    match attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        Value::BoolValue(truth) => Some(truth.to_string()),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
