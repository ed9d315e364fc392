//! `tidegate init`.

use std::{fs, io::ErrorKind, io::Write as _, path::Path};

use crate::say::say_line;
use anyhow::Context as _;
use tidegate_model::fleet::STARTER;

/// Writes the starter fleet file.
pub fn init(file: &Path, force: bool) -> anyhow::Result<()> {
    let opened =
        fs::OpenOptions::new().write(true).truncate(true).create(force).create_new(!force).open(file);
    let mut opened = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            anyhow::bail!("{} exists already; --force overwrites it", file.display())
        }
        opened => opened.with_context(|| format!("{} cannot be written", file.display()))?,
    };
    opened.write_all(STARTER.as_bytes()).with_context(|| format!("{} cannot be written", file.display()))?;
    let name = file.display();
    say_line(format_args!("wrote {name}\nnext: tidegate check {name}\n      tidegate dev {name}"))?;
    Ok(())
}
