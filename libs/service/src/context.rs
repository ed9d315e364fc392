//! The context that a service runs in.

use tokio_util::sync::CancellationToken;

use crate::{Admin, Ports, Registry, telemetry::SpanSink};

/// The context that a service runs in. Clones share it.
#[derive(Debug, Clone)]
pub struct Context {
    /// The name of this instance.
    pub instance: String,
    /// The metrics.
    pub registry: Registry,
    /// The admin listener, not ready before [`Admin::started`].
    pub admin: Admin,
    /// The addresses that the service listens on.
    pub ports: Ports,
    /// The sink for spans of requests; absent without a collector.
    pub spans: Option<SpanSink>,
    /// Cancelled when the service is to shut down.
    pub shutdown: CancellationToken,
}

impl Context {
    /// The context of a service within another program: without an admin listener, a ports file or a collector of spans.
    pub fn embedded(instance: impl Into<String>, shutdown: CancellationToken) -> Context {
        let registry = Registry::default();
        Context {
            instance: instance.into(),
            admin: Admin::new(registry.clone()),
            registry,
            ports: Ports::new(None),
            spans: None,
            shutdown,
        }
    }
}
