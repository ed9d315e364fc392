//! Values that are built from files, and rebuilt when the files change.

use std::{
    fmt, fs,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
};

use xxhash_rust::xxh3::Xxh3;

use crate::TlsError;

/// The content of a file.
pub(crate) struct Content {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

type Build<T> = Box<dyn Fn(&[Content]) -> Result<T, TlsError> + Send + Sync>;

/// A value built from files, which stays until the files yield a new valid one.
///
/// Contents are compared, not times: a file may be rewritten within the resolution of its time, or be swapped by a
/// symbolic link to an older one.
pub(crate) struct FromFiles<T> {
    paths: Vec<PathBuf>,
    build: Build<T>,
    state: RwLock<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    /// The contents that were read last, whether they are valid or not.
    seen: u128,
    /// Why those contents could not be used.
    refused: Option<String>,
    /// Why the files could not be read the last time.
    unreadable: Option<String>,
}

impl<T> FromFiles<T> {
    /// Reads the files and builds the first value.
    pub fn load(
        paths: Vec<PathBuf>,
        build: impl Fn(&[Content]) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<FromFiles<T>, TlsError> {
        let contents = read(&paths)?;
        let value = Arc::new(build(&contents)?);
        let state = State { value, seen: digest(&contents), refused: None, unreadable: None };
        Ok(FromFiles { paths, build: Box::new(build), state: RwLock::new(state) })
    }

    pub fn current(&self) -> Arc<T> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).value.clone()
    }

    pub fn problem(&self) -> Option<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.unreadable.clone().or_else(|| state.refused.clone())
    }

    /// Reads the files again; see [`Renewable::renew`](crate::Renewable::renew).
    pub fn renew(&self) -> Result<bool, TlsError> {
        let contents =
            read(&self.paths).inspect_err(|error| self.write().unreadable = Some(error.to_string()))?;
        let seen = digest(&contents);
        {
            let mut state = self.write();
            state.unreadable = None;
            if state.seen == seen {
                return Ok(false);
            }
        }
        // Built without the lock, so that handshakes continue meanwhile.
        let made = (self.build)(&contents);
        let mut state = self.write();
        state.seen = seen;
        state.refused = made.as_ref().err().map(ToString::to_string);
        state.value = Arc::new(made?);
        Ok(true)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for FromFiles<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFiles").field("paths", &self.paths).finish_non_exhaustive()
    }
}

fn read(paths: &[PathBuf]) -> Result<Vec<Content>, TlsError> {
    paths
        .iter()
        .map(|path| {
            let bytes = fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source })?;
            Ok(Content { path: path.clone(), bytes })
        })
        .collect()
}

fn digest(contents: &[Content]) -> u128 {
    let mut hasher = Xxh3::new();
    for content in contents {
        hasher.update(&(content.bytes.len() as u64).to_le_bytes());
        hasher.update(&content.bytes);
    }
    hasher.digest128()
}
