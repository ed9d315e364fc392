//! A folder for a run's files, kept unless all went well.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::Context as _;

/// A temporary folder. It is removed when dropped after [`Directory::succeeded`]; else its path is printed.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    succeeded: AtomicBool,
}

impl Directory {
    /// Makes a folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> anyhow::Result<Directory> {
        let name = format!("tidegate-run-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Directory { path, succeeded: AtomicBool::new(false) })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All went well: nobody needs what is in it.
    pub fn succeeded(&self) {
        self.succeeded.store(true, Relaxed);
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.succeeded.load(Relaxed) && !std::thread::panicking() {
            _ = fs::remove_dir_all(&self.path);
        } else {
            eprintln!("logs are kept in {}", self.path.display());
        }
    }
}
