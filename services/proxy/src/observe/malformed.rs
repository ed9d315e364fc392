//! The known parts of a malformed request.

/// Stands for unknown parts.
pub const UNKNOWN: &str = "-";
/// The longest part that is reported, in bytes: it may be most of an oversized head.
const LONGEST: usize = 256;

/// The known parts of a refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MalformedRequest {
    /// Its method.
    pub method: String,
    /// Its path, without a query.
    pub path: String,
    /// The version of HTTP, as the conventions write it.
    pub protocol: &'static str,
}

impl MalformedRequest {
    /// Reads what it can from the first line of an HTTP/1 head.
    pub fn of_http1(read: &[u8]) -> MalformedRequest {
        let line = read.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line.trim_ascii_end().split(|byte| *byte == b' ');
        let method = words.next().filter(|word| is_token(word));
        // Without a valid method it is no request line, and nothing in it has a meaning.
        let path = words.next().filter(|target| method.is_some() && target.starts_with(b"/"));
        let protocol = match words.next() {
            Some(b"HTTP/1.1") if method.is_some() => "1.1",
            Some(b"HTTP/1.0") if method.is_some() => "1.0",
            Some(_) | None => UNKNOWN,
        };
        let text = |word: Option<&[u8]>| word.map(String::from_utf8_lossy).map(|word| truncated(&word));
        let unknown = || UNKNOWN.to_owned();
        MalformedRequest {
            method: text(method).unwrap_or_else(unknown),
            path: text(path).unwrap_or_else(unknown),
            protocol,
        }
    }

    /// Reads what it can from the pseudo-fields of HTTP/2.
    pub fn of_http2(head: &http::request::Parts) -> MalformedRequest {
        let path = head.uri.path_and_query().map_or(UNKNOWN, |target| target.path());
        MalformedRequest { method: truncated(head.method.as_str()), path: truncated(path), protocol: "2" }
    }
}

fn is_token(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// The beginning of a word without its query.
fn truncated(word: &str) -> String {
    let plain = word.split(['?', '#']).next().unwrap_or_default();
    plain[..plain.floor_char_boundary(LONGEST.min(plain.len()))].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_sure_is_told() {
        let told = |read: &[u8]| {
            let MalformedRequest { method, path, protocol } = MalformedRequest::of_http1(read);
            format!("{method} {path} {protocol}")
        };
        for (read, expected) in [
            (&b"GET /a?secret HTTP/1.1\r\nX : y\r\n\r\n"[..], "GET /a 1.1"),
            (b"GET /a#secret HTTP/1.0\n", "GET /a 1.0"),
            (b"PUT http://u:secret@a.test/a HTTP/2.0\r\n", "PUT - -"),
            (b"GET  / HTTP/1.1\r\n", "GET - -"),
            (b"\x16\x03\x01 /a HTTP/1.1\r\n", "- - -"),
            (b"GET", "GET - -"),
            (b"GET /\xff", "GET /\u{fffd} -"),
            (b"", "- - -"),
        ] {
            assert_eq!(told(read), expected, "{}", String::from_utf8_lossy(read));
        }
        assert_eq!(told(&[b"GET /", &[b'a'; 9000][..]].concat()).len(), "GET  -".len() + LONGEST);
    }
}
