//! The host that a request is for: `uri-host [ ":" port ]` (RFC 9110, section 7.2).

use std::net::Ipv6Addr;

/// The longest host name in DNS, in bytes (RFC 1035, section 2.3.4).
pub const MAX_HOST_NAME: usize = 255;

/// Whether `text` is a host, with or without a port, that every reader parses alike.
///
/// A name consists of labels of letters, digits and `-_~`, separated by dots; an IPv6 address stands in brackets. RFC
/// 3986 allows more, which is refused here because no name in DNS needs it and readers disagree about it:
/// percent-encoding (some decode it), delimiters such as `,` (a list in `x-forwarded-host`), empty labels other than
/// the root's at the end, zone identifiers, later address formats, and a colon without a port behind it. A port is a
/// number up to 65535 without leading zeros. An empty text is no host.
pub fn is_host(text: &[u8]) -> bool {
    if text.first() == Some(&b'[') {
        return is_bracketed(&text[1..]);
    }
    let mut length = 0;
    // The start counts as a dot: nothing but a label may follow.
    let mut last = DOT;
    for byte in text {
        let class = CLASSES[usize::from(*byte)];
        // Zero for a byte that is not allowed, and for a dot after a dot.
        if class & ((last ^ DOT) | IN_LABEL) == 0 {
            break;
        }
        last = class;
        length += 1;
    }
    (1..=MAX_HOST_NAME).contains(&length) && is_port_or_absent(&text[length..])
}

/// The class of each byte of a host name; 0 for bytes that are not allowed.
const IN_LABEL: u8 = 1;
const DOT: u8 = 2;
const CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    table[b'.' as usize] = DOT;
    let mut byte = 0;
    while byte < table.len() {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'~') {
            table[byte] = IN_LABEL;
        }
        byte += 1;
    }
    table
};

/// An IPv6 address after its opening bracket, and what follows it.
fn is_bracketed(rest: &[u8]) -> bool {
    let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
    let address = std::str::from_utf8(&rest[..end]).ok().map(str::parse::<Ipv6Addr>);
    matches!(address, Some(Ok(_))) && is_port_or_absent(&rest[end + 1..])
}

/// The host without its port.
pub fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    // By bytes, because it runs for every request and hosts are short.
    let host = host.bytes().position(|byte| byte == b':').map_or(host, |end| &host[..end]);
    // A fully qualified name may end in a dot.
    host.strip_suffix('.').unwrap_or(host)
}

fn is_port_or_absent(rest: &[u8]) -> bool {
    match rest {
        [] => true,
        [b':', b'0'] => true,
        [b':', digits @ ..] => {
            (1..=5).contains(&digits.len())
                && digits[0] != b'0'
                && digits.iter().all(u8::is_ascii_digit)
                && digits.iter().fold(0_u32, |port, digit| port * 10 + u32::from(digit - b'0')) <= 65535
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_address_with_or_without_a_port() {
        let longest = "a".repeat(MAX_HOST_NAME);
        for host in [
            "shop.test",
            "shop.test.",
            "shop.test:80",
            "SHOP.test:65535",
            "shop.test:0",
            "_dns.shop-1.test",
            "127.0.0.1:8080",
            "[::1]",
            "[2001:db8::1]:443",
            "[::ffff:192.0.2.1]",
            &longest,
            &format!("{longest}:65535"),
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn what_readers_could_understand_differently_is_no_host() {
        let too_long = "a".repeat(MAX_HOST_NAME + 1);
        for host in [
            "",
            ":80",
            "shop.test:",
            "shop.test:abc",
            "shop.test:80:90",
            "shop.test:65536",
            "shop.test:000080",
            "shop.test:080",
            "shop.test:00",
            "[::1]:080",
            ".",
            "..",
            ".shop.test",
            "shop..test",
            "shop.test..",
            "shop.test:+80",
            "shop.test:80 ",
            "shop.test:80/x",
            "shop.test/x",
            "shop.test?x",
            "shop.test#x",
            "shop.test\\x",
            " shop.test",
            "shop.test ",
            "x y.wild.test",
            "<script>.wild.test",
            "user@shop.test",
            "user:pass@shop.test",
            "a.test,b.test",
            "a.test;b.test",
            "shop%2etest",
            "shop.t\u{e9}st",
            "shop\0.test",
            "[shop.test]",
            "[shop.test]evil",
            "[::1]evil",
            "[::1",
            "::1",
            "[::1]:",
            "[::1]:65536",
            "[fe80::1%eth0]",
            "[v1.x]",
            "[]",
            "[[::1]]",
            &too_long,
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn a_host_without_its_port_has_no_brackets_and_no_dot_of_the_root() {
        for (host, expected) in [
            ("shop.test", "shop.test"),
            ("shop.test:80", "shop.test"),
            ("shop.test.", "shop.test"),
            ("shop.test.:80", "shop.test"),
            ("[::1]", "::1"),
            ("[::1]:80", "::1"),
            ("", ""),
        ] {
            assert_eq!(without_port(host), expected, "{host}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_host_never_holds_a_byte_that_ends_or_splits_it(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            if is_host(&bytes) {
                proptest::prop_assert!(bytes.iter().all(|b| b.is_ascii_graphic() && !b"/?#@\\,;\"<>%".contains(b)));
            }
        }
    }
}
