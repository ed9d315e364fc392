//! Line endings: `httparse` accepts a bare LF, which other readers may not accept as a line ending (RFC 9112, section 2.2).

/// Whether each line of the head that `httparse` found in `input`, from `start` to `length`, ends with CR LF, and nothing
/// precedes `start`.
///
/// A name, value or start line holds no LF, so only the end of the line before each name has to be checked: a step for
/// each field instead of one for each byte.
pub(crate) fn ends_lines_with_crlf(
    input: &[u8],
    start: usize,
    headers: &[httparse::Header<'_>],
    length: usize,
) -> bool {
    let origin = input.as_ptr().addr();
    // The blank line at the end, then the line before it.
    let Some(last) = length.checked_sub(2) else { return false };
    start == 0
        && input[last..length] == *b"\r\n"
        && ends_line(input, last)
        && headers.iter().all(|header| ends_line(input, header.name.as_ptr().addr() - origin))
}

/// Whether a line begins at `at`: at the very start, or after CR LF.
fn ends_line(input: &[u8], at: usize) -> bool {
    at == 0 || (at >= 2 && input[at - 2..at] == *b"\r\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The plain way: every LF of the head has a CR before it.
    fn has_bare_line_feed(head: &[u8]) -> bool {
        head.iter().enumerate().any(|(at, byte)| *byte == b'\n' && (at == 0 || head[at - 1] != b'\r'))
    }

    fn strict(input: &[u8]) -> Option<(bool, bool)> {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Request::new(&mut headers);
        let Ok(httparse::Status::Complete(length)) = parsed.parse(input) else { return None };
        let start = parsed.method?.as_ptr().addr() - input.as_ptr().addr();
        Some((
            ends_lines_with_crlf(input, start, parsed.headers, length),
            has_bare_line_feed(&input[..length]),
        ))
    }

    #[test]
    fn each_bare_line_feed_is_found() {
        for (text, expected) in [
            ("GET / HTTP/1.1\r\nA: b\r\n\r\n", true),
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.1\nA: b\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nA: b\n\r\n", false),
            ("GET / HTTP/1.1\r\nA: b\r\n\n", false),
            ("GET / HTTP/1.1\n\n", false),
            ("GET / HTTP/1.1\r\nA:\nB: c\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nA: b \nB: c\r\n\r\n", false),
        ] {
            assert_eq!(strict(text.as_bytes()).map(|(crlf, _)| crlf), Some(expected), "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn it_says_what_a_look_at_each_byte_says(
            lines in proptest::collection::vec(("[a-z]{1,4}", "[ -~]{0,6}", any::<bool>()), 0..6),
            first in any::<bool>(),
            last in any::<bool>(),
        ) {
            let end = |crlf| if crlf { "\r\n" } else { "\n" };
            let mut text = format!("GET / HTTP/1.1{}", end(first));
            for (name, value, crlf) in &lines {
                text.push_str(&format!("{name}:{value}{}", end(*crlf)));
            }
            text.push_str(end(last));
            if let Some((crlf, bare)) = strict(text.as_bytes()) {
                prop_assert_eq!(crlf, !bare, "{:?}", text);
            }
        }
    }
}
