//! Response heads.

use tidegate_http1::{Framing, Method, Response, Version, parse_response};

use super::model;

const HEAD_BYTES: usize = 4096;

/// Checks that `input` is read as the model and `httparse` read it, as a response to GET and to HEAD.
///
/// # Panics
/// When it is not.
pub fn check(input: &[u8]) {
    for method in [Method::Get, Method::Head] {
        check_for(input, &method);
    }
}

fn check_for(input: &[u8], method: &Method) {
    let mut response = Response::default();
    let parsed = parse_response(input, HEAD_BYTES, method, &mut response);
    let expected = model::head(input).map(|(lines, length)| (read(&lines, method), length));
    match (parsed, expected) {
        (Ok(Some((length, framing))), Some((Some((status, fields, expected)), model_length))) => {
            assert_eq!((length, response.status, framing), (model_length, status, expected));
            let read: Vec<_> =
                response.fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            assert_eq!(read, fields);
            let mut headers = [httparse::EMPTY_HEADER; 256];
            let mut other = httparse::Response::new(&mut headers);
            assert_eq!(other.parse(input), Ok(httparse::Status::Complete(length)));
            assert_eq!((other.code, other.headers.len()), (Some(status), response.fields.len()));
            assert_eq!(other.version == Some(0), response.version == Version::Http10);
        }
        (Ok(Some(_)), other) => panic!("read as {response:?}, by the model as {other:?}"),
        (Ok(None), Some((Some(_), length))) => panic!("not read as whole, of {length} bytes"),
        (Err(error), Some((Some(expected), length))) if length <= HEAD_BYTES => {
            panic!("refused ({error}), by the model read as {expected:?}")
        }
        (Ok(None) | Err(_), _) => {}
    }
}

type Read = (u16, Vec<(Vec<u8>, Vec<u8>)>, Framing);

fn read(lines: &[&[u8]], method: &Method) -> Option<Read> {
    let (line, rest) = lines.split_first()?;
    let (is_http10, after) = match line {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', after @ ..] => (false, after),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0', b' ', after @ ..] => (true, after),
        _ => return None,
    };
    let [a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] = after else { return None };
    let status = [a, b, c].iter().fold(0, |number, digit| number * 10 + u16::from(**digit - b'0'));
    // The space before an empty reason is often left out, which every reader understands.
    let is_text = |byte: &u8| *byte == b'\t' || *byte >= 0x20 && *byte != 0x7f;
    if !(reason.is_empty() || reason[0] == b' ' && reason.iter().all(is_text)) || rest.len() > 256 {
        return None;
    }
    let fields = rest.iter().map(|line| model::field(line)).collect::<Option<Vec<_>>>()?;
    if is_http10 && fields.iter().any(|(name, _)| name == b"transfer-encoding") {
        return None;
    }
    let framing = match model::framing(&fields, is_http10).ok()? {
        _ if *method == Method::Head || status < 200 || status == 204 || status == 304 => Framing::Empty,
        None => Framing::UntilClose,
        Some(Ok(0)) => Framing::Empty,
        Some(Ok(length)) => Framing::Length(length),
        Some(Err(())) => Framing::Chunked,
    };
    Some((status, fields, framing))
}
