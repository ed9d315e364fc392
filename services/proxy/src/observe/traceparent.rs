//! The W3C trace context's `traceparent` (<https://www.w3.org/TR/trace-context/>, level 1).

/// A client's trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: u128,
    /// The client's span.
    pub parent_id: u64,
    /// The sampled flag.
    pub is_sampled: bool,
}

/// A `traceparent` as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParentText([u8; 55]);

impl TraceParent {
    /// Parses a field's value; nothing if it is malformed, and then a new trace begins.
    pub fn parse(value: &[u8]) -> Option<TraceParent> {
        let (version, rest) = (value.get(..2)?, value.get(55..)?);
        // Later versions may have more, after another dash.
        let is_ours =
            if version == b"00" { rest.is_empty() } else { rest.first().is_none_or(|b| *b == b'-') };
        if !is_ours || version == b"ff" || [2, 35, 52].iter().any(|index| value[*index] != b'-') {
            return None;
        }
        hex(version)?;
        let trace_id = hex(&value[3..35])?;
        let parent_id = u64::try_from(hex(&value[36..52])?).ok()?;
        let flags = hex(&value[53..55])?;
        (trace_id != 0 && parent_id != 0).then_some(TraceParent {
            trace_id,
            parent_id,
            is_sampled: flags & 1 == 1,
        })
    }
}

impl TraceParentText {
    /// The text for a sampled span.
    pub fn new(trace_id: u128, span_id: u64) -> TraceParentText {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
        write_hex(&mut text[3..35], trace_id);
        write_hex(&mut text[36..52], u128::from(span_id));
        TraceParentText(text)
    }

    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn hex(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0_u128, |number, digit| {
        // Upper case is not allowed.
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

fn write_hex(to: &mut [u8], number: u128) {
    for (index, digit) in to.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * index)) as usize & 15];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_it_is_written() {
        let text = TraceParentText::new(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331);
        assert_eq!(text.as_bytes(), b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let read = TraceParent::parse(text.as_bytes()).unwrap();
        assert_eq!(read.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(read.parent_id, 0xb7ad_6b71_6920_3331);
        assert!(read.is_sampled);
    }

    #[test]
    fn what_is_not_one_is_not_followed() {
        for wrong in [
            &b""[..],
            b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
            b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            b"00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
        let later = b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more";
        assert!(!TraceParent::parse(later).unwrap().is_sampled);
    }
}
