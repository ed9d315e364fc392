//! How many files, and so connections, this process may have open.

use std::io;

/// Raises the limit of open files as far as the system allows and returns what it is now. The usual soft limit of 1024
/// is less than a gateway's connections.
///
/// # Errors
/// When the limit cannot be read.
pub fn raise_open_files() -> io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_the_hard_one() {
        let raised = raise_open_files().unwrap();
        let (soft, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap();
        assert_eq!((raised, soft), (hard, hard));
    }
}
