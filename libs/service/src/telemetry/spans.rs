//! Spans that are created when they have finished: for the data path, which cannot afford the cost of `tracing` for each
//! request.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind as OtelKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks, SpanProcessor as _},
};

/// A sink that sends finished spans in batches. Clones share it.
#[derive(Debug, Clone)]
pub struct SpanSink {
    processor: Arc<BatchSpanProcessor>,
    scope: InstrumentationScope,
}

/// The side of a call that a span covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// The callee.
    Server,
    /// The caller.
    Client,
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string.
    Text(Cow<'static, str>),
    /// An integer.
    Number(i64),
    /// A boolean.
    Flag(bool),
}

/// A finished span. It is always sent: the sampling decision is made before it is created.
#[derive(Debug, Clone)]
pub struct FinishedSpan {
    /// The trace, not 0.
    pub trace_id: u128,
    /// The span, not 0.
    pub span_id: u64,
    /// The parent span.
    pub parent: Option<u64>,
    /// Whether the parent is in another process.
    pub parent_is_remote: bool,
    /// Its side of the call.
    pub kind: SpanKind,
    /// The name, of low cardinality.
    pub name: Cow<'static, str>,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// Its attributes, by OpenTelemetry's semantic conventions.
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong, if it failed.
    pub error: Option<String>,
}

impl SpanSink {
    /// A sink that sends by `exporter` on a thread of its own.
    pub fn to(exporter: impl SpanExporter + 'static) -> SpanSink {
        SpanSink::new(BatchSpanProcessor::builder(exporter).build())
    }

    pub(super) fn new(processor: BatchSpanProcessor) -> SpanSink {
        let scope = InstrumentationScope::builder("tidegate").with_version(env!("CARGO_PKG_VERSION")).build();
        SpanSink { processor: Arc::new(processor), scope }
    }

    /// Queues a span. Does not wait: the span is dropped when the queue is full.
    pub fn send(&self, span: FinishedSpan) {
        let context = SpanContext::new(
            TraceId::from_bytes(span.trace_id.to_be_bytes()),
            SpanId::from_bytes(span.span_id.to_be_bytes()),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        );
        let attributes = span.attributes.into_iter().map(|(key, value)| {
            KeyValue::new(
                key,
                match value {
                    Value::Text(text) => opentelemetry::Value::from(text),
                    Value::Number(number) => opentelemetry::Value::I64(number),
                    Value::Flag(flag) => opentelemetry::Value::Bool(flag),
                },
            )
        });
        self.processor.on_end(SpanData {
            span_context: context,
            parent_span_id: span.parent.map_or(SpanId::INVALID, |id| SpanId::from_bytes(id.to_be_bytes())),
            parent_span_is_remote: span.parent_is_remote,
            span_kind: match span.kind {
                SpanKind::Server => OtelKind::Server,
                SpanKind::Client => OtelKind::Client,
            },
            name: span.name,
            start_time: span.start,
            end_time: span.end,
            attributes: attributes.collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        });
    }

    /// Sends the queued spans within `limit`, and stops. Blocks.
    ///
    /// # Errors
    /// When that fails or takes longer.
    pub fn shutdown(&self, limit: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(limit)
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Value {
        Value::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(Cow::Owned(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Number(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Value {
        Value::Flag(flag)
    }
}
