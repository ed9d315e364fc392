//! The request rules of a listener.

use tidegate_http1::{RequestRules, Underscores};
use tidegate_model::fleet::{ListenerLimits, UnderscorePolicy};

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
        is_tls,
    }
}
