//! The errors of a fleet file, for people and for programs.

use std::{error::Error, fmt};

use serde::Serialize;

use super::span::Span;

/// An error of a fleet file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FleetError {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// How many characters it spans, at least 1.
    pub width: u32,
    /// The field: `services.shop.clusters[1]`; empty for the whole file.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What would be valid.
    pub help: Option<String>,
}

impl FleetError {
    pub(super) fn new(span: Span, path: &str, problem: String, help: Option<String>) -> FleetError {
        let Span { line, column, width } = span;
        FleetError { line, column, width, path: path.to_owned(), problem, help }
    }
}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.problem)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// The most errors that are reported for one file.
const MOST_ERRORS: usize = 200;

/// The errors of a fleet file, in the order of the file: [`MOST_ERRORS`] errors at most. `Display` is a report with the
/// lines in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetErrors {
    file_name: String,
    /// Each error with the part of its line around it.
    errors: Vec<(FleetError, Excerpt)>,
    /// How many more there are.
    more: usize,
}

impl FleetErrors {
    pub(super) fn new(file_name: &str, text: &str, mut errors: Vec<FleetError>) -> FleetErrors {
        errors.sort();
        // An error that aliases repeat is reported once for each path.
        errors.dedup();
        let more = errors.len().saturating_sub(MOST_ERRORS);
        errors.truncate(MOST_ERRORS);
        let lines: Vec<&str> = text.lines().collect();
        let with_excerpt = |error: FleetError| {
            let line = lines.get(error.line.saturating_sub(1) as usize).copied().unwrap_or_default();
            let excerpt = Excerpt::new(line, error.column, error.width);
            (error, excerpt)
        };
        FleetErrors {
            file_name: file_name.to_owned(),
            errors: errors.into_iter().map(with_excerpt).collect(),
            more,
        }
    }

    /// The errors, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &FleetError> {
        self.errors.iter().map(|(error, _)| error)
    }

    /// The name of the file, as it was given to `Fleet::parse`.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }
}

impl fmt::Display for FleetErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last_line = self.iter().map(|error| error.line).max().unwrap_or(0);
        let gutter = last_line.to_string().len();
        for (error, excerpt) in &self.errors {
            writeln!(f, "error: {}", error.problem)?;
            write!(f, "{:gutter$}--> {}:{}:{}", "", self.file_name, error.line, error.column)?;
            if error.path.is_empty() {
                writeln!(f)?;
            } else {
                writeln!(f, " ({})", error.path)?;
            }
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, "{:gutter$} | {}", error.line, excerpt.text)?;
            writeln!(
                f,
                "{:gutter$} | {:before$}{}",
                "",
                "",
                "^".repeat(excerpt.carets),
                before = excerpt.before
            )?;
            if let Some(help) = &error.help {
                writeln!(f, "{:gutter$} = help: {help}", "")?;
            }
            writeln!(f)?;
        }
        let count = self.errors.len() + self.more;
        if self.more > 0 {
            writeln!(f, "and {} more", self.more)?;
        }
        write!(f, "{count} error{} in {}", if count == 1 { "" } else { "s" }, self.file_name)
    }
}

impl Error for FleetErrors {}

/// The part of a line around a column that fits a screen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    text: String,
    /// The number of characters before the column.
    before: usize,
    carets: usize,
}

impl Excerpt {
    fn new(line: &str, column: u32, width: u32) -> Excerpt {
        const MOST: usize = 100;
        const CONTEXT: usize = 40;
        let at = column.saturating_sub(1) as usize;
        let start = if at + width as usize > MOST { at.saturating_sub(CONTEXT) } else { 0 };
        // Tabs become blanks, so that the caret is in the right column.
        let shown: String =
            line.chars().skip(start).take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let before = at - start;
        let room = shown.chars().count().saturating_sub(before).max(1);
        Excerpt { text: shown, before, carets: (width as usize).clamp(1, room) }
    }
}
