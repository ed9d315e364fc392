//! TLS that follows its files.

use std::fmt::Debug;

use crate::TlsError;

/// TLS that is built from files and can be renewed from them.
pub trait Renewable: Debug + Send + Sync {
    /// Reads the files. Returns whether they had changed and are in use now; new connections use them from then on.
    /// Blocks for as long as reading takes.
    ///
    /// # Errors
    /// The files can't be used. The previous contents stay in use. Invalid contents are not tried again until they change, so
    /// they are reported once; unreadable files are tried, and reported, each time.
    fn renew(&self) -> Result<bool, TlsError>;

    /// Why the newest contents of the files are not in use; nothing when they are.
    fn problem(&self) -> Option<String>;
}
