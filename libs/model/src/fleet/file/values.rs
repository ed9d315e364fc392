//! Reading single values: text, numbers, words, and names that refer to something.

use std::{collections::BTreeSet, fmt::Display, ops::RangeInclusive, str::FromStr};

use super::{
    span::Span,
    suggestion::did_you_mean,
    tree::{Node, Value},
    walk::{Names, Walk},
};

impl Walk {
    /// A single value that `parse` takes; `what` is what it should be.
    pub fn parsed<T, E: Display>(
        &mut self,
        node: &Node,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let Value::Scalar { text, .. } = &node.value else {
            self.expected(node, what);
            return None;
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.error(node.span, problem.to_string(), None);
                None
            }
        }
    }

    /// Text, not empty.
    pub fn text(&mut self, node: &Node) -> Option<String> {
        self.parsed(node, "text", |text| {
            if text.is_empty() { Err("this must not be empty") } else { Ok(text.to_owned()) }
        })
    }

    /// A whole number within `range`.
    pub fn integer(&mut self, node: &Node, range: RangeInclusive<u64>) -> Option<u64> {
        let (least, most) = (*range.start(), *range.end());
        self.refuse_quotes(node, "a whole number")?;
        self.parsed(node, "a whole number", |text| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u64>()
                .ok()
                .filter(|number| digits && range.contains(number))
                .ok_or_else(|| format!("{text:?} is not a whole number from {least} to {most}"))
        })
    }

    fn refuse_quotes(&mut self, node: &Node, what: &str) -> Option<()> {
        if let Value::Scalar { plain: false, .. } = &node.value {
            self.error(node.span, format!("expected {what}, found text in quotes"), None);
            return None;
        }
        Some(())
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, node: &Node) -> Option<bool> {
        self.refuse_quotes(node, "true or false")?;
        self.parsed(node, "true or false", |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(format!("expected true or false, found {other:?}")),
        })
    }

    /// One of `words`.
    pub fn word<T: Copy>(&mut self, node: &Node, words: &[(&'static str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let Value::Scalar { text, .. } = &node.value else {
            self.expected(node, &format!("one of {}", names.join(", ")));
            return None;
        };
        let found = words.iter().find(|(name, _)| name == text).map(|(_, value)| *value);
        if found.is_none() {
            let help = did_you_mean(text, &names);
            self.error(node.span, format!("{text:?} is not one of {}", names.join(", ")), help);
        }
        found
    }

    /// The name of a `what` that the file declares, as listed by `names`.
    pub fn reference<K: FromStr<Err: Display>>(
        &mut self,
        node: &Node,
        what: &str,
        names: fn(&Names) -> &BTreeSet<String>,
    ) -> Option<K> {
        let key = self.parsed(node, &format!("the name of a {what}"), str::parse::<K>)?;
        let Value::Scalar { text, .. } = &node.value else { return None };
        self.known(text, node.span, what, names).then_some(key)
    }

    /// Whether `name` is declared, and an error when it isn't.
    pub fn known(
        &mut self,
        name: &str,
        at: Span,
        what: &str,
        names: fn(&Names) -> &BTreeSet<String>,
    ) -> bool {
        if names(&self.names).contains(name) {
            return true;
        }
        let declared: Vec<&str> = names(&self.names).iter().map(String::as_str).collect();
        let help = did_you_mean(name, &declared).unwrap_or_else(|| {
            if declared.is_empty() { format!("this file has no {what}s") } else { list_some(what, &declared) }
        });
        self.error(at, format!("there is no {what} {name:?}"), Some(help));
        false
    }
}

fn list_some(what: &str, declared: &[&str]) -> String {
    const SHOWN: usize = 8;
    let more = if declared.len() > SHOWN { ", …" } else { "" };
    format!("the {what}s are {}{more}", declared[..declared.len().min(SHOWN)].join(", "))
}
