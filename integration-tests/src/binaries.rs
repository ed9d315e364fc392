//! Where the built binaries are.

use std::{env, path::PathBuf};

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
