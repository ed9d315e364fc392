//! The documentation of settings, from that of their fields.

use documented::DocumentedFields;

/// The documentation of the field `key` of a section, where the section of this name has such a field.
pub fn docs_of<T: DocumentedFields>(section: &str, key: &str) -> Option<&'static str> {
    let name = if section.is_empty() { key } else { key.strip_prefix(section)?.strip_prefix('.')? };
    T::get_field_docs(name).ok()
}
