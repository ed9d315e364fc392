//! `max-forwards`: the hop limit of TRACE and OPTIONS (RFC 9110, section 7.6.2).

use tidegate_http1::{Fields, Method, ParseError, Request};

use super::local_reply::LocalReply;

/// The methods that the edge forwards.
pub const ALLOWED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// The local reply to a request that must not be forwarded; nothing if it may be.
///
/// OPTIONS gets the forwarded methods. TRACE gets 405: an echo would reveal to scripts the credentials added by a
/// browser or an earlier intermediary, and RFC 9110 does not require one.
///
/// # Errors
/// If the field is repeated or not a number.
pub fn local_reply(request: &Request) -> Result<Option<LocalReply>, ParseError> {
    if !applies_to(&request.method) || remaining(&request.fields)? != Some(0) {
        return Ok(None);
    }
    Ok(Some(match request.method {
        Method::Trace => {
            LocalReply::new(405, "TRACE is not supported by this edge").with_field("allow", ALLOWED)
        }
        _ => LocalReply::new(200, "").with_field("allow", ALLOWED),
    }))
}

/// Whether the method has a hop limit; for others the field is forwarded unchanged.
pub fn applies_to(method: &Method) -> bool {
    matches!(method, Method::Trace | Method::Options)
}

/// How many more times a request may be forwarded; nothing without a limit.
fn remaining(fields: &Fields) -> Result<Option<u64>, ParseError> {
    let mut values = fields.get_all(b"max-forwards");
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ParseError::MaxForwards);
    }
    parse_value(value).map(Some).ok_or(ParseError::MaxForwards)
}

/// Parses the value of the field.
pub fn parse_value(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // A number that overflows is valid, and no effective limit.
    Some(std::str::from_utf8(value).ok()?.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(method: &str, values: &[&str]) -> Result<Option<u16>, ParseError> {
        let mut request = Request { method: Method::from(method), ..Request::default() };
        for value in values {
            request.fields.push(b"max-forwards", value.as_bytes());
        }
        local_reply(&request).map(|reply| reply.map(|reply| reply.status))
    }

    #[test]
    fn a_request_that_may_go_no_further_is_answered_here() {
        assert_eq!(answered("OPTIONS", &["0"]), Ok(Some(200)));
        assert_eq!(answered("TRACE", &["0"]), Ok(Some(405)));
        assert_eq!(answered("TRACE", &["00"]), Ok(Some(405)));
        for values in [&[][..], &["1"], &["99999999999999999999999"]] {
            assert_eq!(answered("TRACE", values), Ok(None), "{values:?}");
        }
        assert_eq!(answered("GET", &["0"]), Ok(None));
        assert_eq!(answered("GET", &["x"]), Ok(None));
    }

    #[test]
    fn a_limit_that_is_no_number_is_refused() {
        for values in [&["x"][..], &[""], &["-1"], &["+1"], &["1", "1"], &["0, 1"]] {
            assert_eq!(answered("OPTIONS", values), Err(ParseError::MaxForwards), "{values:?}");
        }
    }
}
