//! The errors and warnings of a fleet file, for people and for programs.

use std::{error::Error, fmt};

use serde::Serialize;

use super::span::Span;

/// An error or a warning of a fleet file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FleetProblem {
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

impl FleetProblem {
    pub(super) fn new(span: Span, path: &str, problem: String, help: Option<String>) -> FleetProblem {
        let Span { line, column, width } = span;
        FleetProblem { line, column, width, path: path.to_owned(), problem, help }
    }
}

impl fmt::Display for FleetProblem {
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

/// The most errors, and the most warnings, that are reported for one file.
const MOST_REPORTED: usize = 200;

/// The errors of a fleet file, in the order of the file: [`MOST_REPORTED`] at most. `Display` is a report with the lines in
/// question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetErrors(Report);

impl FleetErrors {
    pub(super) fn new(file_name: &str, text: &str, errors: Vec<FleetProblem>) -> FleetErrors {
        FleetErrors(Report::new(file_name, text, errors))
    }

    /// The errors, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &FleetProblem> {
        self.0.iter()
    }

    /// The name of the file, as it was given to `Fleet::parse`.
    pub fn file_name(&self) -> &str {
        &self.0.file_name
    }
}

impl fmt::Display for FleetErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write("error", f)
    }
}

impl Error for FleetErrors {}

/// The warnings of a valid fleet file: what is probably not meant. In the order of the file, [`MOST_REPORTED`] at most.
/// `Display` is a report with the lines in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetWarnings(Report);

impl FleetWarnings {
    pub(super) fn new(file_name: &str, text: &str, warnings: Vec<FleetProblem>) -> FleetWarnings {
        FleetWarnings(Report::new(file_name, text, warnings))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.problems.is_empty()
    }

    /// The warnings, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &FleetProblem> {
        self.0.iter()
    }
}

impl fmt::Display for FleetWarnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write("warning", f)
    }
}

/// Problems with the lines in question.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Report {
    file_name: String,
    /// Each problem with the part of its line around it.
    problems: Vec<(FleetProblem, Excerpt)>,
    /// How many more there are.
    more: usize,
}

impl Report {
    fn new(file_name: &str, text: &str, mut problems: Vec<FleetProblem>) -> Report {
        problems.sort();
        // A problem that aliases repeat is reported once for each path.
        problems.dedup();
        let more = problems.len().saturating_sub(MOST_REPORTED);
        problems.truncate(MOST_REPORTED);
        let lines: Vec<&str> = text.lines().collect();
        let with_excerpt = |problem: FleetProblem| {
            let line = lines.get(problem.line.saturating_sub(1) as usize).copied().unwrap_or_default();
            let excerpt = Excerpt::new(line, problem.column, problem.width);
            (problem, excerpt)
        };
        Report {
            file_name: file_name.to_owned(),
            problems: problems.into_iter().map(with_excerpt).collect(),
            more,
        }
    }

    fn iter(&self) -> impl ExactSizeIterator<Item = &FleetProblem> {
        self.problems.iter().map(|(problem, _)| problem)
    }

    /// Writes the report; `kind` is `error` or `warning`.
    fn write(&self, kind: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last_line = self.iter().map(|problem| problem.line).max().unwrap_or(0);
        let gutter = last_line.to_string().len();
        for (problem, excerpt) in &self.problems {
            writeln!(f, "{kind}: {}", problem.problem)?;
            write!(f, "{:gutter$}--> {}:{}:{}", "", self.file_name, problem.line, problem.column)?;
            if problem.path.is_empty() {
                writeln!(f)?;
            } else {
                writeln!(f, " ({})", problem.path)?;
            }
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, "{:gutter$} | {}", problem.line, excerpt.text)?;
            writeln!(
                f,
                "{:gutter$} | {:before$}{}",
                "",
                "",
                "^".repeat(excerpt.carets),
                before = excerpt.before
            )?;
            if let Some(help) = &problem.help {
                writeln!(f, "{:gutter$} = help: {help}", "")?;
            }
            writeln!(f)?;
        }
        let count = self.problems.len() + self.more;
        if self.more > 0 {
            writeln!(f, "and {} more", self.more)?;
        }
        write!(f, "{count} {kind}{} in {}", if count == 1 { "" } else { "s" }, self.file_name)
    }
}

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
