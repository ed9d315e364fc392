//! Where the built binaries are, and how they are run.

use std::{env, path::PathBuf, process::Command};

use anyhow::Context as _;

/// The binary `name`: in `TIDEGATE_BIN_DIR` when that is set, else beside this program (tests are in a folder below).
///
/// # Errors
/// When it is not there.
pub fn find(name: &str) -> anyhow::Result<PathBuf> {
    let directory = match env::var_os("TIDEGATE_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let own = env::current_exe().context("this program's own path")?;
            let beside = own.parent().context("a program is in a folder")?;
            if beside.ends_with("deps") { beside.parent().unwrap_or(beside).into() } else { beside.into() }
        }
    };
    let path = directory.join(name);
    anyhow::ensure!(path.is_file(), "{} is not there: run `make build` first", path.display());
    Ok(path)
}

/// A command that runs the binary `name`, without the `TIDEGATE_` variables of whoever runs the tests: they are not its
/// settings.
///
/// # Errors
/// When it is not there.
pub fn command(name: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(find(name)?);
    for (variable, _) in env::vars_os() {
        if variable.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(variable);
        }
    }
    Ok(command)
}
