//! Between this process's spans and the trace contexts of messages (W3C).

use std::collections::HashMap;

use opentelemetry::{Context, propagation::TextMapPropagator, trace::TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tidegate_bus::TraceContext;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The context of the current span, to send with a message; nothing when no span is traced.
pub fn current_context() -> Option<TraceContext> {
    span_context(&Span::current())
}

/// The context of a span, to send with a message; nothing when it is not traced.
pub fn span_context(span: &Span) -> Option<TraceContext> {
    let context = span.context();
    if !context.span().span_context().is_valid() {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    TraceContext::new(
        carrier.get("traceparent")?,
        carrier.get("tracestate").map(String::as_str).filter(|s| !s.is_empty()),
    )
}

/// Makes a span that has not been entered yet the child of the span that sent a message.
pub fn set_parent(span: &Span, parent: &TraceContext) {
    let mut carrier = HashMap::from([("traceparent".to_owned(), parent.traceparent.clone())]);
    carrier.extend(parent.tracestate.clone().map(|state| ("tracestate".to_owned(), state)));
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    // Fails for a span that is not traced, which needs no parent.
    _ = span.set_parent(context);
}
