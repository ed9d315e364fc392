//! Field names with underscores: CGI, WSGI and the like turn `-` into `_`, so `x_real_ip` there is `x-real-ip`. Some turn
//! everything into it that is neither a letter nor a digit (lighttpd), so that `x.real.ip` is, too.

/// What is done with a request's field whose name has an underscore, or anything else than letters, digits and `-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// The field is left out.
    #[default]
    Drop,
    /// The request is refused.
    Refuse,
    /// The field is forwarded.
    Pass,
}

/// What a policy says about one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldVerdict {
    /// It is kept.
    Keep,
    /// It is left out.
    Drop,
    /// Its message is refused.
    Refuse,
}

/// The bytes that every reader leaves as they are.
const IS_PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || byte as u8 == b'-';
        byte += 1;
    }
    table
};

impl Underscores {
    /// What becomes of a field with this name.
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
