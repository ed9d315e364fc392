//! The admin listener over real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper::StatusCode;
use tidegate_service::{Admin, Ports, Registry, admin::Reply};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

async fn serve(admin: &Admin) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (admin, stop) = (admin.clone(), CancellationToken::new());
    let stopped = stop.clone();
    (address, stop, tokio::spawn(async move { admin.serve(listener, stopped).await }))
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn it_is_live_at_once_and_ready_when_started_and_all_checks_are() {
    let admin = Admin::new(Registry::default());
    let connected = Arc::new(AtomicBool::new(false));
    let state = connected.clone();
    admin.check("bus", move || if state.load(Ordering::Relaxed) { Ok(()) } else { Err("away".to_owned()) });
    let (address, _stop, _task) = serve(&admin).await;

    assert_eq!(ask(address, "GET", "/livez").await, (200, "ok\n".to_owned()));
    let (status, body) = ask(address, "GET", "/readyz").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 503);
    assert_eq!(
        body,
        serde_json::json!({ "ready": false, "checks": { "start": "the service is starting", "bus": "away" } })
    );

    admin.started();
    assert_eq!(ask(address, "GET", "/readyz").await.0, 503);
    connected.store(true, Ordering::Relaxed);
    let (status, body) = ask(address, "GET", "/readyz").await;
    assert_eq!((status, body.as_str()), (200, r#"{"checks":{"bus":"ok"},"ready":true}"#));
}

#[tokio::test]
async fn metrics_are_served_as_they_are_when_asked_for() {
    let registry = Registry::default();
    let counter = registry.counter("tidegate_test_total", "A test.", &[("a", "b")]);
    let (address, _stop, _task) = serve(&Admin::new(registry)).await;

    counter.add(2);
    let (status, body) = ask(address, "GET", "/metrics").await;

    assert_eq!(status, 200);
    assert!(body.contains("# TYPE tidegate_test_total counter\ntidegate_test_total{a=\"b\"} 2\n"), "{body}");
}

#[tokio::test]
async fn a_service_adds_pages_and_nothing_can_be_changed() {
    let admin = Admin::new(Registry::default());
    admin.route("/routes", |query| Reply::text(StatusCode::OK, format!("query={query}")));
    let (address, _stop, _task) = serve(&admin).await;

    assert_eq!(ask(address, "GET", "/routes?a=b").await, (200, "query=a=b".to_owned()));
    let (status, body) = ask(address, "GET", "/other").await;
    assert_eq!((status, body.as_str()), (404, "there is: /livez /readyz /metrics /routes\n"));
    assert_eq!(ask(address, "POST", "/routes").await.0, 405);
    assert_eq!(ask(address, "HEAD", "/livez").await, (200, String::new()));
}

#[tokio::test]
async fn a_name_that_is_not_its_own_gets_nothing_and_is_counted() {
    let registry = Registry::default();
    let admin = Admin::new(registry.clone());
    admin.allow_hosts(vec!["metrics.example.com".to_owned()]);
    let (address, _stop, _task) = serve(&admin).await;
    let mut statuses = Vec::new();
    for host in ["rebound.evil.test", "metrics.example.com", "127.0.0.1"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /livez HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        statuses.push(answer.split(' ').nth(1).unwrap().to_owned());
    }
    assert_eq!(statuses, ["421", "200", "200"]);
    let counted = "tidegate_admin_requests_refused_total{reason=\"host\"} 1\n";
    assert!(registry.to_text().contains(counted), "{}", registry.to_text());
}

/// Time stands still but for what waits for it, so a minute takes none.
#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_nothing_or_reads_nothing_ends_by_itself() {
    let admin = Admin::new(Registry::default());
    admin.route("/large", |_| Reply::text(StatusCode::OK, "x".repeat(32 << 20)));
    let (address, _stop, _task) = serve(&admin).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0, "nobody asked for anything");

    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    slow.read_u8().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(70)).await;
    let mut read = Vec::new();
    _ = slow.read_to_end(&mut read).await;
    assert!(read.len() < 32 << 20, "it was cut off, after {} bytes", read.len());
}

#[tokio::test]
async fn it_ends_when_asked_even_with_an_idle_connection() {
    let (address, stop, task) = serve(&Admin::new(Registry::default())).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    idle.read_exact(&mut answer).await.unwrap();

    stop.cancel();

    tokio::time::timeout(std::time::Duration::from_secs(10), task).await.unwrap().unwrap();
}

#[tokio::test]
async fn it_ends_when_asked_though_a_client_does_not_read() {
    let admin = Admin::new(Registry::default());
    admin.route("/large", |_| Reply::text(StatusCode::OK, "x".repeat(32 << 20)));
    let (address, stop, task) = serve(&admin).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    stream.read_u8().await.unwrap();

    stop.cancel();

    tokio::time::timeout(std::time::Duration::from_secs(10), task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_ports_file_holds_every_address() {
    let file = std::env::temp_dir().join(format!("tidegate-ports-{}.json", std::process::id()));
    let ports = Ports::new(Some(file.clone()));

    ports.add("admin", "127.0.0.1:1".parse().unwrap()).unwrap();
    ports.add("public", "127.0.0.1:2".parse().unwrap()).unwrap();

    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(file).unwrap();
    assert_eq!(text, r#"{"admin":"127.0.0.1:1","public":"127.0.0.1:2"}"#);
    assert_eq!(ports.get("public"), Some("127.0.0.1:2".parse().unwrap()));
}
