//! Why a request is refused.

/// Why a request head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It is not HTTP/1.x.
    #[error("malformed request line")]
    RequestLine,
    /// A version other than 1.0 and 1.1.
    #[error("HTTP version not supported")]
    Version,
    /// A field name, or something between name and colon, that is not allowed; folded lines are among these.
    #[error("malformed header field")]
    Field,
    /// A line that ends with LF alone, or holds a lone CR.
    #[error("bare line feed in the head")]
    BareLineFeed,
    /// Longer than [`RequestRules::head_bytes`](crate::RequestRules::head_bytes).
    #[error("request head too large")]
    TooLarge,
    /// More fields than [`RequestRules::fields`](crate::RequestRules::fields).
    #[error("too many header fields")]
    TooManyFields,
    /// The target has a form that the method does not take.
    #[error("malformed request target")]
    Target,
    /// A target with an escaped slash or backslash, where those are refused.
    #[error("escaped slash in the path")]
    EscapedSlash,
    /// No `host`, several, or one that is not a host.
    #[error("missing, repeated or malformed host")]
    Host,
    /// `:authority` and `host` that differ.
    #[error(":authority and host differ")]
    HostsDiffer,
    /// A scheme that is not the listener's.
    #[error("the scheme is not the listener's")]
    Scheme,
    /// A field name with an underscore, where those are refused.
    #[error("header field name with an underscore")]
    Underscore,
    /// A TRACE request with a body (RFC 9110, section 9.3.8).
    #[error("TRACE with a body")]
    TraceBody,
    /// `max-forwards` that is repeated or not a number, on a method that it is for.
    #[error("malformed max-forwards")]
    MaxForwards,
    /// Both `content-length` and `transfer-encoding`.
    #[error("both content-length and transfer-encoding")]
    AmbiguousLength,
    /// `content-length` more than once.
    #[error("repeated content-length")]
    RepeatedLength,
    /// A `content-length` that is not a number up to 2^63-1.
    #[error("malformed content-length")]
    BadLength,
    /// `transfer-encoding` in HTTP/1.0.
    #[error("transfer-encoding in HTTP/1.0")]
    CodingInHttp10,
    /// A transfer coding other than `chunked` alone.
    #[error("transfer coding not supported")]
    UnknownCoding,
}

impl ParseError {
    /// The status of the response to it.
    pub fn status(self) -> u16 {
        match self {
            ParseError::TooLarge | ParseError::TooManyFields => 431,
            ParseError::Version => 505,
            ParseError::UnknownCoding => 501,
            ParseError::RequestLine
            | ParseError::Field
            | ParseError::BareLineFeed
            | ParseError::Target
            | ParseError::EscapedSlash
            | ParseError::Host
            | ParseError::HostsDiffer
            | ParseError::Scheme
            | ParseError::Underscore
            | ParseError::TraceBody
            | ParseError::MaxForwards
            | ParseError::AmbiguousLength
            | ParseError::RepeatedLength
            | ParseError::BadLength
            | ParseError::CodingInHttp10 => 400,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sizes_versions_and_codings_have_a_status_of_their_own() {
        for (error, status) in [
            (ParseError::TooLarge, 431),
            (ParseError::TooManyFields, 431),
            (ParseError::Version, 505),
            (ParseError::UnknownCoding, 501),
            (ParseError::Host, 400),
            (ParseError::AmbiguousLength, 400),
        ] {
            assert_eq!(error.status(), status, "{error}");
        }
    }
}
