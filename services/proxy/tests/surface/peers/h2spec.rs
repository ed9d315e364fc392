//! h2spec's cases of all its sections (generic, http2, hpack) against the edge, in clear text and over TLS.

use std::process::{Command, Stdio};

use crate::harness::{certificates::Authority, edge::Edge, fleet::FleetFile, origin::Origin};

/// The cases that h2spec 2.2.1 has, strict ones included. Fewer would mean that some were not run.
const CASES: usize = 146;

/// A case that the edge does not pass, and why that is right.
struct Exception {
    section: &'static str,
    case: &'static str,
    /// Whether it passes over TLS all the same.
    only_in_clear_text: bool,
    #[allow(dead_code, reason = "for whoever reads this list")]
    reason: &'static str,
}

const EXCEPTIONS: [Exception; 1] = [Exception {
    section: "http2/3.5",
    case: "Sends invalid connection preface",
    only_in_clear_text: true,
    reason: "A port without TLS speaks both versions (RFC 9113, section 3.3), so what does not begin with the preface is a \
             request of HTTP/1.1, and its 400 is the right response to a wrong one.",
}];

/// What came of a case.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
    Failed(String),
}

/// The value of an attribute in an element of XML.
fn attribute(element: &str, name: &str) -> String {
    let value = element.split_once(&format!(" {name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
    unescape(value.map_or("", |(value, _)| value))
}

fn unescape(text: &str) -> String {
    let named =
        [("&lt;", "<"), ("&gt;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&#xA;", "\n"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (name, character)| text.replace(name, character))
}

/// The cases in h2spec's report, which is in the format of JUnit: section, description, outcome.
fn cases(report: &str) -> Vec<(String, String, Outcome)> {
    let elements = report.split("<testcase").skip(1);
    elements
        .map(|element| {
            let outcome = if element.contains("<failure") || element.contains("<error") {
                let text = element.split_once("<failure>").or_else(|| element.split_once("<error>"));
                let text = text.and_then(|(_, rest)| rest.split_once("</")).map_or("", |(text, _)| text);
                Outcome::Failed(unescape(text))
            } else if element.contains("<skipped") {
                Outcome::Skipped
            } else {
                Outcome::Passed
            };
            (attribute(element, "package"), attribute(element, "classname"), outcome)
        })
        .collect()
}

/// Runs all cases against `edge`.
///
/// # Panics
/// When one fails that is no exception, when an exception passes, and when not all were run.
fn run(edge: &Edge, is_tls: bool) {
    let file = std::env::temp_dir().join(format!("tidegate-h2spec-{}-{is_tls}.xml", std::process::id()));
    let port = edge.address().port().to_string();
    let mut h2spec = Command::new("h2spec");
    h2spec.args(["--strict", "--timeout", "3", "--host", "127.0.0.1", "--port", &port]);
    h2spec.arg("--junit-report").arg(&file).stdin(Stdio::null());
    if is_tls {
        h2spec.args(["--tls", "--insecure"]);
    }
    let output = h2spec
        .output()
        .unwrap_or_else(|error| panic!("h2spec is needed by this test and cannot be run: {error}"));
    let report = std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    _ = std::fs::remove_file(&file);
    let cases = cases(&report);
    let mut wrong = Vec::new();
    for (section, case, outcome) in &cases {
        let is_exception = EXCEPTIONS.iter().any(|exception| {
            (exception.section, exception.case) == (section, case)
                && !(is_tls && exception.only_in_clear_text)
        });
        match outcome {
            Outcome::Passed if is_exception => {
                wrong.push(format!("{section}: {case}: passes, and is an exception"));
            }
            Outcome::Passed => {}
            Outcome::Skipped | Outcome::Failed(_) if is_exception => {}
            Outcome::Skipped => wrong.push(format!("{section}: {case}: was skipped")),
            Outcome::Failed(text) => wrong.push(format!("{section}: {case}:\n{text}")),
        }
    }
    let passed = cases.iter().filter(|(_, _, outcome)| *outcome == Outcome::Passed).count();
    println!("h2spec, TLS {is_tls}: {passed} of {} cases passed", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(cases.len(), CASES, "not all were run");
}

/// A body of more bytes than h2spec's cases of flow control need.
fn origin() -> Origin {
    Origin::scripted(|mut peer, _, _| {
        while let Some(mut request) = peer.head_or_end() {
            // Many cases break off within a request.
            if !peer.body_of_request_or_end(&mut request) {
                return;
            }
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n";
            let body = if request.line.starts_with("HEAD ") { String::new() } else { "x".repeat(64) };
            if peer.try_send(format!("{head}{body}")).is_err() {
                return;
            }
        }
    })
}

#[test]
#[ignore = "needs h2spec: make test-peers"]
fn h2spec_passes_in_clear_text() {
    let origin = origin();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]).hosts("\"*\""));
    run(&edge, false);
}

#[test]
#[ignore = "needs h2spec: make test-peers"]
fn h2spec_passes_over_tls() {
    let origin = origin();
    let authority = Authority::new("h2spec");
    let listener = format!("protocol: https, certificates: [{}]", authority.item("site", &["site.test"]));
    let edge = Edge::start(&FleetFile::of(&[origin.address()]).listener(&listener).hosts("\"*\""));
    run(&edge, true);
}
