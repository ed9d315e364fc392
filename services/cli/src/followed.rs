//! Follows a fleet file: reports each new content once.
//!
//! The contents are read by the file's name and compared, which also detects a swap of symbolic links, as in a ConfigMap that
//! Kubernetes mounts.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tidegate_model::fleet::Fleet;
use tokio::time::{Interval, MissedTickBehavior};

/// The time between two reads of the file.
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// The number of failed reads in a row before the failure is reported: a file that is being replaced is missing for a moment.
const REPORTED_FAILURES: u32 = 4;

/// A follower of a fleet file.
#[derive(Debug)]
pub struct Followed {
    file: PathBuf,
    seen: String,
    /// The failed reads since the last successful one.
    failures: u32,
    ticks: Interval,
}

impl Followed {
    /// Follows `file`, whose last known content is `seen`.
    pub fn new(file: &Path, seen: String) -> Followed {
        let mut ticks = tokio::time::interval(READ_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Followed { file: file.to_owned(), seen, failures: 0, ticks }
    }

    /// Waits for another content than the last. Cancel-safe.
    ///
    /// # Errors
    /// Once when the file cannot be read for longer than an editor takes to replace it. Following continues.
    async fn changed(&mut self) -> io::Result<String> {
        loop {
            self.ticks.tick().await;
            match tokio::fs::read_to_string(&self.file).await {
                Ok(text) => {
                    self.failures = 0;
                    if text != self.seen {
                        self.seen.clone_from(&text);
                        return Ok(text);
                    }
                }
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    if self.failures == REPORTED_FAILURES {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Waits for another valid fleet, as [`Followed::changed`] does. Errors are reported on standard error.
    pub async fn fleet(&mut self) -> (String, Fleet) {
        let name = self.file.display().to_string();
        loop {
            match self.changed().await.map(|text| (Fleet::parse(&text, &name), text)) {
                Ok((Ok(fleet), text)) => return (text, fleet),
                Ok((Err(errors), _)) => eprintln!("{errors}"),
                Err(error) => eprintln!("{name} cannot be read: {error}"),
            }
            eprintln!("the fleet stays as it was");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A folder as Kubernetes makes it for a ConfigMap: `file -> ..data/file`, `..data -> <one version's folder>`.
    struct Mounted(PathBuf);

    impl Mounted {
        fn new(name: &str, text: &str) -> Mounted {
            let folder =
                std::env::temp_dir().join(format!("tidegate-followed-{name}-{}", std::process::id()));
            _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).unwrap();
            let mounted = Mounted(folder);
            mounted.swap("..v0", text);
            symlink("..data/fleet.yaml", mounted.file()).unwrap();
            mounted
        }

        fn file(&self) -> PathBuf {
            self.0.join("fleet.yaml")
        }

        fn swap(&self, version: &str, text: &str) {
            fs::create_dir(self.0.join(version)).unwrap();
            fs::write(self.0.join(version).join("fleet.yaml"), text).unwrap();
            symlink(version, self.0.join("..data_tmp")).unwrap();
            fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_swapped_folder_is_a_change_and_the_same_content_is_none() {
        let mounted = Mounted::new("swapped", "one");
        let mut followed = Followed::new(&mounted.file(), "one".to_owned());

        // Kubernetes swaps the folder also when only another file in it has changed.
        mounted.swap("..v1", "one");
        mounted.swap("..v2", "two");
        assert_eq!(tokio::time::timeout(LIMIT, followed.changed()).await.unwrap().unwrap(), "two");

        mounted.swap("..v3", "three");
        assert_eq!(tokio::time::timeout(LIMIT, followed.changed()).await.unwrap().unwrap(), "three");
    }

    #[tokio::test]
    async fn a_file_that_was_away_is_followed_again() {
        let mounted = Mounted::new("away", "one");
        let mut followed = Followed::new(&mounted.file(), "one".to_owned());

        fs::remove_file(mounted.0.join("..data")).unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, followed.changed()).await.is_err(), "it may come back");
        let error = tokio::time::timeout(LIMIT, followed.changed()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        mounted.swap("..v1", "two");
        assert_eq!(tokio::time::timeout(LIMIT, followed.changed()).await.unwrap().unwrap(), "two");
    }
}
