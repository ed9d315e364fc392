//! What a client or an origin sends to be taken for something else: hosts, field names, trailers, lengths.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};

use crate::harness::{
    DEADLINE,
    edge::Edge,
    fleet::FleetFile,
    http2::{Exchange, Http2Origin, Serving, client, read, request},
    origin::Origin,
    peer::Peer,
};

/// What readers could understand differently, or would repeat in `x-forwarded-host`.
const NO_HOSTS: [&str; 12] = [
    "shop.test:abc",
    "[shop.test]evil",
    "shop.test:80:90",
    "x y.wild.test",
    "shop.test:80/x",
    "<script>.wild.test",
    "user@shop.test",
    "shop.test:65536",
    "shop.test:",
    "a.test,b.test",
    "shop%2etest",
    "[::1",
];

/// An edge whose service answers for any host, so that only the host itself can be what is refused.
fn edge(origin: &Origin, listener: &str) -> Edge {
    let text = FleetFile::of(&[origin.address()]).listener(listener);
    Edge::start(&text.hosts("\"*\""))
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

/// The status that a request without a body gets over HTTP/2; nothing when its stream was reset.
async fn status(edge: &Edge, request: Request<()>) -> Option<u16> {
    let mut client = client(edge.address()).await;
    let (response, _) = client.send_request(request, true).unwrap();
    soon(response).await.ok().map(|response| response.status().as_u16())
}

fn refused(edge: &Edge, reason: &str) -> f64 {
    let series = format!("tidegate_proxy_requests_refused_total{{reason=\"{reason}\"}} ");
    let text = edge.metrics();
    text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_host_that_is_none_is_refused_however_it_arrives() {
    let origin = Origin::named("a");
    let edge = edge(&origin, "protocol: http");
    for host in NO_HOSTS {
        let host_field = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let mut ways = vec![host_field];
        if !host.contains([' ', '/']) {
            ways.push(format!("GET http://{host}/ HTTP/1.1\r\nHost: shop.test\r\n\r\n"));
        }
        for way in ways {
            assert_eq!(Peer::connect(edge.address()).ask(&way).status(), 400, "{way:?}");
        }
        let mut field = Request::builder().uri("/").body(()).unwrap();
        field.headers_mut().insert("host", HeaderValue::from_str(host).unwrap());
        assert_eq!(status(&edge, field).await, Some(400), "host: {host}");
        // What no URI has cannot be given to this client, nor does the server's library let it through.
        if let Ok(uri) = http::Uri::builder().scheme("http").authority(host).path_and_query("/").build() {
            let authority = Request::builder().uri(uri).body(()).unwrap();
            assert_eq!(status(&edge, authority).await, Some(400), ":authority: {host}");
        }
    }
    assert_eq!(origin.seen().count(), 0);
    assert!(refused(&edge, "host") >= 36.0, "{}", edge.metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn pseudo_fields_that_contradict_are_refused() {
    let origin = Origin::named("a");
    let edge = edge(&origin, "protocol: http");
    let mut differ = request("GET");
    differ.headers_mut().insert("host", HeaderValue::from_static("other.test"));
    assert_eq!(status(&edge, differ).await, Some(400));
    let mut same = request("GET");
    same.headers_mut().insert("host", HeaderValue::from_static("Site.test:80"));
    assert_eq!(status(&edge, same).await, Some(200));
    let scheme = Request::builder().uri("https://site.test/").body(()).unwrap();
    assert_eq!(status(&edge, scheme).await, Some(400));
    let absolute = "GET https://site.test/ HTTP/1.1\r\nHost: site.test\r\n\r\n";
    assert_eq!(Peer::connect(edge.address()).ask(absolute).status(), 400);
    let star = |method: &str| {
        Request::builder().method(method).uri("*").header("host", "site.test").body(()).unwrap()
    };
    assert_eq!(status(&edge, star("GET")).await, Some(400));
    assert_eq!(status(&edge, star("OPTIONS")).await, Some(200));
    let mut padded = request("GET");
    padded.headers_mut().insert("x-padded", HeaderValue::from_static("a "));
    assert_eq!(status(&edge, padded).await, Some(400));
    assert_eq!(origin.seen().count(), 2);
    let counted = ["host", "scheme", "target", "field"].map(|reason| refused(&edge, reason));
    assert_eq!(counted, [1.0, 2.0, 1.0, 1.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn names_with_underscores_are_dropped_refused_or_passed() {
    let text = "GET / HTTP/1.1\r\nHost: site.test\r\nX_Forwarded_Proto: https\r\nContent_Length: 5\r\n\r\n";
    for (setting, expected, seen) in
        [("drop", 200, None), ("refuse", 400, None), ("pass", 200, Some("https"))]
    {
        let origin = Origin::named("a");
        let edge = edge(&origin, &format!("protocol: http, underscores_in_headers: {setting}"));
        assert_eq!(Peer::connect(edge.address()).ask(text).status(), expected, "{setting}");
        let mut over_http2 = request("GET");
        over_http2.headers_mut().insert("x_forwarded_proto", HeaderValue::from_static("https"));
        over_http2.headers_mut().insert("content_length", HeaderValue::from_static("5"));
        assert_eq!(status(&edge, over_http2).await, Some(expected), "{setting}");
        let requests = origin.seen().requests();
        assert_eq!(requests.len(), if expected == 200 { 2 } else { 0 }, "{setting}");
        assert!(requests.iter().all(|request| request.field("x_forwarded_proto") == seen), "{setting}");
        assert_eq!(refused(&edge, "underscore"), if expected == 400 { 2.0 } else { 0.0 });
        let dropped = if setting == "drop" { 4.0 } else { 0.0 };
        assert_eq!(edge.metric("tidegate_proxy_fields_dropped_total"), dropped, "{setting}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_route_is_chosen_by_the_path_that_its_origin_reads() {
    let [site, admin] = ["site", "admin"].map(Origin::named);
    let fleet = |listener: &str| {
        FleetFile::new()
            .cluster("site", &[site.address()], "")
            .cluster("admin", &[admin.address()], "")
            .prefer("[site]")
            .routes("{ path_prefix: /admin, clusters: [admin] }")
            .listener(&format!("protocol: http{listener}"))
    };
    let ask = async |edge: &Edge, path: &str| {
        let text = format!("GET {path} HTTP/1.1\r\nHost: site.test\r\n\r\n");
        let by_http1 = Peer::connect(edge.address()).ask(&text).status();
        let mut by_http2 = request("GET");
        *by_http2.uri_mut() = format!("http://site.test{path}").parse().unwrap();
        assert_eq!(status(edge, by_http2).await, Some(by_http1), "{path}");
        by_http1
    };
    let last = |origin: &Origin| origin.seen().requests().last().map(|request| request.line.clone());

    // Whatever way it is written, the route and the origin see one path.
    let edge = Edge::start(&fleet(""));
    for path in ["/admin/x", "//admin/x", "/./admin/x", "/y/../admin/x", "/%61dmin/x", "/y/%2e%2E/admin//x"] {
        let before = admin.seen().count();
        assert_eq!(ask(&edge, path).await, 200, "{path}");
        assert_eq!(admin.seen().count(), before + 2, "{path}");
        assert_eq!(last(&admin).as_deref(), Some("GET /admin/x HTTP/1.1"), "{path}");
    }
    assert_eq!(ask(&edge, "/y/..%2fadmin").await, 200);
    assert_eq!(last(&site).as_deref(), Some("GET /y/..%2Fadmin HTTP/1.1"));
    assert_eq!(ask(&edge, "/%zz").await, 400);
    assert_eq!(refused(&edge, "target"), 2.0);
    drop(edge);

    let edge = Edge::start(&fleet(", escaped_slashes: refuse, merge_slashes: false"));
    assert_eq!(ask(&edge, "/y/..%2fadmin").await, 400);
    assert_eq!(ask(&edge, "/y//z").await, 200);
    assert_eq!(last(&site).as_deref(), Some("GET /y//z HTTP/1.1"));
    drop(edge);

    let edge = Edge::start(&fleet(", escaped_slashes: decode"));
    assert_eq!(ask(&edge, "/y/..%2fadmin").await, 200);
    assert_eq!(last(&admin).as_deref(), Some("GET /admin HTTP/1.1"));
    drop(edge);

    let edge = Edge::start(&fleet(", path_normalization: as_received"));
    assert_eq!(ask(&edge, "/./admin//%61").await, 200);
    assert_eq!(last(&site).as_deref(), Some("GET /./admin//%61 HTTP/1.1"));
}

/// An origin over HTTP/2 that ends its response with forged trailers and metadata of its own.
async fn forging(mut exchange: Exchange) {
    exchange.note().await;
    let mut stream = exchange.respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from_static(b"message"), false).unwrap();
    stream.send_trailers(forged_trailers()).unwrap();
}

fn forged_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for name in [
        "x-real-ip",
        "forwarded",
        "via",
        "traceparent",
        "x-forwarded-for",
        "x-request-id",
        "host",
        "cookie",
        "authorization",
        "set-cookie",
        "content-length",
        "x_real_ip",
        "my-metadata",
        "grpc-status",
    ] {
        trailers.insert(name, HeaderValue::from_static("7"));
    }
    trailers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_carry_nothing_that_identifies_routes_or_frames() {
    let text: String = forged_trailers()
        .iter()
        .map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()))
        .collect();
    let http1 = Origin::answering({
        let text = text.clone();
        move |_| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{text}\r\n").into()
    });
    let http2 = Http2Origin::start(Serving::default(), forging);
    for (address, more) in [(http1.address(), ""), (http2.address(), "protocol: http2")] {
        let edge = Edge::start(&FleetFile::new().cluster("a", &[address], more));
        let post = "POST / HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n";
        let response = Peer::connect(edge.address()).ask(format!("{post}{text}\r\n"));
        let mut names: Vec<&str> = response.trailers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        // An underscore is no harm to who reads a response, and gRPC allows it in names of metadata.
        assert_eq!(names, ["grpc-status", "my-metadata", "x_real_ip"]);

        let mut client = client(edge.address()).await;
        let (response, mut body) = client.send_request(request("POST"), false).unwrap();
        body.send_data(Bytes::from_static(b"a"), false).unwrap();
        body.send_trailers(forged_trailers()).unwrap();
        let (_, trailers) = soon(read(soon(response).await.unwrap().body_mut())).await.unwrap();
        assert_eq!(edge.metric("tidegate_proxy_fields_dropped_total"), 2.0 * 13.0);
        let mut names: Vec<&str> = trailers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["grpc-status", "my-metadata", "x_real_ip"]);
    }
    for seen in [http1.seen().requests(), http2.seen().requests()].concat() {
        assert_eq!(seen.trailers, [("grpc-status".to_owned(), "7".to_owned())]);
    }
}

#[test]
fn a_response_that_readers_could_understand_differently_is_502_and_its_connection_ends() {
    let responses = [
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
    ];
    for response in responses {
        let origin = Origin::answering(move |_| response.into());
        let edge = Edge::start(&FleetFile::of(&[origin.address()]));
        let mut client = Peer::connect(edge.address());
        for _ in 0..2 {
            let answer = client.ask("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(answer.status(), 502, "{response:?}");
        }
        assert_eq!(origin.seen().connections(), 2, "{response:?}");
    }
}

#[test]
fn a_length_above_the_largest_signed_number_is_refused() {
    let origin = Origin::named("a");
    let edge = edge(&origin, "protocol: http");
    let post = "POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 9223372036854775808\r\n\r\n";
    assert_eq!(Peer::connect(edge.address()).ask(post).status(), 400);
    assert_eq!((origin.seen().count(), refused(&edge, "framing")), (0, 1.0));
}

#[test]
fn max_forwards_ends_here_or_is_counted_down() {
    let origin = Origin::named("a");
    let edge = edge(&origin, "protocol: http");
    let ask = |method: &str, field: &str| {
        Peer::connect(edge.address())
            .ask(format!("{method} / HTTP/1.1\r\nHost: site.test\r\n{field}\r\n\r\n"))
    };
    let options = ask("OPTIONS", "Max-Forwards: 0");
    assert_eq!(options.status(), 200);
    assert!(options.field("allow").is_some_and(|methods| methods.contains("OPTIONS")));
    let trace = ask("TRACE", "Max-Forwards: 0\r\nCookie: secret=1");
    assert_eq!(trace.status(), 405);
    assert!(!trace.text().contains("secret"));
    assert_eq!(ask("OPTIONS", "Max-Forwards: x").status(), 400);
    assert_eq!(ask("TRACE", "Content-Length: 1").status(), 400);
    assert_eq!(origin.seen().count(), 0);
    assert_eq!(ask("OPTIONS", "Max-Forwards: 10").status(), 200);
    assert_eq!(ask("TRACE", "Max-Forwards: 1").status(), 200);
    assert_eq!(ask("GET", "Max-Forwards: 1").status(), 200);
    let seen: Vec<_> =
        origin.seen().requests().iter().map(|r| r.field("max-forwards").map(str::to_owned)).collect();
    assert_eq!(seen, ["9", "0", "1"].map(|left| Some(left.to_owned())));
}

#[test]
fn a_listener_says_which_health_questions_it_answers() {
    for (setting, own, of_service) in [("on", 200, 200), ("edge", 200, 404), ("off", 404, 404)] {
        let origin = Origin::named("a");
        let edge = edge(&origin, &format!("protocol: http, health_endpoints: {setting}"));
        let ask = |path: &str| {
            let get = format!("GET /.well-known/tidegate/health{path} HTTP/1.1\r\nHost: site.test\r\n\r\n");
            Peer::connect(edge.address()).ask(get)
        };
        assert_eq!((ask("").status(), ask("/site").status()), (own, of_service), "{setting}");
        assert_eq!(origin.seen().count(), 0, "and none is forwarded");
    }
}

#[test]
fn a_service_that_does_not_exist_is_answered_for_like_one_that_is_down() {
    let origin = Origin::named("a");
    let mut edge = Edge::start(&FleetFile::of(&[origin.address()]));
    edge.health("a", &[(origin.address(), tidegate_model::verdict::Verdict::Down, false)]);
    let ask = |service: &str| {
        let get = format!(
            "GET /.well-known/tidegate/health/{service} HTTP/1.1\r\nHost: x.test\r\nX-Request-Id: 1\r\n\r\n"
        );
        let mut answer = Peer::connect(edge.address()).ask(get);
        answer.fields.retain(|(name, _)| name != "date");
        answer
    };
    assert_eq!(ask("site"), ask("none"));
}
