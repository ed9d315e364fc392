//! Request heads.

use tidegate_http1::{
    Framing, Method, PathRules, Request, RequestRules, Underscores, Version, parse_request, write_field,
    write_request_line,
};

use super::model;

const RULES: RequestRules = RequestRules {
    head_bytes: 4096,
    fields: 32,
    underscores: Underscores::Drop,
    paths: PathRules::DEFAULT,
    is_tls: false,
};

/// Whether a name has nothing that some reader takes for another character.
fn is_plain(name: &[u8]) -> bool {
    name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// What the model reads: method, target, host, fields, framing.
type Read = (String, String, String, Vec<(Vec<u8>, Vec<u8>)>, Framing);

/// Checks that `input` is read as the model and `httparse` read it, whole and in part, and that it is the same request
/// when it was written anew.
///
/// # Panics
/// When it is not.
pub fn check(input: &[u8]) {
    let mut request = Request::default();
    let parsed = parse_request(input, RULES, &mut request);
    let expected = model::head(input).map(|(lines, length)| (read(&lines), length));
    match (parsed, expected) {
        (Ok(Some((length, framing))), Some((Some(expected), model_length))) => {
            assert_eq!(length, model_length);
            assert_eq!(flat(&request, framing), expected);
            agrees_with_httparse(&input[..length], &request, length);
            for part in [length - 1, length / 2] {
                let whole = parse_request(&input[..part], RULES, &mut Request::default());
                assert!(matches!(whole, Ok(None)), "a part is read as {whole:?}");
            }
            let mut anew = Vec::new();
            write_request_line(&mut anew, request.method.as_str(), &request.target);
            if request.version == Version::Http11 || !request.host.is_empty() {
                write_field(&mut anew, b"host", request.host.as_bytes());
            }
            for (name, value) in request.fields.iter() {
                write_field(&mut anew, name, value);
            }
            anew.extend_from_slice(b"\r\n");
            let mut again = Request::default();
            if request.version == Version::Http11 {
                let parsed = parse_request(&anew, RequestRules { head_bytes: 65536, ..RULES }, &mut again);
                assert_eq!(parsed, Ok(Some((anew.len(), framing))));
                assert_eq!(flat(&again, framing), flat(&request, framing));
            }
        }
        (Ok(Some(_)), other) => panic!("read as {request:?}, by the model as {other:?}"),
        (Ok(None), Some((Some(_), length))) => panic!("not read as whole, of {length} bytes"),
        (Err(error), Some((Some(expected), length))) if length <= RULES.head_bytes => {
            panic!("refused ({error}), by the model read as {expected:?}")
        }
        (Ok(None) | Err(_), _) => {}
    }
}

fn flat(request: &Request, framing: Framing) -> Read {
    let fields = request.fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    (request.method.as_str().to_owned(), request.target.clone(), request.host.clone(), fields, framing)
}

/// What a head says by the RFCs and the rules; nothing when it is to be refused.
fn read(lines: &[&[u8]]) -> Option<Read> {
    let (line, rest) = lines.split_first()?;
    let line = std::str::from_utf8(line).ok()?;
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else { return None };
    let is_http10 = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return None,
    };
    if !model::is_token(method.as_bytes()) || rest.len() > RULES.fields {
        return None;
    }
    let mut fields = rest.iter().map(|line| model::field(line)).collect::<Option<Vec<_>>>()?;
    let mut hosts = Vec::new();
    for (name, value) in &fields {
        if name == b"host" {
            hosts.push(String::from_utf8(value.clone()).ok()?);
        }
    }
    fields.retain(|(name, _)| name != b"host" && is_plain(name));
    let mut host = match &hosts[..] {
        [] if is_http10 => String::new(),
        [host] if host.is_empty() || model::is_host(host) => host.clone(),
        _ => return None,
    };
    let plain = |text: &str| text.bytes().all(|byte| byte > b' ' && byte != 0x7f && byte != b'#');
    if target.is_empty() || !plain(target) {
        return None;
    }
    let target = if target.starts_with('/') || (method == "OPTIONS" && target == "*") {
        target.to_owned()
    } else if method == "CONNECT" {
        if !model::is_host(target) {
            return None;
        }
        target.to_owned()
    } else {
        if !target.get(..7)?.eq_ignore_ascii_case("http://") {
            return None;
        }
        let after = &target[7..];
        let end = after.find(['/', '?']).unwrap_or(after.len());
        if !model::is_host(&after[..end]) {
            return None;
        }
        host = after[..end].to_owned();
        match &after[end..] {
            "" if method == "OPTIONS" => "*".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        }
    };
    let framing = match model::framing(&fields, is_http10).ok()? {
        None | Some(Ok(0)) => Framing::Empty,
        Some(Ok(length)) => Framing::Length(length),
        Some(Err(())) => Framing::Chunked,
    };
    if method == "TRACE" && framing != Framing::Empty {
        return None;
    }
    Some((method.to_owned(), target, host, fields, framing))
}

fn agrees_with_httparse(input: &[u8], request: &Request, length: usize) {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut other = httparse::Request::new(&mut headers);
    assert_eq!(other.parse(input), Ok(httparse::Status::Complete(length)));
    assert_eq!(Method::from(other.method.unwrap()), request.method);
    let mut kept = other
        .headers
        .iter()
        .filter(|header| !header.name.eq_ignore_ascii_case("host") && is_plain(header.name.as_bytes()));
    for (name, value) in request.fields.iter() {
        let header = kept.next().unwrap();
        assert_eq!((header.name.to_ascii_lowercase().as_bytes(), header.value), (name, value));
    }
    assert!(kept.next().is_none());
}
