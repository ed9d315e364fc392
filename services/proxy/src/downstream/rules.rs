//! The request rules of a listener.

use tidegate_http1::{EscapedSlashes, PathRules, RequestRules, Underscores};
use tidegate_model::fleet::{EscapedSlashPolicy, ListenerLimits, PathNormalization, UnderscorePolicy};

/// The rules by which a listener parses request heads.
pub fn request_rules(limits: &ListenerLimits, is_tls: bool) -> RequestRules {
    RequestRules {
        head_bytes: limits.head_bytes as usize,
        fields: usize::from(limits.header_count),
        underscores: match limits.underscores_in_headers {
            UnderscorePolicy::Drop => Underscores::Drop,
            UnderscorePolicy::Refuse => Underscores::Refuse,
            UnderscorePolicy::Pass => Underscores::Pass,
        },
        paths: PathRules {
            normalize: limits.path_normalization == PathNormalization::Normalize,
            escaped_slashes: match limits.escaped_slashes {
                EscapedSlashPolicy::Keep => EscapedSlashes::Keep,
                EscapedSlashPolicy::Refuse => EscapedSlashes::Refuse,
                EscapedSlashPolicy::Decode => EscapedSlashes::Decode,
            },
            merge_slashes: limits.merge_slashes,
        },
        is_tls,
    }
}
