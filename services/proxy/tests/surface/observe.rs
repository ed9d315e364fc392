//! What is told of requests: spans, the access log, and durations by where they were served.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use tidegate_proxy::{AccessFormat, AccessLogSection};
use tidegate_service::telemetry::SpanSink;

use crate::harness::{
    edge::{Edge, Start},
    eventually,
    fleet::FleetFile,
    origin::Origin,
    peer::Peer,
};

const GET: &str = "GET /cart?token=secret HTTP/1.1\r\nHost: site.test\r\nUser-Agent: test/1\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// Keeps spans.
#[derive(Debug, Clone, Default)]
struct Spans(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// An edge whose spans are kept.
struct Traced {
    edge: Edge,
    sink: SpanSink,
    spans: Spans,
}

impl Traced {
    fn start(fleet: &FleetFile, trace_ratio: f64) -> Traced {
        let spans = Spans::default();
        let sink = SpanSink::to(spans.clone());
        let start = Start { spans: Some(sink.clone()), trace_ratio, ..Start::default() };
        Traced { edge: Edge::start_with(fleet, start), sink, spans }
    }

    /// All spans, after the edge has ended: the whole requests, and their tries in order.
    fn end(mut self) -> (Vec<SpanData>, Vec<SpanData>) {
        self.edge.stop();
        self.sink.shutdown(Duration::from_secs(5)).unwrap();
        let spans = std::mem::take(&mut *self.spans.0.lock().unwrap());
        spans.into_iter().partition(|span| span.span_kind == SpanKind::Server)
    }
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key)?;
    Some(found.value.to_string())
}

fn with_traceparent(value: &str) -> String {
    GET.replace("\r\n\r\n", &format!("\r\ntraceparent: {value}\r\n\r\n"))
}

#[test]
fn a_request_that_its_client_records_is_told_of_and_the_endpoint_told_which_span_it_belongs_to() {
    let origin = Origin::named("a");
    let fleet = FleetFile::new()
        .cluster("a", &[origin.address()], "")
        .prefer("[a]")
        .routes("{ path_prefix: /cart, clusters: [a] }");
    let traced = Traced::start(&fleet, 0.0);
    let mut client = Peer::connect(traced.edge.address());
    assert_eq!(client.ask(with_traceparent(SAMPLED)).status(), 200);

    let (whole, tries) = traced.end();
    let ([whole], [only]) = (&whole[..], &tries[..]) else { panic!("{whole:?} {tries:?}") };
    assert_eq!(whole.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(whole.parent_span_id.to_string(), "b7ad6b7169203331");
    assert_eq!(only.parent_span_id, whole.span_context.span_id());
    assert_eq!((whole.name.as_ref(), only.name.as_ref()), ("GET /cart/*", "GET"));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/cart/*"),
        ("http.response.status_code", "200"),
        ("url.path", "/cart"),
        ("user_agent.original", "test/1"),
        ("network.protocol.version", "1.1"),
        ("tidegate.edge", "edge-1"),
        ("tidegate.region", "here"),
        ("tidegate.cluster", "a"),
        ("tidegate.tier", "0"),
    ] {
        assert_eq!(attribute(whole, key).as_deref(), Some(value), "{key}");
    }
    assert!(!format!("{whole:?}").contains("secret"), "a query is nobody's business");
    assert!(whole.start_time <= only.start_time && only.end_time <= whole.end_time);

    let told = origin.seen().requests()[0].field("traceparent").unwrap().to_owned();
    assert_eq!(told, format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", only.span_context.span_id()));
}

#[test]
fn what_needed_more_than_one_try_is_told_of_though_nobody_records_it() {
    let busy = Origin::answering(|_| BUSY.into());
    let good = Origin::named("b");
    let fleet = FleetFile::new().cluster("a", &[busy.address()], "").cluster("b", &[good.address()], "");
    let traced = Traced::start(&fleet, 0.0);
    let mut client = Peer::connect(traced.edge.address());
    assert_eq!(client.ask(with_traceparent(UNSAMPLED)).text(), "b");
    let told = good.seen().requests()[0].field("traceparent").unwrap().to_owned();
    assert_eq!(told, UNSAMPLED, "the client's word goes on as it is");

    let (whole, tries) = traced.end();
    let ([whole], [first, second]) = (&whole[..], &tries[..]) else { panic!("{whole:?} {tries:?}") };
    assert_eq!(whole.parent_span_id.to_string(), "b7ad6b7169203331");
    let said = |span: &SpanData| {
        ["tidegate.cluster", "tidegate.attempt", "tidegate.reason", "http.response.status_code"]
            .map(|key| attribute(span, key).unwrap_or_default())
    };
    assert_eq!(said(first), ["a", "1", "first", "503"]);
    assert_eq!(said(second), ["b", "2", "retry", "200"]);
    assert!(matches!(first.status, Status::Error { .. }) && second.status == Status::Unset);
    assert_eq!(attribute(second, "http.request.resend_count").as_deref(), Some("1"));
    assert_eq!(attribute(second, "tidegate.tier").as_deref(), Some("1"));
}

#[test]
fn a_retry_of_a_failed_hedge_is_no_hedge() {
    let silent = Origin::scripted(|mut peer, _, _| while peer.head().is_some() {});
    let (busy, good) = (Origin::answering(|_| BUSY.into()), Origin::named("c"));
    let fleet = FleetFile::new()
        .cluster("a", &[silent.address()], "")
        .cluster("b", &[busy.address()], "")
        .cluster("c", &[good.address()], "")
        .service("retry: { hedge_after: 50ms }, timeout: 10s");
    let traced = Traced::start(&fleet, 0.0);
    assert_eq!(Peer::connect(traced.edge.address()).ask(GET).text(), "c");
    let count = |name: &str| traced.edge.metric(&format!("tidegate_service_{name}_total"));
    assert_eq!((count("hedges"), count("retries"), count("hedges_won")), (1.0, 1.0, 0.0));

    let (_, tries) = traced.end();
    let reasons: Vec<_> = tries.iter().filter_map(|span| attribute(span, "tidegate.reason")).collect();
    assert_eq!(reasons, ["first", "hedge", "retry"]);
}

#[test]
fn the_state_of_a_trace_goes_on_with_that_trace_only() {
    let origin = Origin::named("a");
    let traced = Traced::start(&FleetFile::of(&[origin.address()]), 1.0);
    let mut client = Peer::connect(traced.edge.address());
    let state = "\r\ntracestate: vendor=1\r\n\r\n";
    client.ask(with_traceparent(SAMPLED).replace("\r\n\r\n", state));
    client.ask(with_traceparent("00-malformed").replace("\r\n\r\n", state));
    client.ask(GET.replace("\r\n\r\n", state));
    let told: Vec<_> =
        origin.seen().requests().iter().map(|r| r.field("tracestate").map(str::to_owned)).collect();
    assert_eq!(told, [Some("vendor=1".to_owned()), None, None]);
    assert!(origin.seen().requests().iter().all(|request| request.field("traceparent").is_some()));
}

#[test]
fn tries_tell_where_they_went_and_the_whole_where_it_was_asked() {
    let origin = Origin::answering(|_| b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec());
    let traced = Traced::start(&FleetFile::of(&[origin.address()]), 1.0);
    let mut client = Peer::connect(traced.edge.address());
    client.ask(GET.replace("site.test", "site.test:8080").replace("GET", "BREW"));

    let (whole, tries) = traced.end();
    let ([whole], [only]) = (&whole[..], &tries[..]) else { panic!("{whole:?} {tries:?}") };
    let port = origin.address().port().to_string();
    for (span, key, value) in [
        (whole, "server.address", "site.test"),
        (whole, "server.port", "8080"),
        (whole, "http.request.method", "_OTHER"),
        (whole, "http.request.method_original", "BREW"),
        (only, "http.request.method_original", "BREW"),
        (only, "url.full", &format!("http://127.0.0.1:{port}/cart")),
        (only, "server.address", "127.0.0.1"),
        (only, "server.port", &port),
        (only, "network.peer.address", "127.0.0.1"),
        (only, "network.peer.port", &port),
        (only, "error.type", "404"),
    ] {
        assert_eq!(attribute(span, key).as_deref(), Some(value), "{key}");
    }
    // By the conventions what a client did wrong is an error of the call, not of the server.
    assert_eq!(attribute(whole, "error.type"), None);
    assert!(only.status == Status::error("") && whole.status == Status::Unset);
}

#[test]
fn the_ratio_decides_where_the_client_says_nothing() {
    for (ratio, told_of) in [(0.0, 0), (1.0, 20)] {
        let origin = Origin::named("a");
        let traced = Traced::start(&FleetFile::of(&[origin.address()]), ratio);
        let mut client = Peer::connect(traced.edge.address());
        for _ in 0..20 {
            assert_eq!(client.ask(GET).status(), 200);
        }
        let (whole, tries) = traced.end();
        assert_eq!((whole.len(), tries.len()), (told_of, told_of), "{ratio}");
    }
}

/// An edge with an access log, and where that is.
fn logging(fleet: &FleetFile, settings: &AccessLogSection) -> (Edge, PathBuf) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("tidegate-access-{}-{count}.log", std::process::id()));
    let access_log = AccessLogSection { path: Some(path.clone()), ..settings.clone() };
    (Edge::start_with(fleet, Start { access_log, ..Start::default() }), path)
}

/// What an edge wrote until it ended.
fn logged(mut edge: Edge, path: &PathBuf) -> Vec<String> {
    edge.stop();
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::remove_file(path).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn each_request_is_a_line_with_where_it_was_served_and_without_secrets() {
    let origin = Origin::named("a");
    let (edge, path) = logging(&FleetFile::of(&[origin.address()]), &AccessLogSection::default());
    let mut client = Peer::connect(edge.address());
    client.ask(GET);
    client.ask("GET / HTTP/1.1\r\nHost: site.test\r\nCookie: secret\r\nAuthorization: secret\r\n\r\n");
    let lines = logged(edge, &path);
    assert!(!lines.concat().contains("secret"), "{lines:?}");
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    for (key, value) in [
        ("edge", "edge-1"),
        ("method", "GET"),
        ("path", "/cart"),
        ("host", "site.test"),
        ("protocol", "1.1"),
        ("client", "127.0.0.1"),
        ("user_agent", "test/1"),
        ("endpoint", &origin.address().to_string()),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    assert_eq!((line["status"].as_u64(), line["bytes_out"].as_u64()), (Some(200), Some(1)));
    assert_eq!((line["attempts"].as_u64(), line["tier"].as_u64()), (Some(1), Some(0)));
    assert_eq!(lines.len(), 2);
}

#[test]
fn what_is_refused_is_a_line_too_with_what_is_known_of_it() {
    let origin = Origin::named("a");
    let limits = "protocol: http, limits: { header_count: 20, head_timeout: 200ms }";
    let (edge, path) =
        logging(&FleetFile::of(&[origin.address()]).listener(limits), &AccessLogSection::default());
    let many = "X: a\r\n".repeat(21);
    for request in [
        "GET /one?token=secret HTTP/1.1\r\nHost: site.test\r\nX : a\r\n\r\n",
        &format!("PUT /two HTTP/1.0\r\nHost: site.test\r\n{many}\r\n"),
        "G\"T /three?secret HTTP/1.1\r\n\r\n",
        "POST http://user:secret@site.test/four HTTP/2.0\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET /slow?secret",
    ] {
        let mut client = Peer::connect(edge.address());
        client.send(request);
        client.answer();
    }
    let lines = logged(edge, &path);
    assert!(!lines.concat().contains("secret"), "{lines:?}");
    let told: Vec<String> = lines
        .iter()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["error"].as_str().is_some_and(|why| !why.is_empty()), "{line}");
            assert_eq!((&line["host"], &line["client"]), (&"-".into(), &"127.0.0.1".into()));
            assert_eq!(line["edge"], "edge-1");
            ["status", "method", "path", "protocol"]
                .map(|key| line[key].to_string().replace('"', ""))
                .join(" ")
        })
        .collect();
    assert_eq!(
        told,
        ["400 GET /one 1.1", "431 PUT /two 1.0", "400 - - -", "505 POST - -", "400 - - -", "408 GET /slow -"]
    );
}

#[test]
fn a_line_is_bounded_and_one_line_whatever_a_client_sends() {
    for format in [AccessFormat::Json, AccessFormat::Common] {
        let origin = Origin::named("a");
        let settings = AccessLogSection { format, ..AccessLogSection::default() };
        let (edge, path) = logging(&FleetFile::of(&[origin.address()]), &settings);
        let long = "a".repeat(15_000);
        let request = [
            format!("GET /\u{2028}{long} HTTP/1.1\r\nHost: site.test\r\nReferer: {long}\r\nUser-Agent: \u{85}\u{202e}").into_bytes(),
            b"\xff\xfe".to_vec(),
            format!("{long}\r\n\r\n").into_bytes(),
        ]
        .concat();
        assert_eq!(Peer::connect(edge.address()).ask(request).status(), 200);
        let lines = logged(edge, &path);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].len() < 4500, "{} bytes", lines[0].len());
        assert!(
            lines[0].contains("xff") && !lines[0].contains(['\u{2028}', '\u{85}', '\u{202e}']),
            "{}",
            lines[0]
        );
    }
}

#[test]
fn the_common_form_is_one_that_log_readers_know() {
    let origin = Origin::named("a");
    let settings = AccessLogSection { format: AccessFormat::Common, ..AccessLogSection::default() };
    let (edge, path) = logging(&FleetFile::of(&[origin.address()]), &settings);
    Peer::connect(edge.address()).ask(GET);
    let lines = logged(edge, &path);
    assert!(lines[0].starts_with("127.0.0.1 - - ["), "{lines:?}");
    assert!(
        lines[0].ends_with(" +0000] \"GET /cart HTTP/1.1\" 200 1 \"-\" \"test/1\" \"edge-1\""),
        "{lines:?}"
    );
}

#[test]
fn a_ratio_thins_out_ordinary_requests_and_never_errors() {
    let busy = Origin::answering(|request| {
        if request.target() == "/busy" { BUSY.into() } else { b"HTTP/1.1 204 No Content\r\n\r\n".to_vec() }
    });
    let settings = AccessLogSection { ratio: 0.25, ..AccessLogSection::default() };
    let (edge, path) = logging(&FleetFile::of(&[busy.address()]), &settings);
    let mut client = Peer::connect(edge.address());
    for _ in 0..20 {
        client.ask("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
    }
    client.ask("POST /busy HTTP/1.1\r\nHost: site.test\r\nContent-Length: 0\r\n\r\n");
    let lines = logged(edge, &path);
    let with = |status: &str| lines.iter().filter(|line| line.contains(status)).count();
    assert_eq!((with("\"status\":204"), with("\"status\":503")), (5, 1));
}

#[test]
fn one_series_names_the_edge_for_all_others() {
    let edge = Edge::start(&FleetFile::of(&[Origin::named("a").address()]));
    let metrics = edge.metrics();
    assert!(metrics.contains("tidegate_edge_info{edge=\"edge-1\",region=\"here\"} 1\n"), "{metrics}");
    assert_eq!(metrics.matches("edge=\"edge-1\"").count(), 1, "no other series has it as a label");
}

#[test]
fn durations_are_counted_by_service_cluster_and_tier() {
    let good = Origin::named("b");
    let fleet = FleetFile::new().cluster("a", &[Origin::refusing()], "").cluster("b", &[good.address()], "");
    let edge = Edge::start(&fleet);
    let mut client = Peer::connect(edge.address());
    client.ask(GET);
    client.ask(GET);
    drop(client);
    let labels = "cluster=\"b\",service=\"site\",status=\"2xx\",tier=\"1\"";
    let line = format!("tidegate_served_request_duration_seconds_count{{{labels}}} 2\n");
    // A client may have the end of its answer a little before that is counted.
    eventually("both are counted where they were served", || edge.metrics().contains(&line));
}

#[test]
fn durations_of_requests_are_told_by_the_conventions_whoever_answered() {
    let origin = Origin::answering(|request| match request.target() {
        "/odd" => b"HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    });
    let fleet = FleetFile::of(&[origin.address()])
        .cluster("none", &[Origin::refusing()], "")
        .prefer("[a]")
        .routes("{ path_prefix: /none, clusters: [none] }");
    let edge = Edge::start(&fleet);
    for request in [
        "BREW /odd HTTP/1.1\r\nHost: site.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n",
        "GET /none/x HTTP/1.1\r\nHost: site.test\r\n\r\n",
        "HEAD / HTTP/1.1\r\nHost: other.test\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut client = Peer::connect(edge.address());
        client.send(request);
        client.head().unwrap();
    }
    let site = "tidegate_service=\"site\",url_scheme=\"http\"";
    for labels in [
        // What HTTP has not registered means what the first of its class does (RFC 9110, section 15).
        &format!("http_request_method=\"_OTHER\",http_response_status_code=\"200\",{site}"),
        &format!("http_request_method=\"GET\",http_response_status_code=\"404\",{site}"),
        &format!(
            "error_type=\"502\",http_request_method=\"GET\",http_response_status_code=\"502\",http_route=\"/none/*\",{site}"
        ),
        "http_request_method=\"HEAD\",http_response_status_code=\"404\",url_scheme=\"http\"",
        "http_request_method=\"GET\",http_response_status_code=\"400\",url_scheme=\"http\"",
    ] {
        let line = format!("http_server_request_duration_seconds_count{{{labels}}} 1\n");
        eventually(&line, || edge.metrics().contains(&line));
    }
}

#[test]
fn it_is_told_how_connections_to_a_cluster_stand_and_when_it_is_at_its_limit() {
    let slow = Origin::answering(|request| match request.target() {
        "/never" => Vec::new(),
        _ => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
    });
    let fleet = FleetFile::new().cluster("a", &[slow.address()], "max_requests: 1");
    let edge = Edge::start(&fleet);
    Peer::connect(edge.address()).ask("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
    let gauge = |name: &str, value: u32| {
        let line = format!("tidegate_cluster_{name}{{cluster=\"a\"}} {value}\n");
        eventually(&line, || edge.metrics().contains(&line));
    };
    gauge("connections_idle", 1);
    gauge("requests_active", 0);

    let mut waiting = Peer::connect(edge.address());
    waiting.send("GET /never HTTP/1.1\r\nHost: site.test\r\n\r\n");
    gauge("requests_active", 1);
    gauge("connections_idle", 0);
    gauge("at_limit_total", 0);
    Peer::connect(edge.address()).ask("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
    gauge("at_limit_total", 1);
}
