//! A folder for a run's files, kept when something went wrong.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::Context as _;

/// A temporary folder. It is removed when dropped, unless a test failed or it is to be kept; then its path is printed.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    keep: AtomicBool,
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
        Ok(Directory { path, keep: AtomicBool::new(false) })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps it beyond its drop.
    pub fn keep(&self) {
        self.keep.store(true, Relaxed);
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.keep.load(Relaxed) || std::thread::panicking() {
            eprintln!("logs are kept in {}", self.path.display());
        } else {
            _ = fs::remove_dir_all(&self.path);
        }
    }
}
