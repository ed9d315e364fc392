//! The last table, kept on disk so that an edge can serve without the bus.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tidegate_bus::table::Seed;
use tidegate_model::{
    EdgeName, Epoch, RegionName, Revision,
    routes::{RouteEntry, RouteKey},
};

/// The layout of the file; another one is not read.
const FORMAT: u32 = 1;

/// Where the last table is kept.
#[derive(Debug, Clone)]
pub struct Disk {
    file: PathBuf,
}

/// A table from disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    format: u32,
    /// The region that it is for.
    pub region: RegionName,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its revision.
    pub revision: Revision,
    /// Its entries.
    pub entries: Vec<(RouteKey, RouteEntry)>,
    /// How old the file is.
    #[serde(skip)]
    pub age: Duration,
}

impl Saved {
    /// A table to be saved.
    pub fn new(
        region: RegionName,
        epoch: Epoch,
        revision: Revision,
        entries: Vec<(RouteKey, RouteEntry)>,
    ) -> Saved {
        Saved { format: FORMAT, region, epoch, revision, entries, age: Duration::ZERO }
    }

    /// The table as a replica begins with it.
    pub fn seed(&self) -> Seed<RouteKey, RouteEntry> {
        Seed { epoch: self.epoch, revision: self.revision, entries: self.entries.clone() }
    }
}

impl Disk {
    /// The place for `edge` in `directory`, which is made when it is missing.
    ///
    /// # Errors
    /// When the directory cannot be made or written to.
    pub fn new(directory: &Path, edge: &EdgeName) -> anyhow::Result<Disk> {
        let why = || format!("the state directory {} (proxy.state_dir) cannot be used", directory.display());
        fs::create_dir_all(directory).with_context(why)?;
        let disk = Disk { file: directory.join(format!("{edge}.routes.json")) };
        let probe = disk.part();
        fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).with_context(why)?;
        Ok(disk)
    }

    /// The last table; nothing when there is none, or it cannot be read (which is logged).
    pub fn load(&self) -> Option<Saved> {
        let loaded = fs::read(&self.file).and_then(|bytes| {
            let mut saved: Saved = serde_json::from_slice(&bytes)?;
            if saved.format != FORMAT {
                return Err(io::Error::other(format!("format {} is not {FORMAT}", saved.format)));
            }
            let written = fs::metadata(&self.file)?.modified()?;
            saved.age = SystemTime::now().duration_since(written).unwrap_or_default();
            Ok(saved)
        });
        match loaded {
            Ok(saved) => Some(saved),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(file = %self.file.display(), %error, "the last table on disk cannot be read");
                None
            }
        }
    }

    /// Keeps a table in place of the last one. Blocks. A crash leaves the one or the other, never a part.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        let part = self.part();
        let file = fs::File::create(&part)?;
        let mut writer = io::BufWriter::new(file);
        serde_json::to_writer(&mut writer, saved)?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&part, &self.file)
    }

    fn part(&self) -> PathBuf {
        self.file.with_extension("part")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_table_is_read_again_and_a_broken_one_is_not() {
        let directory = std::env::temp_dir().join(format!("tidegate-disk-{}", std::process::id()));
        let disk = Disk::new(&directory, &"edge-1".parse().unwrap()).unwrap();
        assert_eq!(disk.load(), None);
        let saved = Saved::new("us-east".parse().unwrap(), Epoch(3), Revision(7), Vec::new());
        disk.save(&saved).unwrap();
        let loaded = disk.load().unwrap();
        assert_eq!((loaded.epoch, loaded.revision), (Epoch(3), Revision(7)));
        fs::write(&disk.file, b"{\"format\":1,").unwrap();
        assert_eq!(disk.load(), None);
        fs::remove_dir_all(&directory).unwrap();
    }
}
