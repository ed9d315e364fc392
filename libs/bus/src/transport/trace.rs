//! The W3C trace context of a message, as the strings that travel in its headers.

/// The name of the header with [`TraceContext::traceparent`].
pub(crate) const TRACEPARENT: &str = "traceparent";
/// The name of the header with [`TraceContext::tracestate`].
pub(crate) const TRACESTATE: &str = "tracestate";

/// The trace that a message belongs to (<https://www.w3.org/TR/trace-context/>), opaque to this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Version, trace ID, parent ID and flags.
    pub traceparent: String,
    /// Vendor-specific data.
    pub tracestate: Option<String>,
}

impl TraceContext {
    /// The context of the given header values, or nothing when `traceparent` doesn't have the form
    /// `00-<32 hex>-<16 hex>-<2 hex>` (a later version may have more at its end).
    pub fn new(traceparent: &str, tracestate: Option<&str>) -> Option<TraceContext> {
        let mut parts = traceparent.split('-');
        let mut hex = |length: usize| {
            parts.next().is_some_and(|p| p.len() == length && p.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        let well_formed = hex(2) && hex(32) && hex(16) && hex(2);
        // The limit of a tracestate that must be passed on is 512 characters.
        let state = tracestate.filter(|s| s.len() <= 512 && s.bytes().all(|b| (0x20..0x7f).contains(&b)));
        (well_formed && traceparent.len() <= 128).then(|| TraceContext {
            traceparent: traceparent.to_owned(),
            tracestate: state.map(str::to_owned),
        })
    }

    /// The trace ID: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        self.traceparent.split('-').nth(1).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_traceparent_is_a_context() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(TraceContext::new(good, Some("vendor=1")).is_some());
        assert!(TraceContext::new("00-xyz-b7ad6b7169203331-01", None).is_none());
        assert!(TraceContext::new("", None).is_none());
        assert_eq!(TraceContext::new(good, Some("a\r\nb")).unwrap().tracestate, None);
    }
}
