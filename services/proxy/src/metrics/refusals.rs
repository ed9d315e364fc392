//! Why requests are refused before they are forwarded.

use tidegate_http1::ParseError;

use super::LocalCounter;

/// Why a request is refused: the label `reason` of `tidegate_proxy_requests_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// No request line of HTTP/1.x.
    RequestLine,
    /// An unsupported version of HTTP.
    Version,
    /// A malformed header field, or a line that does not end with CR LF.
    Field,
    /// A head over a limit of the listener.
    HeadTooLarge,
    /// A target that is invalid for the method, or unrepresentable in the endpoint's version of HTTP.
    Target,
    /// A missing, repeated, malformed or contradictory host.
    Host,
    /// A scheme other than the listener's.
    Scheme,
    /// A body whose length is ambiguous, malformed or not allowed.
    Framing,
    /// A field name with an underscore, where those are refused.
    Underscore,
    /// A malformed `max-forwards`.
    MaxForwards,
    /// A malformed body or trailer.
    Body,
    /// An HTTP/2 connection that fails at its preface.
    Http2,
}

impl RefusalReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [RefusalReason; 12] = [
        RefusalReason::RequestLine,
        RefusalReason::Version,
        RefusalReason::Field,
        RefusalReason::HeadTooLarge,
        RefusalReason::Target,
        RefusalReason::Host,
        RefusalReason::Scheme,
        RefusalReason::Framing,
        RefusalReason::Underscore,
        RefusalReason::MaxForwards,
        RefusalReason::Body,
        RefusalReason::Http2,
    ];

    /// The value of the label.
    pub fn label(self) -> &'static str {
        match self {
            RefusalReason::RequestLine => "request_line",
            RefusalReason::Version => "version",
            RefusalReason::Field => "field",
            RefusalReason::HeadTooLarge => "head_too_large",
            RefusalReason::Target => "target",
            RefusalReason::Host => "host",
            RefusalReason::Scheme => "scheme",
            RefusalReason::Framing => "framing",
            RefusalReason::Underscore => "underscore",
            RefusalReason::MaxForwards => "max_forwards",
            RefusalReason::Body => "body",
            RefusalReason::Http2 => "http2",
        }
    }
}

impl From<ParseError> for RefusalReason {
    fn from(error: ParseError) -> RefusalReason {
        match error {
            ParseError::RequestLine => RefusalReason::RequestLine,
            ParseError::Version => RefusalReason::Version,
            ParseError::Field | ParseError::BareLineFeed => RefusalReason::Field,
            ParseError::TooLarge | ParseError::TooManyFields => RefusalReason::HeadTooLarge,
            ParseError::Target | ParseError::EscapedSlash => RefusalReason::Target,
            ParseError::Host | ParseError::HostsDiffer => RefusalReason::Host,
            ParseError::Scheme => RefusalReason::Scheme,
            ParseError::Underscore => RefusalReason::Underscore,
            ParseError::MaxForwards => RefusalReason::MaxForwards,
            ParseError::TraceBody
            | ParseError::AmbiguousLength
            | ParseError::RepeatedLength
            | ParseError::BadLength
            | ParseError::CodingInHttp10
            | ParseError::UnknownCoding => RefusalReason::Framing,
        }
    }
}

/// A counter for each reason.
#[derive(Debug, Default)]
pub struct RefusalCounters([LocalCounter; RefusalReason::ALL.len()]);

impl RefusalCounters {
    /// Counts a refused request. Only for its own worker.
    pub fn count(&self, reason: impl Into<RefusalReason>) {
        self.of(reason.into()).add(1);
    }

    /// The counter of one reason.
    pub fn of(&self, reason: RefusalReason) -> &LocalCounter {
        &self.0[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_of_its_own() {
        for (index, reason) in RefusalReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
