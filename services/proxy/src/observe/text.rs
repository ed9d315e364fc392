//! Client-supplied text in logs: bounded, and without characters that end or reorder a line.

use std::{fmt, io};

use serde::{Serialize, Serializer};
use serde_json::ser::{CompactFormatter, Formatter};

/// The most bytes of one text that are logged; a head may have 64 KiB and more of it.
pub const LONGEST: usize = 1024;

/// Client-supplied text. Bytes that are not UTF-8 are shown as `\xNN`; text longer than [`LONGEST`] is truncated, with
/// the number of bytes cut.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(pub &'a [u8]);

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Text<'a> {
        Text(text.as_bytes())
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Text(bytes) = self;
        let mut kept = bytes.len().min(LONGEST);
        // Not within a character: at most three bytes of one follow its first.
        while kept < bytes.len() && kept + 3 > LONGEST && bytes[kept] & 0xc0 == 0x80 {
            kept -= 1;
        }
        for chunk in bytes[..kept].utf8_chunks() {
            f.write_str(chunk.valid())?;
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        match bytes.len() - kept {
            0 => Ok(()),
            cut => write!(f, "...(+{cut} bytes)"),
        }
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A JSON formatter that also escapes characters that end or reorder a line, which JSON allows but does not require.
pub struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return CompactFormatter.write_string_fragment(out, fragment);
        }
        for c in fragment.chars() {
            if breaks_a_line(c) {
                // All of these are in the first plane, so one escape is enough.
                write!(out, "\\u{:04x}", u32::from(c))?;
            } else {
                out.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Escapes text so that it cannot end a line or a quotation, like Apache's httpd.
pub fn escaped(text: Text<'_>) -> String {
    let mut escaped = String::with_capacity(text.0.len().min(LONGEST) + 16);
    for c in text.to_string().chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            c if breaks_a_line(c) => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Whether a character ends a line for some readers (controls, U+0085, U+2028, U+2029), or is invisible and changes
/// others (direction marks, joiners, interlinear annotations).
fn breaks_a_line(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &[u8]) -> String {
        let mut out = Vec::new();
        Text(text).serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        assert_eq!(escaped("a\" 200\nb\\".into()), "a\\\" 200\\nb\\\\");
        for c in [
            '\n', '\r', '\u{0}', '\u{7f}', '\u{85}', '\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}',
            '\u{feff}',
        ] {
            let text = format!("a{c}b");
            assert!(!escaped(text.as_str().into()).contains(c), "{c:?}");
            let line = json(text.as_bytes());
            assert!(!line.contains(c), "{line}");
            assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text, "{line}");
        }
        assert_eq!(json("é\"\\".as_bytes()), "\"é\\\"\\\\\"");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_by_their_numbers() {
        assert_eq!(Text(b"a\xff\xc3b").to_string(), "a\\xff\\xc3b");
        assert_eq!(json(b"\xff"), "\"\\\\xff\"");
    }

    #[test]
    fn long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(Text(&[b'a'; LONGEST]).to_string(), "a".repeat(LONGEST));
        assert_eq!(Text(&[b'a'; LONGEST + 1]).to_string(), format!("{}...(+1 bytes)", "a".repeat(LONGEST)));
        let wide = format!("a{}", "é".repeat(LONGEST));
        let said = Text(wide.as_bytes()).to_string();
        assert!(said.starts_with("aé") && !said.contains("\\x"), "{said}");
        // Bytes that only look like the middle of characters do not make it search for long.
        assert!(Text(&[0x80; 3000]).to_string().ends_with("...(+1979 bytes)"));
    }
}
