//! `tidegate check` and `tidegate schema`.

use std::{fmt, fs, io, path::Path};

use crate::{say::say_line, words::format_count};
use tidegate_model::fleet::{self, Fleet, FleetErrors};

/// The errors of a fleet file.
#[derive(Debug)]
pub struct WrongFile(FleetErrors);

impl fmt::Display for WrongFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for WrongFile {}

/// The error of a file that cannot be read.
#[derive(Debug)]
pub struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

/// Whether a file is given as `-`, which is standard input.
pub fn is_standard_input(file: &Path) -> bool {
    file == Path::new("-")
}

/// The name of a file for people.
pub fn name_of(file: &Path) -> String {
    if is_standard_input(file) { "standard input".to_owned() } else { file.display().to_string() }
}

/// Reads a fleet file, or standard input for `-`: its text and the fleet.
pub fn read(file: &Path) -> anyhow::Result<(String, Fleet)> {
    let name = name_of(file);
    let text =
        if is_standard_input(file) { io::read_to_string(io::stdin()) } else { fs::read_to_string(file) };
    let text = text.map_err(|error| Unreadable(format!("{name} cannot be read: {error}")))?;
    let fleet = Fleet::parse(&text, &name).map_err(WrongFile)?;
    Ok((text, fleet))
}

/// The warnings about a fleet file where `--strict` makes them errors. They have been printed.
#[derive(Debug)]
pub struct Warned(usize);

impl fmt::Display for Warned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with --strict", format_count(self.0, "warning"))
    }
}

impl std::error::Error for Warned {}

/// Checks a fleet file. Warnings go to standard error, as errors do; with `strict` they are an error.
pub fn check(file: &Path, strict: bool) -> anyhow::Result<()> {
    let (text, fleet) = read(file)?;
    let name = name_of(file);
    say_line(format_args!(
        "{name} is valid: {}, {} with {}, {}, {}, {}",
        format_count(fleet.regions.len(), "region"),
        format_count(fleet.clusters.len(), "cluster"),
        format_count(
            fleet.clusters.values().map(|cluster| cluster.endpoints.len()).sum::<usize>(),
            "endpoint"
        ),
        format_count(fleet.edges.len(), "edge"),
        format_count(fleet.listeners.len(), "listener"),
        format_count(fleet.services.len(), "service"),
    ))?;
    let warnings = fleet.warnings(&text, &name);
    if warnings.is_empty() {
        return Ok(());
    }
    eprintln!("{warnings}");
    if strict { Err(Warned(warnings.iter().len()).into()) } else { Ok(()) }
}

/// Prints the JSON Schema, or the reference in Markdown.
pub fn schema(markdown: bool) -> anyhow::Result<()> {
    if markdown {
        say_line(fleet::reference().trim_end())?;
    } else {
        say_line(serde_json::to_string_pretty(&fleet::schema())?)?;
    }
    Ok(())
}
