//! The lock of an edge's state directory, which only one process may use at a time.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tidegate_model::EdgeName;

/// The interval of attempts to get a lock that another process still holds.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// A held lock, released when dropped and when the process ends.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "the open file holds the lock")] File);

/// Why a lock cannot be acquired.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "edge {edge} already runs on this host: process {holder} holds {}; stop it first, or hand over to this one (take_over)",
        path.display()
    )]
    Held {
        /// The edge.
        edge: EdgeName,
        /// The file of the lock.
        path: PathBuf,
        /// The id of the process, as written in the file.
        holder: String,
    },
    /// The file cannot be used.
    #[error("{} cannot be locked: {error}", path.display())]
    Io {
        /// The file of the lock.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

impl StateLock {
    /// Acquires the lock of `edge` in `directory`, or fails at once.
    ///
    /// # Errors
    /// If another process holds it, or the file cannot be used.
    pub fn acquire(directory: &Path, edge: &EdgeName) -> Result<StateLock, LockError> {
        let path = directory.join(format!("{edge}.lock"));
        let lock = || -> io::Result<Option<File>> {
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => {
                    file.set_len(0)?;
                    writeln!(file, "{}", std::process::id())?;
                    Ok(Some(file))
                }
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
            }
        };
        match lock() {
            Ok(Some(file)) => Ok(StateLock(file)),
            Ok(None) => {
                let holder = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
                Err(LockError::Held { edge: edge.clone(), path, holder })
            }
            Err(error) => Err(LockError::Io { path, error }),
        }
    }

    /// Waits until the process that holds the lock releases it, and acquires it.
    pub async fn acquire_later(directory: &Path, edge: &EdgeName) -> StateLock {
        loop {
            match StateLock::acquire(directory, edge) {
                Ok(lock) => return lock,
                Err(LockError::Held { .. } | LockError::Io { .. }) => {
                    tokio::time::sleep(RETRY_EVERY).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder_and_is_free_once_dropped() {
        let directory = std::env::temp_dir().join(format!("tidegate-lock-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let edge: EdgeName = "edge-1".parse().unwrap();
        let lock = StateLock::acquire(&directory, &edge).unwrap();

        let refused = StateLock::acquire(&directory, &edge).unwrap_err().to_string();

        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        StateLock::acquire(&directory, &"edge-2".parse().unwrap()).unwrap();
        drop(lock);
        StateLock::acquire(&directory, &edge).unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }
}
