//! TLS on either side, asked by peers that others wrote: `curl`, `openssl s_client`, `nghttp` and `h2load` (Debian's
//! packages `curl`, `openssl` and `nghttp2-client`). A test whose peer is not installed fails and says so.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use tidegate_tls::{HTTP1, HTTP2};

use crate::harness::{
    certificates::Authority,
    edge::Edge,
    eventually,
    fleet::FleetFile,
    http2::{Http2Origin, Serving},
    origin::Origin,
    peer::Peer,
};

/// Runs a program and returns what it printed; `input` is held open until it ends.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed by this test and cannot be run: {error}"));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), text.join("\n"))
}

/// Runs curl against the edge as `host`; prints `version status` after the body.
#[track_caller]
fn curl(edge: &Edge, scheme: &str, host: &str, more: &[&str]) -> String {
    let port = edge.address().port();
    let resolve = format!("{host}:{port}:127.0.0.1");
    let url = format!("{scheme}://{host}:{port}/");
    let mut arguments = vec![
        "--silent",
        "--show-error",
        "--max-time",
        "15",
        "--resolve",
        &resolve,
        "--write-out",
        " %{http_version} %{http_code}",
    ];
    arguments.extend(more);
    arguments.push(&url);
    let (ok, text) = run("curl", &arguments);
    assert!(ok, "{text}");
    text.trim().to_owned()
}

fn https(authority: &Authority, origin: &Origin) -> FleetFile {
    FleetFile::of(&[origin.address()])
        .listener(&format!("protocol: https, certificates: [{}]", authority.item("site", &["site.test"])))
}

#[test]
fn curl_is_served_over_http1_and_http2_without_tls() {
    let origin = Origin::answering(|request| {
        let body = request.text();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    assert_eq!(curl(&edge, "http", "site.test", &["--data", "one"]), "one 1.1 200");
    assert_eq!(curl(&edge, "http", "site.test", &["--http2-prior-knowledge", "--data", "two"]), "two 2 200");
    // An upgrade to HTTP/2 is not taken, and the request is served as it is.
    assert_eq!(curl(&edge, "http", "site.test", &["--http2"]), "1.1 200");
    assert_eq!(curl(&edge, "http", "site.test", &["--http1.0"]), "1.1 200");
    let expect = ["--data", "three", "--header", "Expect: 100-continue", "--expect100-timeout", "10"];
    assert_eq!(curl(&edge, "http", "site.test", &expect), "three 1.1 200");
    let chunked = ["--data", "four", "--header", "Transfer-Encoding: chunked"];
    assert_eq!(curl(&edge, "http", "site.test", &chunked), "four 1.1 200");
    assert_eq!(curl(&edge, "http", "site.test", &["--head", "--output", "/dev/null"]), "1.1 200");
}

#[test]
fn the_version_is_chosen_by_alpn() {
    let (authority, origin) = (Authority::new("alpn"), Origin::named("a"));
    let edge = Edge::start(&https(&authority, &origin));
    let ca = authority.file();
    assert_eq!(curl(&edge, "https", "site.test", &["--cacert", &ca]), "a 2 200");
    assert_eq!(curl(&edge, "https", "site.test", &["--cacert", &ca, "--http1.1"]), "a 1.1 200");
    assert_eq!(curl(&edge, "https", "site.test", &["--cacert", &ca, "--no-alpn"]), "a 1.1 200");
    let old = ["--cacert", &ca, "--tls-max", "1.2"];
    assert_eq!(curl(&edge, "https", "site.test", &old), "a 2 200");
    assert!(
        origin.seen().requests().iter().all(|request| request.field("x-forwarded-proto") == Some("https"))
    );
}

#[test]
fn the_certificate_is_chosen_by_sni_and_the_first_is_the_default() {
    let (authority, origin) = (Authority::new("sni"), Origin::named("a"));
    let [first, second] = [("site", ["site.test"]), ("other", ["*.other.test"])]
        .map(|(name, hosts)| authority.item(name, &hosts));
    let fleet = FleetFile::of(&[origin.address()])
        .listener(&format!("protocol: https, certificates: [{first}, {second}]"));
    let edge = Edge::start(&fleet);
    let address = edge.address().to_string();
    let subject = |sni: &[&str]| {
        let mut arguments = vec!["s_client", "-connect", &address];
        arguments.extend(sni);
        run("openssl", &arguments).1
    };
    assert!(subject(&["-servername", "site.test"]).contains("subject=CN = site"));
    assert!(subject(&["-servername", "www.other.test"]).contains("subject=CN = other"));
    assert!(subject(&["-servername", "unknown.test"]).contains("subject=CN = site"));
    assert!(subject(&["-noservername"]).contains("subject=CN = site"));
}

#[test]
fn a_cluster_whose_authority_is_missing_is_used_once_it_is_there() {
    let authority = Authority::new("late");
    let tls = Serving { tls: Some(authority.origin(&[HTTP2])), ..Serving::default() };
    let two = Http2Origin::named("two", tls);
    let late = format!("{}.late", authority.file());
    let fleet = FleetFile::new().cluster("a", &[two.address()], &format!("tls: {{ ca: {late} }}"));
    let edge = Edge::start(&fleet);
    let get = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
    assert_eq!(Peer::connect(edge.address()).ask(get).status(), 502);
    std::fs::copy(authority.file(), &late).unwrap();
    eventually("it is used", || Peer::connect(edge.address()).ask(get).status() == 200);
}

#[test]
fn new_certificates_are_used_without_dropping_connections() {
    let (authority, origin) = (Authority::new("reload"), Origin::named("a"));
    let edge = Edge::start(&https(&authority, &origin));
    let address = edge.address().to_string();
    // A connection that stays open over the change.
    let mut old = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &address, "-servername", "site.test"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is needed by this test");
    let get = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
    old.stdin.as_mut().unwrap().write_all(get.as_bytes()).unwrap();
    eventually("the first request is served", || origin.seen().count() == 1);

    let serial = || {
        let shown = run("openssl", &["s_client", "-connect", &address, "-servername", "site.test"]).1;
        let (_, rest) = shown.split_once("-----BEGIN CERTIFICATE-----").expect("a certificate");
        rest.split_once("-----END").expect("its end").0.to_owned()
    };
    let before = serial();
    authority.issue("site", &["site.test"]);
    eventually("the new certificate is shown", || serial() != before);

    let mut stdin = old.stdin.take().unwrap();
    stdin.write_all("GET / HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n".as_bytes()).unwrap();
    let output = old.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(String::from_utf8_lossy(&output.stdout).matches("HTTP/1.1 200 OK").count(), 2);
    assert_eq!(origin.seen().count(), 2);
}

#[test]
fn certificates_that_cannot_be_used_are_a_warning_and_change_nothing() {
    let (authority, origin) = (Authority::new("broken"), Origin::named("a"));
    let item = authority.item("site", &["site.test"]);
    let (_, chain) = item.split_once("chain: ").expect("the file of the chain");
    let chain = chain.split([',', ' ']).next().unwrap().trim_matches('"').to_owned();
    let listener = format!("protocol: https, certificates: [{item}]");
    let edge = Edge::start(&FleetFile::of(&[origin.address()]).listener(&listener));
    assert_eq!(edge.warning("certificates"), "");

    let good = std::fs::read(&chain).unwrap();
    std::fs::write(&chain, "no certificate").unwrap();
    eventually("the warning", || edge.warning("certificates").contains("new certificates are not in use"));
    assert!(edge.is_ready());
    assert_eq!(curl(&edge, "https", "site.test", &["--insecure"]), "a 2 200");

    std::fs::write(&chain, good).unwrap();
    eventually("the end of the warning", || edge.warning("certificates").is_empty());
}

#[test]
fn origins_are_reached_over_tls_in_the_version_that_they_choose() {
    let authority = Authority::new("origins");
    let ca = authority.file();
    let two = Http2Origin::named(
        "two",
        Serving { tls: Some(authority.origin(&[HTTP2, HTTP1])), ..Serving::default() },
    );
    let edge = Edge::start(&FleetFile::new().cluster("a", &[two.address()], &format!("tls: {{ ca: {ca} }}")));
    assert_eq!(curl(&edge, "http", "site.test", &[]), "two 1.1 200");
    assert_eq!(curl(&edge, "http", "site.test", &["--http2-prior-knowledge"]), "two 2 200");
    assert_eq!(two.seen().connections(), 1);
    assert_eq!(two.seen().requests()[0].field("x-forwarded-proto"), Some("http"));
}

#[test]
fn an_origin_whose_certificate_is_not_trusted_gets_nothing() {
    let (authority, other) = (Authority::new("trusted"), Authority::new("untrusted"));
    let two = Http2Origin::named("two", Serving { tls: Some(other.origin(&[HTTP2])), ..Serving::default() });
    let fleet =
        FleetFile::new().cluster("a", &[two.address()], &format!("tls: {{ ca: {} }}", authority.file()));
    let edge = Edge::start(&fleet);
    assert!(curl(&edge, "http", "site.test", &["--data", "secret"]).ends_with("1.1 502"));
    assert_eq!(two.seen().count(), 0);
}

#[test]
fn a_body_passes_whole_with_http2_and_tls_on_both_sides() {
    let authority = Authority::new("both");
    let ca = authority.file();
    let origin = Http2Origin::start(
        Serving { tls: Some(authority.origin(&[HTTP2])), ..Serving::default() },
        |mut exchange| async move {
            exchange.note().await;
            exchange.answer(200, "taken");
        },
    );
    let item = authority.item("site", &["site.test"]);
    let fleet = FleetFile::new()
        .cluster("a", &[origin.address()], &format!("tls: {{ ca: {ca} }}"))
        .listener(&format!("protocol: https, certificates: [{item}]"));
    let edge = Edge::start(&fleet);
    let body: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = std::env::temp_dir().join(format!("tidegate-proxy-body-{}", std::process::id()));
    std::fs::write(&file, &body).unwrap();
    let data = format!("@{}", file.display());
    let answer = curl(&edge, "https", "site.test", &["--cacert", &ca, "--data-binary", &data]);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(answer, "taken 2 200");
    assert!(origin.seen().requests()[0].body == body, "the body differs");
}

#[test]
fn a_broken_handshake_is_counted_and_others_go_on() {
    let (authority, origin) = (Authority::new("handshake"), Origin::named("a"));
    let edge = Edge::start(&https(&authority, &origin));
    let mut plain = crate::harness::peer::Peer::connect(edge.address());
    plain.send("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
    plain.rest();
    eventually("it is counted", || edge.metric("tidegate_proxy_tls_handshakes_failed_total") == 1.0);
    let ca = authority.file();
    assert_eq!(curl(&edge, "https", "site.test", &["--cacert", &ca]), "a 2 200");
    assert_eq!(origin.seen().count(), 1);
}

#[test]
fn nghttp_gets_many_streams_and_a_body() {
    let origin = Origin::named("a");
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let url = format!("http://{}/", edge.address());
    let (ok, text) =
        run("nghttp", &["--stat", "--null-out", "-m", "20", "--header", ":authority: site.test", &url]);
    assert!(ok, "{text}");
    assert_eq!(text.matches(" 200 ").count(), 20, "{text}");
}

#[test]
fn h2load_loses_no_request_over_tls() {
    let (authority, origin) = (Authority::new("load"), Origin::named("a"));
    let edge = Edge::start(&https(&authority, &origin));
    let url = format!("https://{}/", edge.address());
    let arguments = ["-n", "2000", "-c", "10", "-m", "10", "--header", ":authority: site.test", &url];
    let (ok, text) = run("h2load", &arguments);
    assert!(ok, "{text}");
    assert!(text.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    assert_eq!(origin.seen().count(), 2000);
}

#[test]
fn a_request_for_a_host_of_another_certificate_is_misdirected() {
    let (authority, origin) = (Authority::new("misdirected"), Origin::named("a"));
    let [first, second] = [("site", ["site.test"]), ("other", ["*.other.test"])]
        .map(|(name, hosts)| authority.item(name, &hosts));
    let fleet = FleetFile::of(&[origin.address()])
        .listener(&format!("protocol: https, certificates: [{first}, {second}]"));
    let edge = Edge::start(&fleet);
    let port = edge.address().port();
    for version in ["--http1.1", "--http2"] {
        for (sni, host, status) in [
            ("site.test", "site.test", "200"),
            ("www.other.test", "site.test", "421"),
            ("site.test", "www.other.test", "421"),
            // Of the same certificate, but no service's.
            ("www.other.test", "mail.other.test", "404"),
        ] {
            let (resolve, url) = (format!("{sni}:{port}:127.0.0.1"), format!("https://{sni}:{port}/"));
            let host_field = format!("Host: {host}");
            let arguments = [
                "-sk",
                version,
                "--resolve",
                &resolve,
                "-H",
                &host_field,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                &url,
            ];
            assert_eq!(run("curl", &arguments).1.trim(), status, "{version} {sni} {host}");
        }
    }
    assert_eq!(edge.metric("tidegate_proxy_requests_misdirected_total"), 4.0);
}
