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
    metrics::{
        Counter,
        otlp::{Source, request},
    },
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
        let unsent = registry.counter(
            "tidegate_telemetry_unsent_total",
            "Attempts to send metrics to the collector that failed; spans use the same path.",
            &[],
        );
        let url = format!("{endpoint}/v1/metrics");
        let metrics = Metrics { url, client: client.clone(), source, registry, unsent };
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

/// Sends requests on the sending thread's runtime, from any thread.
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
    unsent: Counter,
}

impl Metrics {
    async fn run(self, mut stopped: oneshot::Receiver<()>) {
        let mut tick = tokio::time::interval(METRICS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, when nothing is counted yet.
        tick.tick().await;
        let mut is_reached = true;
        loop {
            let last = tokio::select! {
                _ = &mut stopped => true,
                _ = tick.tick() => false,
            };
            let sent = self.send().await;
            // Logged once, not at each attempt.
            match &sent {
                Err(error) if is_reached => {
                    tracing::warn!(url = self.url, %error, "the collector cannot be reached: it gets neither metrics nor spans");
                }
                Ok(()) if !is_reached => tracing::info!(url = self.url, "the collector is reached again"),
                Ok(()) | Err(_) => {}
            }
            is_reached = sent.is_ok();
            if !is_reached {
                self.unsent.increment();
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
        Err(format!("the collector responded with {}", response.status()).into())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::SystemTime};

    use super::*;

    #[test]
    fn a_collector_that_is_not_there_is_counted() {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let source = Source { attributes: Vec::new(), started: SystemTime::now() };
        let (registry, limit) = (Registry::default(), Duration::from_secs(10));
        let sender = Sender::start(&format!("http://{address}"), source, registry.clone(), limit).unwrap();
        sender.stop(limit);
        assert!(registry.to_text().contains("tidegate_telemetry_unsent_total 1"), "{}", registry.to_text());
    }
}
