//! Logs on standard error; traces and metrics to a collector by OTLP, where one is configured.
//!
//! The sender has a thread and a runtime of its own, so that neither a slow collector nor the last flush blocks a service.

mod format;
mod propagate;
mod sender;
mod spans;

use std::time::{Duration, SystemTime};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanProcessor as _},
};
use tracing_subscriber::{
    Layer, Registry as Subscriber,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    Registry,
    metrics::otlp::Source,
    settings::{CommonSettings, LogFormat, parse_log_filter},
};

pub use propagate::{current_context, set_parent, span_context};
use sender::{Sender, SpanClient};
pub use spans::{FinishedSpan, SpanKind, SpanSink, Value};

/// How often spans are sent, at least.
const SPAN_DELAY: Duration = Duration::from_millis(500);
/// How long the collector may take.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// An error of starting telemetry.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The directives of the filter can't be parsed.
    #[error("log.filter: {0}")]
    Filter(String),
    /// The exporter can't be created.
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(String),
    /// The sending thread could not be started.
    #[error("telemetry could not start: {0}")]
    Thread(#[from] std::io::Error),
    /// Another subscriber already receives this process's logs.
    #[error("telemetry was started twice")]
    Twice,
}

/// The guard of running telemetry. [`TelemetryGuard::shutdown`] flushes it; dropping it does so, too, for a second.
#[derive(Debug)]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
    requests: Option<SpanSink>,
    sender: Option<Sender>,
}

/// Starts to log, and to send where a collector is configured. `service` and `instance` name this process.
///
/// # Errors
/// When the settings can't be used, or it was called before in this process.
pub fn init(
    settings: &CommonSettings,
    service: &str,
    instance: &str,
    registry: &Registry,
) -> Result<TelemetryGuard, TelemetryError> {
    let filter = parse_log_filter(&settings.log.filter).map_err(TelemetryError::Filter)?;
    let writer = std::io::stderr;
    let log: Box<dyn Layer<Subscriber> + Send + Sync> = match settings.log.format {
        LogFormat::Human => Box::new(
            tracing_subscriber::fmt::layer()
                .event_format(format::Human)
                .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                .with_writer(writer),
        ),
        LogFormat::Json => Box::new(
            tracing_subscriber::fmt::layer()
                .event_format(format::Json { service: service.to_owned(), instance: instance.to_owned() })
                .fmt_fields(tracing_subscriber::fmt::format::JsonFields::new())
                .with_ansi(false)
                .with_writer(writer),
        ),
    };
    let (guard, spans) = match &settings.telemetry.otlp_endpoint {
        None => (TelemetryGuard { provider: None, requests: None, sender: None }, None),
        Some(endpoint) => {
            let attributes = attributes(service, instance);
            let source = Source { attributes: attributes.clone(), started: SystemTime::now() };
            let endpoint = endpoint.trim_end_matches('/');
            let sender = Sender::start(endpoint, source, registry.clone(), SEND_LIMIT)?;
            let resource = Resource::builder_empty()
                .with_attributes(
                    attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())),
                )
                .build();
            let mut requests = processor(endpoint, sender.client())?;
            requests.set_resource(&resource);
            let provider = SdkTracerProvider::builder()
                .with_span_processor(processor(endpoint, sender.client())?)
                .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                    settings.telemetry.sample_ratio,
                ))))
                .with_resource(resource)
                .build();
            // Spans of libraries are of no interest, and the exporter's own spans would export themselves.
            let ours = Targets::new().with_target("tidegate", LevelFilter::INFO);
            let layer = tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("tidegate"))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_target(false)
                .with_filter(ours);
            let requests = Some(SpanSink::new(requests));
            (TelemetryGuard { provider: Some(provider), requests, sender: Some(sender) }, Some(layer))
        }
    };
    let subscriber = tracing_subscriber::registry().with(log.with_filter(filter)).with(spans);
    subscriber.try_init().map_err(|_| TelemetryError::Twice)?;
    Ok(guard)
}

fn attributes(service: &str, instance: &str) -> Vec<(String, String)> {
    [
        ("service.namespace", "tidegate"),
        ("service.name", service),
        ("service.instance.id", instance),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn processor(endpoint: &str, client: SpanClient) -> Result<BatchSpanProcessor, TelemetryError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .with_timeout(SEND_LIMIT)
        .build()
        .map_err(|error| TelemetryError::Exporter(error.to_string()))?;
    let batch = BatchConfigBuilder::default().with_scheduled_delay(SPAN_DELAY).build();
    Ok(BatchSpanProcessor::builder(exporter).with_batch_config(batch).build())
}

impl TelemetryGuard {
    /// The sink for finished spans; nothing when none are sent.
    pub fn spans(&self) -> Option<SpanSink> {
        self.requests.clone()
    }

    /// Sends what is queued, for at most `limit`, and stops. Blocks.
    pub fn shutdown(mut self, limit: Duration) {
        self.finish(limit);
    }

    fn finish(&mut self, limit: Duration) {
        let started = std::time::Instant::now();
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown_with_timeout(limit)
        {
            tracing::warn!(%error, "the last spans were not sent");
        }
        if let Some(requests) = self.requests.take()
            && let Err(error) = requests.shutdown(limit.saturating_sub(started.elapsed()))
        {
            tracing::warn!(%error, "the last spans of requests were not sent");
        }
        if let Some(sender) = self.sender.take() {
            sender.stop(limit.saturating_sub(started.elapsed()));
        }
    }
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        self.finish(Duration::from_secs(1));
    }
}
