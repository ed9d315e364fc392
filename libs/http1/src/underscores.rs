//! Field names with underscores: CGI, WSGI and the like turn `-` into `_`, so `x_real_ip` there is `x-real-ip`.

/// What is done with a request's field whose name has an underscore.
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

impl Underscores {
    /// What becomes of a field with this name.
    pub fn judge(self, name: &[u8]) -> FieldVerdict {
        if !name.contains(&b'_') {
            return FieldVerdict::Keep;
        }
        match self {
            Underscores::Drop => FieldVerdict::Drop,
            Underscores::Refuse => FieldVerdict::Refuse,
            Underscores::Pass => FieldVerdict::Keep,
        }
    }
}
