//! Messages as the RFCs describe them, without regard to speed: what is not plainly right is wrong.

/// The lines of a head up to the blank one, and its length; nothing while it has not ended.
pub fn head(input: &[u8]) -> Option<(Vec<&[u8]>, usize)> {
    let end = input.windows(4).position(|four| four == b"\r\n\r\n")?;
    let mut lines = Vec::new();
    let mut rest = &input[..end + 2];
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    Some((lines, end + 4))
}

/// A field's name in lower case, and its value; nothing when the line is no field (RFC 9112, section 5).
pub fn field(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_text = |byte: &u8| *byte == b'\t' || *byte >= 0x20 && *byte != 0x7f;
    if !is_token(name) || !value.iter().all(is_text) {
        return None;
    }
    let is_space = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let start = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    Some((name.to_ascii_lowercase(), value[start..end].to_vec()))
}

/// RFC 9110, section 5.6.2.
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => true,
            other => b"!#$%&'*+-.^_`|~".contains(other),
        })
}

/// How a body ends by its fields: a length or chunks; an error when they cannot be trusted (RFC 9112, section 6).
pub fn framing(fields: &[(Vec<u8>, Vec<u8>)], is_http10: bool) -> Result<Option<Result<u64, ()>>, ()> {
    let named =
        |name: &[u8]| fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect::<Vec<_>>();
    let (lengths, codings) = (named(b"content-length"), named(b"transfer-encoding"));
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(None),
        ([length], []) => {
            let text = String::from_utf8(length.clone()).map_err(|_| ())?;
            if text.is_empty() || text.contains(|c: char| !c.is_ascii_digit()) {
                return Err(());
            }
            let number = text.parse::<u128>().map_err(|_| ())?;
            if number >= 1 << 63 { Err(()) } else { Ok(Some(Ok(number as u64))) }
        }
        ([], [coding]) if !is_http10 && coding.eq_ignore_ascii_case(b"chunked") => Ok(Some(Err(()))),
        _ => Err(()),
    }
}

/// `uri-host [ ":" port ]` without what this proxy refuses.
pub fn is_host(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => ("x", Some(port)),
            None if after.is_empty() => ("x", None),
            None => return false,
        }
    } else {
        text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    let port_ok = port.is_none_or(|port| {
        !port.is_empty()
            && port.len() <= 5
            && port.chars().all(|c| c.is_ascii_digit())
            && (port == "0" || !port.starts_with('0'))
            && port.parse::<u16>().is_ok()
    });
    let labels_ok = host.strip_suffix('.').unwrap_or(host).split('.').all(|label| !label.is_empty());
    labels_ok && host.len() <= 255 && host.chars().all(allowed) && port_ok
}
