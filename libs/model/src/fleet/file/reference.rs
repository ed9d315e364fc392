//! A reference of the fleet file in Markdown, made from what the parser knows.

use std::fmt::Write as _;

use super::fields::{FLEET, Field, Kind, Record};

/// A table of all fields for each part of the fleet file: what a field may hold, and what it means. Fields of a map within
/// another have their path; `NAME` stands for a name that the file gives.
pub fn reference() -> String {
    let mut text = String::new();
    for part in FLEET.fields {
        let (path, record) = match &part.kind {
            Kind::Names(Kind::Record(record), _) => (format!("{}.NAME", part.name), *record),
            Kind::Record(record) => (part.name.to_owned(), *record),
            _ => continue,
        };
        _ = write!(
            text,
            "\n## {path}\n\n{} {}\n\n| field | value | meaning |\n|---|---|---|\n",
            part.doc,
            limit(&part.kind)
        );
        rows(&mut text, "", record);
    }
    text
}

fn rows(text: &mut String, prefix: &str, record: &Record) {
    for field in record.fields {
        row(text, prefix, field);
        nested(text, &format!("{prefix}{}", field.name), &field.kind);
    }
}

fn row(text: &mut String, prefix: &str, field: &Field) {
    let Field { name, kind, required, doc } = field;
    let required = if *required { " Required." } else { "" };
    _ = writeln!(text, "| `{prefix}{name}` | {} | {}{required} |", value(kind), doc.replace('|', "\\|"));
}

/// The rows of what is within a field.
fn nested(text: &mut String, path: &str, kind: &Kind) {
    match kind {
        Kind::Record(record) => rows(text, &format!("{path}."), record),
        Kind::List(item, _) | Kind::Set(item, _) => nested(text, &format!("{path}[]"), item),
        Kind::Names(item, _) => nested(text, &format!("{path}.NAME"), item),
        Kind::Any(kinds) => kinds.iter().for_each(|kind| nested(text, path, kind)),
        Kind::Text
        | Kind::Name
        | Kind::Address
        | Kind::Boolean
        | Kind::True
        | Kind::Integer(..)
        | Kind::Location
        | Kind::SigningKey
        | Kind::Cidr
        | Kind::Duration
        | Kind::Size
        | Kind::Percent
        | Kind::Word(_)
        | Kind::Texts => {}
    }
}

/// What a field may hold, in a few words.
fn value(kind: &Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Name => "name".to_owned(),
        Kind::Address => "`host:port`".to_owned(),
        Kind::Boolean => "`true` or `false`".to_owned(),
        Kind::True => "`true`".to_owned(),
        Kind::Integer(least, most) => format!("{least} to {most}"),
        Kind::Location => "`[latitude, longitude]`".to_owned(),
        Kind::SigningKey => "`ed25519:` and 64 hexadecimal digits".to_owned(),
        Kind::Cidr => "network, as `10.0.0.0/8`".to_owned(),
        Kind::Duration => "duration, as `250ms`, `1.5s`, `5m`".to_owned(),
        Kind::Size => "size, as `64KiB`, `1MB`".to_owned(),
        Kind::Percent => "percent, as `20%`".to_owned(),
        Kind::Word(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Kind::List(item, _) | Kind::Set(item, _) => format!("list of {} {}", plural(item), limit(kind)),
        Kind::Names(item, _) => format!("map from names to {} {}", plural(item), limit(kind)),
        Kind::Texts => format!("map from text to text {}", limit(kind)),
        Kind::Record(record) => format!("map: {}", keys(record)),
        Kind::Any(kinds) => {
            let mut values: Vec<String> = kinds.iter().map(value).collect();
            values.dedup();
            values.join("; or ")
        }
    }
}

fn plural(kind: &Kind) -> String {
    match kind {
        Kind::Name => "names".to_owned(),
        Kind::Address => "addresses".to_owned(),
        Kind::Record(record) => format!("maps: {}", keys(record)),
        Kind::Text => "texts".to_owned(),
        Kind::Cidr => "networks, as `10.0.0.0/8`".to_owned(),
        other => value(other),
    }
}

fn keys(record: &Record) -> String {
    record.fields.iter().map(|field| format!("`{}`", field.name)).collect::<Vec<_>>().join(", ")
}

fn limit(kind: &Kind) -> String {
    kind.most().map_or_else(String::new, |most| format!("(at most {most})"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `WRITE_DOCS=1` writes the page anew.
    #[test]
    fn the_page_says_what_the_parser_knows() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/fleet-file.md");
        let text = std::fs::read_to_string(&page).unwrap();
        let marker = "<!-- tidegate schema --markdown -->\n";
        let (before, after) = text.split_once(marker).expect("the page has its marker");
        if std::env::var_os("WRITE_DOCS").is_some() {
            std::fs::write(&page, format!("{before}{marker}{}", reference())).unwrap();
        } else {
            assert!(
                after == reference(),
                "docs/fleet-file.md is out of date: run this test with WRITE_DOCS=1"
            );
        }
    }
}
