//! Field names with underscores: CGI, WSGI and the like turn `-` into `_`, so `x_real_ip` equals `x-real-ip` there. Some
//! (lighttpd) turn everything into `_` that is neither a letter nor a digit, so `x.real.ip` equals it, too.

/// The policy for request fields whose names have underscores, or anything else than letters, digits and `-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// The field is dropped.
    #[default]
    Drop,
    /// The request is refused.
    Refuse,
    /// The field is forwarded.
    Pass,
}

/// The decision of a policy on one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldVerdict {
    /// It is kept.
    Keep,
    /// It is dropped.
    Drop,
    /// Its message is refused.
    Refuse,
}

/// The bytes that every reader leaves unchanged.
const IS_PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || byte as u8 == b'-';
        byte += 1;
    }
    table
};

impl Underscores {
    /// Decides on a field with this name.
    pub fn judge(self, name: &[u8]) -> FieldVerdict {
        if name.iter().all(|byte| IS_PLAIN[usize::from(*byte)]) {
            return FieldVerdict::Keep;
        }
        match self {
            Underscores::Drop => FieldVerdict::Drop,
            Underscores::Refuse => FieldVerdict::Refuse,
            Underscores::Pass => FieldVerdict::Keep,
        }
    }
}
