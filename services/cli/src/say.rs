//! Writes to standard output.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use anyhow::Context as _;

/// Writes a text to standard output.
///
/// # Errors
/// When it cannot be written; [`is_broken_pipe`] shows whether only because its reader is gone.
pub fn say(text: impl Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).context("standard output cannot be written")
}

/// Writes a line to standard output.
///
/// # Errors
/// As [`say`].
pub fn say_line(text: impl Display) -> anyhow::Result<()> {
    say(format_args!("{text}\n"))
}

/// Whether an error is that the reader of standard output is gone, as with `| head -1`.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
