//! Normalization of request paths, so that what is matched is what an origin reads.
//!
//! By RFC 3986, section 6.2.2: percent-encoded unreserved characters are decoded, the hexadecimal digits of others are in upper
//! case, and dot segments are removed. A backslash is a slash, as browsers send it (WHATWG URL) and Envoy's `normalize_path`
//! reads it. A malformed escape is refused: a second decoder could read something else.

use crate::ParseError;

/// The rules of a listener for the paths of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathRules {
    /// Whether paths are normalized; otherwise they are matched and forwarded as received.
    pub normalize: bool,
    /// The policy for escaped slashes and backslashes (`%2F`, `%5C`).
    pub escaped_slashes: EscapedSlashes,
    /// Whether adjacent slashes become one.
    pub merge_slashes: bool,
}

impl PathRules {
    /// The rules of a listener without settings for paths.
    pub const DEFAULT: PathRules =
        PathRules { normalize: true, escaped_slashes: EscapedSlashes::Keep, merge_slashes: true };
}

/// The policy for escaped slashes and backslashes in paths (Envoy: `path_with_escaped_slashes_action`). Origins differ in
/// whether they decode them before they match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay as they are, and separate no segments.
    Keep,
    /// The request is refused.
    Refuse,
    /// They are decoded, and separate segments.
    Decode,
}

/// Normalizes the path of a target, which begins with `/`; its query stays as it is.
///
/// # Errors
/// When an escape is malformed or a zero byte, or an escaped slash is refused.
pub fn normalize_path(target: &mut String, rules: PathRules) -> Result<(), ParseError> {
    let end = target.find('?').unwrap_or(target.len());
    if !rules.normalize || !target.starts_with('/') || is_normal(&target.as_bytes()[..end]) {
        return Ok(());
    }
    let mut decoded = decode(&target.as_bytes()[..end], rules)?;
    remove_dot_segments(&mut decoded, rules.merge_slashes);
    // Decoded bytes are ASCII, and others stay in their places.
    let path = String::from_utf8(decoded).map_err(|_| ParseError::Target)?;
    target.replace_range(..end, &path);
    Ok(())
}

/// Whether nothing in a path can need normalization. It may take a normal path for one that does.
fn is_normal(path: &[u8]) -> bool {
    let is_plain = |pair: &[u8]| pair[0] != b'/' || !matches!(pair[1], b'/' | b'.');
    !path.iter().any(|byte| matches!(byte, b'%' | b'\\')) && path.windows(2).all(is_plain)
}

fn decode(path: &[u8], rules: PathRules) -> Result<Vec<u8>, ParseError> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\\' => decoded.push(b'/'),
            b'%' => {
                let (escape, after) = rest.split_first_chunk::<2>().ok_or(ParseError::Target)?;
                rest = after;
                match hex(escape).ok_or(ParseError::Target)? {
                    0 => return Err(ParseError::Target),
                    byte if is_unreserved(byte) => decoded.push(byte),
                    b'/' | b'\\' if rules.escaped_slashes == EscapedSlashes::Refuse => {
                        return Err(ParseError::EscapedSlash);
                    }
                    b'/' | b'\\' if rules.escaped_slashes == EscapedSlashes::Decode => decoded.push(b'/'),
                    _ => {
                        decoded.extend([
                            b'%',
                            escape[0].to_ascii_uppercase(),
                            escape[1].to_ascii_uppercase(),
                        ]);
                    }
                }
            }
            other => decoded.push(*other),
        }
    }
    Ok(decoded)
}

fn hex(digits: &[u8; 2]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(digits[0])? << 4 | digit(digits[1])?)
}

/// Whether a character means the same with and without escape (RFC 3986, section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Removes dot segments (RFC 3986, section 5.2.4), and empty segments where slashes are merged.
fn remove_dot_segments(path: &mut Vec<u8>, merge_slashes: bool) {
    let mut kept: Vec<u8> = Vec::with_capacity(path.len());
    let segments: Vec<&[u8]> = path[1..].split(|byte| *byte == b'/').collect();
    let last = segments.len() - 1;
    for (at, segment) in segments.into_iter().enumerate() {
        match segment {
            b".." => {
                let parent = kept.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                kept.truncate(parent);
            }
            b"." => {}
            b"" if merge_slashes && at != last => {}
            segment => {
                kept.push(b'/');
                kept.extend_from_slice(segment);
                continue;
            }
        }
        // What ends with a dot segment names a folder.
        if at == last {
            kept.push(b'/');
        }
    }
    if kept.is_empty() {
        kept.push(b'/');
    }
    *path = kept;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(target: &str, rules: PathRules) -> Result<String, ParseError> {
        let mut target = target.to_owned();
        normalize_path(&mut target, rules).map(|()| target)
    }

    #[test]
    fn what_origins_read_as_the_same_path_is_the_same() {
        for admin in [
            "/admin",
            "//admin",
            "/./admin",
            "/x/../admin",
            "/%61dmin",
            "/%2e/admin",
            "/x/%2E%2e/admin",
            "\\admin",
        ] {
            let admin = if admin.starts_with('\\') { format!("/{admin}") } else { admin.to_owned() };
            assert_eq!(normal(&admin, PathRules::DEFAULT), Ok("/admin".to_owned()), "{admin}");
        }
        for (given, expected) in [
            ("/", "/"),
            ("/a/b/", "/a/b/"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/../../a", "/a"),
            ("/a//b///", "/a/b/"),
            ("/a%2fb%5cc", "/a%2Fb%5Cc"),
            ("/x/..%2fadmin", "/x/..%2Fadmin"),
            ("/%7euser/%c3%a9", "/~user/%C3%A9"),
            ("/a?b=/../c%2e//d", "/a?b=/../c%2e//d"),
            ("/%252e%252e/", "/%252e%252e/"),
            ("/.hidden/..a/b..", "/.hidden/..a/b.."),
        ] {
            assert_eq!(normal(given, PathRules::DEFAULT), Ok(expected.to_owned()), "{given}");
        }
    }

    #[test]
    fn escaped_slashes_are_kept_refused_or_decoded() {
        let with = |escaped_slashes| PathRules { escaped_slashes, ..PathRules::DEFAULT };
        for target in ["/x/..%2fadmin", "/x/..%5Cadmin", "/x%2F..%2f/admin"] {
            assert_eq!(
                normal(target, with(EscapedSlashes::Refuse)),
                Err(ParseError::EscapedSlash),
                "{target}"
            );
            assert_eq!(normal(target, with(EscapedSlashes::Decode)), Ok("/admin".to_owned()), "{target}");
        }
        let separate = PathRules { merge_slashes: false, ..PathRules::DEFAULT };
        assert_eq!(normal("/a//b/../c", separate), Ok("/a//c".to_owned()));
        let as_received = PathRules { normalize: false, ..PathRules::DEFAULT };
        assert_eq!(normal("/a//%2e./%zz", as_received), Ok("/a//%2e./%zz".to_owned()));
    }

    #[test]
    fn malformed_escapes_are_refused() {
        for target in ["/%", "/%2", "/%zz", "/%%32e", "/%00", "/a%+1"] {
            assert_eq!(normal(target, PathRules::DEFAULT), Err(ParseError::Target), "{target}");
        }
    }

    fn rules() -> impl Strategy<Value = PathRules> {
        let policies = prop_oneof![Just(EscapedSlashes::Keep), Just(EscapedSlashes::Decode)];
        (policies, any::<bool>()).prop_map(|(escaped_slashes, merge_slashes)| PathRules {
            normalize: true,
            escaped_slashes,
            merge_slashes,
        })
    }

    proptest! {
        #[test]
        fn a_normal_path_stays_and_has_nothing_left_to_resolve(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "/", "//", ".", "..", "%2e", "%2E%2e", "%2f", "%5c", "\\", "a", "%61", "%25", "%c3%a9", "é", ";x=1", "?q=/../%2e",
            ]), 0..12),
            rules in rules(),
        ) {
            let target = format!("/{}", pieces.concat());
            let Ok(once) = normal(&target, rules) else { return Ok(()) };
            prop_assert_eq!(normal(&once, rules), Ok(once.clone()));
            let path = once.split('?').next().unwrap();
            prop_assert!(path.starts_with('/') && !path.contains('\\'));
            prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{}", path);
            prop_assert!(!rules.merge_slashes || !path.contains("//"), "{}", path);
            let decoded = path.replace("%2F", "").replace("%5C", "").replace("%25", "").replace("%C3%A9", "");
            prop_assert!(!decoded.contains('%'), "{}", path);
        }
    }
}
