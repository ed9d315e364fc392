//! The two formats of the log. Both contain the trace ID of an event, so that a line leads to its trace.

use std::fmt;

use opentelemetry::trace::{SpanContext, TraceContextExt};
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// `time LEVEL target: message field=value trace_id=…`
#[derive(Debug)]
pub(super) struct Human;

impl<S, N> FormatEvent<S, N> for Human
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut to)?;
        let level = *event.metadata().level();
        if to.has_ansi_escapes() {
            write!(to, " \x1b[{}m{level:>5}\x1b[0m ", colour(level))?;
        } else {
            write!(to, " {level:>5} ")?;
        }
        write!(to, "{}: ", event.metadata().target())?;
        ctx.format_fields(to.by_ref(), event)?;
        if let Some(context) = span_context(ctx) {
            write!(to, " trace_id={}", context.trace_id())?;
        }
        writeln!(to)
    }
}

fn colour(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

/// One JSON object on a line.
#[derive(Debug)]
pub(super) struct Json {
    pub service: String,
    pub instance: String,
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("time".to_owned(), time.into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        line.insert("service".to_owned(), self.service.clone().into());
        line.insert("instance".to_owned(), self.instance.clone().into());
        line.insert("target".to_owned(), event.metadata().target().into());
        let message = fields.0.remove("message").unwrap_or_default();
        line.insert("message".to_owned(), message);
        if let Some(context) = span_context(ctx) {
            line.insert("trace_id".to_owned(), context.trace_id().to_string().into());
            line.insert("span_id".to_owned(), context.span_id().to_string().into());
        }
        if !fields.0.is_empty() {
            line.insert("fields".to_owned(), Value::Object(fields.0));
        }
        writeln!(to, "{}", Value::Object(line))
    }
}

/// The context of the span that the event is in, where it is traced.
fn span_context<S, N>(ctx: &FmtContext<'_, S, N>) -> Option<SpanContext>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let span = ctx.lookup_current()?;
    let context = tracing::dispatcher::get_default(|dispatch| {
        tracing_opentelemetry::get_otel_context(&span.id(), dispatch)
    })?;
    let context = context.span().span_context().clone();
    context.is_valid().then_some(context)
}

struct Fields(Map<String, Value>);

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }
}
