//! A response that the edge makes itself.

use tidegate_http1::Fields;

/// A response of our own.
#[derive(Debug, Clone)]
pub struct LocalReply {
    /// The status.
    pub status: u16,
    /// Further fields.
    pub fields: Fields,
    /// The body: one line for people.
    pub body: String,
}

impl LocalReply {
    /// A response with `status` that says `text`.
    pub fn new(status: u16, text: impl Into<String>) -> LocalReply {
        LocalReply { status, fields: Fields::new(), body: text.into() }
    }

    /// The same answer with another field.
    pub fn with(mut self, name: &str, value: &str) -> LocalReply {
        self.fields.push(name.as_bytes(), value.as_bytes());
        self
    }
}
