//! The fields that may be in trailers (RFC 9110, section 6.5.1): a reader that merges trailers into the head acts on all of
//! them.

use crate::{FieldVerdict, Underscores};

/// The policy for the trailer fields of a message. Fields that it does not pass are dropped, as RFC 9110 allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrailerPolicy {
    /// Of responses: passes all but those for framing, routing, caching, authentication, or the identity of client and server.
    /// gRPC services end their responses with metadata under names of their own, so a list of allowed names would break them;
    /// and a client that merges trailers decides nothing for others.
    #[default]
    Response,
    /// Of requests: passes only a short list of fields that are defined for trailers. An origin decides by request fields, and
    /// no common client sends others. Names that `trailer` announces are no exception: the sender of the trailers announces
    /// them.
    Request(Underscores),
}

impl TrailerPolicy {
    /// Decides on a trailer field with this name, in lower case.
    pub fn judge(self, name: &[u8]) -> FieldVerdict {
        match self {
            TrailerPolicy::Response if may_end_response(name) => FieldVerdict::Keep,
            TrailerPolicy::Response => FieldVerdict::Drop,
            TrailerPolicy::Request(_) if may_end_request(name) => FieldVerdict::Keep,
            TrailerPolicy::Request(underscores) => match underscores.judge(name) {
                FieldVerdict::Refuse => FieldVerdict::Refuse,
                FieldVerdict::Keep | FieldVerdict::Drop => FieldVerdict::Drop,
            },
        }
    }
}

/// Digests and signatures of the body (RFC 9530, RFC 9421), and the status of gRPC.
fn may_end_request(name: &[u8]) -> bool {
    matches!(
        name,
        b"content-digest"
            | b"digest"
            | b"grpc-message"
            | b"grpc-status"
            | b"grpc-status-details-bin"
            | b"repr-digest"
            | b"signature"
            | b"signature-input"
    )
}

fn may_end_response(name: &[u8]) -> bool {
    !matches!(
        name,
        b"age"
            | b"allow"
            | b"alt-svc"
            | b"authentication-info"
            | b"authorization"
            | b"cache-control"
            | b"cdn-cache-control"
            | b"cdn-loop"
            | b"clear-site-data"
            | b"connection"
            | b"content-disposition"
            | b"content-encoding"
            | b"content-language"
            | b"content-length"
            | b"content-location"
            | b"content-range"
            | b"content-security-policy"
            | b"content-type"
            | b"cookie"
            | b"date"
            | b"expect"
            | b"expires"
            | b"forwarded"
            | b"host"
            | b"http2-settings"
            | b"keep-alive"
            | b"link"
            | b"location"
            | b"max-forwards"
            | b"pragma"
            | b"range"
            | b"refresh"
            | b"retry-after"
            | b"set-cookie"
            | b"set-cookie2"
            | b"strict-transport-security"
            | b"surrogate-control"
            | b"te"
            | b"traceparent"
            | b"tracestate"
            | b"trailer"
            | b"transfer-encoding"
            | b"true-client-ip"
            | b"upgrade"
            | b"vary"
            | b"via"
            | b"warning"
            | b"www-authenticate"
            | b"x-accel-redirect"
            | b"x-client-ip"
            | b"x-real-ip"
            | b"x-request-id"
            | b"x-sendfile"
    ) && ![&b"access-control-"[..], b"if-", b"proxy-", b"sec-", b"x-envoy-", b"x-forwarded-"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: [&str; 22] = [
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "forwarded",
        "host",
        "if-none-match",
        "proxy-authorization",
        "sec-fetch-site",
        "set-cookie",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
        "www-authenticate",
    ];

    #[test]
    fn fields_that_frame_route_or_identify_never_pass_in_trailers() {
        for name in NEVER {
            for policy in [TrailerPolicy::Response, TrailerPolicy::Request(Underscores::Pass)] {
                assert_eq!(policy.judge(name.as_bytes()), FieldVerdict::Drop, "{name} {policy:?}");
            }
        }
    }

    #[test]
    fn a_response_ends_with_any_metadata_and_a_request_with_what_is_listed() {
        let request = TrailerPolicy::Request(Underscores::Drop);
        for name in ["grpc-status", "content-digest", "signature-input"] {
            assert_eq!(TrailerPolicy::Response.judge(name.as_bytes()), FieldVerdict::Keep, "{name}");
            assert_eq!(request.judge(name.as_bytes()), FieldVerdict::Keep, "{name}");
        }
        for name in ["x-sum", "my-metadata-bin", "with_underscore"] {
            assert_eq!(TrailerPolicy::Response.judge(name.as_bytes()), FieldVerdict::Keep, "{name}");
            assert_eq!(request.judge(name.as_bytes()), FieldVerdict::Drop, "{name}");
        }
    }

    #[test]
    fn a_request_is_refused_for_a_trailer_with_an_underscore_where_that_is_the_setting() {
        let judge = |underscores| TrailerPolicy::Request(underscores).judge(b"x_real_ip");
        assert_eq!(judge(Underscores::Refuse), FieldVerdict::Refuse);
        assert_eq!(judge(Underscores::Drop), FieldVerdict::Drop);
        assert_eq!(judge(Underscores::Pass), FieldVerdict::Drop);
    }
}
