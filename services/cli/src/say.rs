//! What the command says on standard output.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use anyhow::Context as _;

/// Writes a text to standard output.
///
/// # Errors
/// When it cannot be written; [`is_unheard`] tells whether only because nobody reads any more.
pub fn say(text: impl Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).context("standard output cannot be written")
}

/// The same with the end of a line.
///
/// # Errors
/// As [`say`].
pub fn say_line(text: impl Display) -> anyhow::Result<()> {
    say(format_args!("{text}\n"))
}

/// Whether an error is that nobody reads standard output any more, as behind `| head -1`.
pub fn is_unheard(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
