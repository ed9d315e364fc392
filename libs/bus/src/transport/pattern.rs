//! Subjects and patterns as NATS has them: tokens between dots, `*` for one token, `>` for one or more at the end.

/// Whether `subject` can be published to.
pub(crate) fn is_subject(subject: &str) -> bool {
    is_pattern(subject) && !subject.split('.').any(|token| token == "*" || token == ">")
}

/// Whether `pattern` can be subscribed to.
pub(crate) fn is_pattern(pattern: &str) -> bool {
    let mut tokens = pattern.split('.').peekable();
    while let Some(token) = tokens.next() {
        let ends_early = token == ">" && tokens.peek().is_some();
        if token.is_empty() || ends_early || token.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return false;
        }
    }
    true
}

/// Whether `pattern` covers `subject`.
pub(crate) fn covers(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    for token in pattern.split('.') {
        match (token, subject.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_what_nats_says_they_cover() {
        for (pattern, subject, covered) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("*.b.*", "a.b.c", true),
            ("a.b.c", "a.b", false),
        ] {
            assert_eq!(covers(pattern, subject), covered, "{pattern} {subject}");
        }
    }

    #[test]
    fn a_subject_has_no_wildcards_and_no_empty_tokens() {
        assert!(is_subject("a.b-c.d_1"));
        for bad in ["", "a..b", ".a", "a.", "a b", "a.*", "a.>"] {
            assert!(!is_subject(bad), "{bad:?}");
        }
        assert!(is_pattern("a.*.>"));
        assert!(!is_pattern("a.>.b"));
    }
}
