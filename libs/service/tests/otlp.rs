//! Traces and metrics as a collector receives them. One test, because a process has one log.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::metric::Data,
};
use prost::Message;
use tidegate_service::{CommonSettings, Registry, telemetry};
use tokio::{net::TcpListener, sync::mpsc};

/// A collector on a thread of its own; the requests' paths and bodies come out of it.
fn collector() -> (String, mpsc::UnboundedReceiver<(String, Bytes)>) {
    let (requests, received) = mpsc::unbounded_channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let requests = requests.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let requests = requests.clone();
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            requests.send((path, body)).unwrap();
                            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
                        }
                    });
                    _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    });
    (address, received)
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let attribute = attributes.iter().find(|a| a.key == key).unwrap_or_else(|| panic!("no {key}"));
    match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => text,
        other => panic!("{key} is {other:?}"),
    }
}

#[test]
fn a_collector_receives_one_trace_across_messages_and_the_metrics() {
    let (endpoint, mut received) = collector();
    let mut settings = CommonSettings::default();
    settings.telemetry.otlp_endpoint = Some(endpoint);
    let registry = Registry::default();
    registry.counter("tidegate_test_total", "A counter.", &[("k", "v")]).add(3);
    let histogram = registry.histogram("tidegate_test_seconds", "A histogram.", &[], &[0.1, 1.0]);
    [0.05, 5.0].into_iter().for_each(|value| histogram.observe(value));
    let guard = telemetry::init(&settings, "tidegate-test", "test-1", &registry).unwrap();
    assert!(telemetry::init(&settings, "tidegate-test", "test-1", &registry).is_err());

    let probe = tracing::info_span!(target: "tidegate_test", "probe", reason = "status 503");
    let sent = probe.in_scope(|| telemetry::current_context().unwrap());
    drop(probe);
    let decide = tracing::info_span!(target: "tidegate_test", "decide");
    telemetry::set_parent(&decide, &sent);
    decide.in_scope(|| tracing::info_span!(target: "tidegate_test", "publish").in_scope(|| ()));
    drop(decide);
    assert_eq!(telemetry::current_context(), None);
    guard.shutdown(Duration::from_secs(10));

    let (mut spans, mut metrics) = (Vec::new(), Vec::new());
    while let Ok((path, body)) = received.try_recv() {
        match path.as_str() {
            "/v1/traces" => {
                for resource in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
                    let attributes = &resource.resource.as_ref().unwrap().attributes;
                    assert_eq!(text(attributes, "service.name"), "tidegate-test");
                    assert_eq!(text(attributes, "service.instance.id"), "test-1");
                    spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
                }
            }
            "/v1/metrics" => {
                for resource in ExportMetricsServiceRequest::decode(body).unwrap().resource_metrics {
                    metrics.extend(resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics));
                }
            }
            other => panic!("a request to {other}"),
        }
    }

    let span =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}"));
    let (probe, decide, publish) = (span("probe"), span("decide"), span("publish"));
    assert_eq!(spans.len(), 3);
    assert_eq!(text(&probe.attributes, "reason"), "status 503");
    assert!(probe.parent_span_id.is_empty());
    assert_eq!(decide.parent_span_id, probe.span_id);
    assert_eq!(publish.parent_span_id, decide.span_id);
    assert!(spans.iter().all(|span| span.trace_id == probe.trace_id));

    let data = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap().data.as_ref().unwrap();
    let Data::Sum(counter) = data("tidegate_test_total") else { panic!("no sum") };
    assert!(counter.is_monotonic);
    assert_eq!(text(&counter.data_points[0].attributes, "k"), "v");
    let Data::Histogram(histogram) = data("tidegate_test_seconds") else { panic!("no histogram") };
    assert_eq!(histogram.data_points[0].bucket_counts, [1, 0, 1]);
}
