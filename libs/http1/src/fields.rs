//! Header fields in one flat buffer that is reused from message to message.

/// Header fields in the order of arrival; names in lower case, values without surrounding white space.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    name_length: u16,
    value_length: u32,
}

impl Fields {
    /// No fields.
    pub fn new() -> Fields {
        Fields::default()
    }

    /// Removes all fields and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }

    /// Reserves memory for `fields` more, whose names and values take `bytes`.
    pub fn reserve(&mut self, fields: usize, bytes: usize) {
        self.spans.reserve(fields);
        self.bytes.reserve(bytes);
    }

    /// Adds a field. The name is lowercased; name and value must already be valid.
    ///
    /// # Panics
    /// When the name is longer than 65,535 bytes or all fields together are longer than 4 GiB; the parsers' limits are
    /// far below.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = u32::try_from(self.bytes.len()).expect("fields are limited to 4 GiB");
        self.bytes.extend(name.iter().map(u8::to_ascii_lowercase));
        self.bytes.extend_from_slice(value);
        self.spans.push(Span {
            start,
            name_length: u16::try_from(name.len()).expect("a field name is limited to 64 KiB"),
            value_length: u32::try_from(value.len()).expect("a field value is limited to 4 GiB"),
        });
    }

    /// The number of fields.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.spans.iter().map(|span| self.at(*span))
    }

    /// The value of the first field with this name (given in lower case).
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// The values of all fields with this name (given in lower case), in order.
    pub fn get_all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(field, _)| *field == name).map(|(_, value)| value)
    }

    fn at(&self, span: Span) -> (&[u8], &[u8]) {
        let start = span.start as usize;
        let middle = start + usize::from(span.name_length);
        (&self.bytes[start..middle], &self.bytes[middle..middle + span.value_length as usize])
    }
}

/// Whether a comma-separated list holds `token`, whatever its case.
pub fn list_contains(list: &[u8], token: &[u8]) -> bool {
    // Most messages have such a list, and most lists are one token.
    if !list.contains(&b',') {
        return list.trim_ascii().eq_ignore_ascii_case(token);
    }
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lowered_and_order_is_kept() {
        let mut fields = Fields::new();
        fields.push(b"Set-Cookie", b"a=1");
        fields.push(b"Via", b"x");
        fields.push(b"set-cookie", b"b=2");
        assert_eq!(fields.get_all(b"set-cookie").collect::<Vec<_>>(), [b"a=1", b"b=2"]);
        assert_eq!(fields.get(b"via"), Some(&b"x"[..]));
        assert_eq!(fields.get(b"host"), None);
    }

    #[test]
    fn nothing_is_left_after_a_clear() {
        let mut fields = Fields::new();
        assert!(fields.is_empty());
        fields.push(b"via", b"x");
        assert_eq!((fields.len(), fields.is_empty()), (1, false));
        fields.clear();
        assert_eq!((fields.len(), fields.is_empty(), fields.get(b"via")), (0, true, None));
    }

    #[test]
    fn a_list_is_searched_by_whole_tokens() {
        assert!(list_contains(b"keep-alive, Upgrade", b"upgrade"));
        assert!(!list_contains(b"upgrade-insecure", b"upgrade"));
    }
}
