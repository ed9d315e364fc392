//! Probes against real listeners on loopback.
#![allow(clippy::unwrap_used, reason = "a failed test is what a panic is for")]

mod origin;
mod tls;

use std::time::Duration;

use origin::Origin;
use tidegate_health_prober::probe::{Connection, ProbeTransport, probe};
use tidegate_model::{
    fleet::{Address, Upstream, UpstreamProtocol},
    health::{HealthCheck, Probe},
    observation::{Failure, ProbeOutcome},
};

fn upstream(protocol: UpstreamProtocol) -> Upstream {
    Upstream {
        protocol,
        tls: None,
        idle_timeout: Duration::from_secs(4),
        connect_timeout: Duration::from_secs(5),
        max_requests: 1,
    }
}

fn transport(protocol: UpstreamProtocol) -> ProbeTransport {
    ProbeTransport::new(&upstream(protocol)).unwrap()
}

/// Long enough that only what should time out does.
fn check(probe: Probe) -> HealthCheck {
    HealthCheck {
        probe,
        interval: Duration::from_secs(20),
        timeout: Duration::from_secs(10),
        ..HealthCheck::tcp()
    }
}

fn get(body: Option<&str>) -> HealthCheck {
    check(Probe::Http {
        path: "/healthz?full".to_owned(),
        host: Some("shop.example.com".to_owned()),
        expected_status: vec![(200, 299)],
        expected_body: body.map(str::to_owned),
    })
}

fn soon(check: HealthCheck) -> HealthCheck {
    HealthCheck { timeout: Duration::from_millis(50), ..check }
}

fn grpc(service: &str) -> HealthCheck {
    check(Probe::Grpc { service: service.to_owned() })
}

async fn ask(
    origin: &Origin,
    protocol: UpstreamProtocol,
    check: &HealthCheck,
) -> (ProbeOutcome, Option<Connection>) {
    probe(&transport(protocol), &origin.address(), check, None).await.unwrap()
}

async fn fails(origin: &Origin, check: &HealthCheck) -> Failure {
    match ask(origin, UpstreamProtocol::Auto, check).await.0 {
        ProbeOutcome::Fail(failure) => failure,
        ProbeOutcome::Pass => panic!("this must not pass"),
    }
}

#[tokio::test]
async fn a_get_is_canonical_and_its_connection_reused() {
    let origin =
        Origin::raw(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "HTTP/1.1 204 No\r\n\r\n"]).await;
    let (first, connection) = ask(&origin, UpstreamProtocol::Auto, &get(Some("ok"))).await;
    let (second, _) =
        probe(&transport(UpstreamProtocol::Auto), &origin.address(), &get(None), connection).await.unwrap();

    assert_eq!((first, second), (ProbeOutcome::Pass, ProbeOutcome::Pass));
    assert_eq!(origin.connections(), 1);
    let request = origin.requests().remove(0);
    assert!(request.starts_with("GET /healthz?full HTTP/1.1\r\nhost: shop.example.com\r\n"), "{request}");
}

#[tokio::test]
async fn answers_of_every_framing_are_read() {
    for (answer, reusable) in [
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", true),
        ("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", false),
        ("HTTP/1.0 200 OK\r\n\r\nok", false),
    ] {
        let origin = Origin::raw(&[answer]).await;
        let (outcome, connection) = ask(&origin, UpstreamProtocol::Auto, &get(Some("ok"))).await;
        assert_eq!((outcome, connection.is_some()), (ProbeOutcome::Pass, reusable), "{answer}");
    }
}

#[tokio::test]
async fn every_failure_has_its_kind() {
    let wrong_body = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nout of order";
    for (answer, failure) in [
        ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", Failure::Status(503)),
        (wrong_body, Failure::BadResponse),
        ("SSH-2.0-OpenSSH\r\n", Failure::BadResponse),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", Failure::Reset),
        ("HTTP/1.1 200", Failure::Reset),
        ("", Failure::Reset),
    ] {
        assert_eq!(fails(&Origin::raw(&[answer]).await, &get(Some("ok"))).await, failure, "{answer}");
    }
    assert_eq!(fails(&Origin::silent().await, &soon(get(None))).await, Failure::NoResponse);
    assert_eq!(fails(&Origin::gone().await, &get(None)).await, Failure::ConnectRefused);
    assert_eq!(fails(&Origin::gone().await, &check(Probe::Tcp)).await, Failure::ConnectRefused);
}

#[tokio::test]
async fn a_name_that_is_not_found_is_no_connection() {
    let nowhere: Address = "nowhere.invalid:80".parse().unwrap();
    let (outcome, _) = probe(&transport(UpstreamProtocol::Auto), &nowhere, &get(None), None).await.unwrap();
    assert_eq!(outcome, ProbeOutcome::Fail(Failure::ConnectError));
}

#[tokio::test]
async fn a_full_listener_is_a_connection_that_times_out() {
    let origin = Origin::full().await;
    let failure = match ask(&origin, UpstreamProtocol::Auto, &soon(check(Probe::Tcp))).await.0 {
        ProbeOutcome::Fail(failure) => failure,
        ProbeOutcome::Pass => panic!("nobody accepted"),
    };
    assert_eq!(failure, Failure::ConnectTimeout);
}

/// An origin may close idle connections: that is no failure.
#[tokio::test]
async fn a_stale_connection_is_replaced() {
    let origin = Origin::closing().await;
    let (_, connection) = ask(&origin, UpstreamProtocol::Auto, &get(None)).await;
    assert!(connection.is_some());
    origin.closed(1).await;

    let (outcome, _) =
        probe(&transport(UpstreamProtocol::Auto), &origin.address(), &get(None), connection).await.unwrap();

    assert_eq!(outcome, ProbeOutcome::Pass);
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn an_origin_that_died_is_refused_over_a_reused_connection_too() {
    let origin = Origin::raw(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
    let (_, connection) = ask(&origin, UpstreamProtocol::Auto, &get(None)).await;
    let address = origin.address();
    origin.die().await;

    let (outcome, _) =
        probe(&transport(UpstreamProtocol::Auto), &address, &get(None), connection).await.unwrap();

    assert_eq!(outcome, ProbeOutcome::Fail(Failure::ConnectRefused));
}

#[tokio::test]
async fn a_tcp_probe_passes_when_somebody_accepts() {
    let (outcome, connection) =
        ask(&Origin::silent().await, UpstreamProtocol::Auto, &check(Probe::Tcp)).await;
    assert_eq!(outcome, ProbeOutcome::Pass);
    assert!(connection.is_none(), "the next one asks for a new connection");
}

#[tokio::test]
async fn http2_is_spoken_with_prior_knowledge_and_reused() {
    let origin = Origin::http2().await;
    let (first, connection) = ask(&origin, UpstreamProtocol::Http2, &get(Some("ok"))).await;
    let (second, _) =
        probe(&transport(UpstreamProtocol::Http2), &origin.address(), &get(None), connection).await.unwrap();

    assert_eq!((first, second), (ProbeOutcome::Pass, ProbeOutcome::Pass));
    assert_eq!(origin.connections(), 1);
    assert_eq!(
        origin.requests(),
        ["GET shop.example.com /healthz?full", "GET shop.example.com /healthz?full"]
    );
}

#[tokio::test]
async fn an_http2_origin_that_hangs_does_not_answer() {
    let (outcome, _) = ask(&Origin::silent().await, UpstreamProtocol::Http2, &soon(get(None))).await;
    assert_eq!(outcome, ProbeOutcome::Fail(Failure::NoResponse));
}

#[tokio::test]
async fn grpc_health_is_asked_for_by_service() {
    let origin = Origin::http2().await;
    assert_eq!(ask(&origin, UpstreamProtocol::Auto, &grpc("up")).await.0, ProbeOutcome::Pass);
    assert_eq!(fails(&origin, &grpc("down")).await, Failure::BadResponse);
    assert_eq!(fails(&origin, &grpc("unknown")).await, Failure::BadResponse);
    assert_eq!(fails(&origin, &grpc("broken")).await, Failure::Status(502));
}
