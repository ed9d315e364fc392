//! The thread that sends to the collector.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use opentelemetry_http::{HttpClient, HttpError, Request, Response, hyper::HyperClient};
use prost::Message;
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    time::MissedTickBehavior,
};

use crate::{
    Registry,
    metrics::otlp::{Source, request},
};

/// How often metrics are sent.
const METRICS_EVERY: Duration = Duration::from_secs(10);

/// The sending thread.
#[derive(Debug)]
pub(super) struct Sender {
    handle: Handle,
    client: HyperClient,
    stop: Option<oneshot::Sender<()>>,
    done: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Starts it; from then on metrics go to `endpoint`.
    pub fn start(endpoint: &str, source: Source, registry: Registry, limit: Duration) -> io::Result<Sender> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let client = HyperClient::with_default_connector(limit, None);
        let (stop, stopped) = oneshot::channel();
        let (finished, done) = mpsc::channel();
        let metrics =
            Metrics { url: format!("{endpoint}/v1/metrics"), client: client.clone(), source, registry };
        let thread = thread::Builder::new().name("telemetry".to_owned()).spawn(move || {
            runtime.block_on(metrics.run(stopped));
            _ = finished.send(());
        })?;
        Ok(Sender { handle, client, stop: Some(stop), done, thread: Some(thread) })
    }

    /// A client for the span exporter, whose own thread has no runtime.
    pub fn client(&self) -> SpanClient {
        SpanClient { handle: self.handle.clone(), client: self.client.clone() }
    }

    /// Sends the metrics a last time and ends, for at most `limit`.
    pub fn stop(mut self, limit: Duration) {
        drop(self.stop.take());
        // A thread that is not done by then ends with the process.
        if self.done.recv_timeout(limit).is_ok()
            && let Some(thread) = self.thread.take()
        {
            _ = thread.join();
        }
    }
}

/// Sends requests on the sending thread's runtime, from whatever thread.
#[derive(Debug, Clone)]
pub(super) struct SpanClient {
    handle: Handle,
    client: HyperClient,
}

impl HttpClient for SpanClient {
    fn send_bytes<'client, 'sent>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'sent>>
    where
        'client: 'sent,
        Self: 'sent,
    {
        let client = self.client.clone();
        let sent = self.handle.spawn(async move { client.send_bytes(request).await });
        Box::pin(async move { sent.await? })
    }
}

struct Metrics {
    url: String,
    client: HyperClient,
    source: Source,
    registry: Registry,
}

impl Metrics {
    async fn run(self, mut stopped: oneshot::Receiver<()>) {
        let mut tick = tokio::time::interval(METRICS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, when nothing is counted yet.
        tick.tick().await;
        loop {
            let last = tokio::select! {
                _ = &mut stopped => true,
                _ = tick.tick() => false,
            };
            if let Err(error) = self.send().await {
                tracing::debug!(%error, "metrics were not sent");
            }
            if last {
                return;
            }
        }
    }

    async fn send(&self) -> Result<(), HttpError> {
        let body = request(&self.source, &self.registry.samples()).encode_to_vec();
        let request = Request::post(&self.url)
            .header("content-type", "application/x-protobuf")
            .body(Bytes::from(body))?;
        let response = self.client.send_bytes(request).await?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(format!("the collector answered {}", response.status()).into())
    }
}
