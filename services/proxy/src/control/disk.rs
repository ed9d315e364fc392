//! The last table on disk, by which an edge can serve without the bus.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tidegate_bus::{seal::Trust, table::Seed};
use tidegate_model::{
    EdgeName, Epoch, RegionName, Revision, SigningPublicKey,
    routes::{RouteEntry, RouteKey},
};

/// The version of the file's format; files of other versions are not read.
const FORMAT: u32 = 1;

/// The file in which the last table is kept.
#[derive(Debug, Clone)]
pub struct TableFile {
    file: PathBuf,
}

/// A table on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTable {
    format: u32,
    /// The region of the table.
    pub region: RegionName,
    /// The epoch of the table.
    pub epoch: Epoch,
    /// The revision of the table.
    pub revision: Revision,
    /// The keys that were trusted when it was saved; empty: none.
    #[serde(default)]
    pub signing_keys: Vec<SigningPublicKey>,
    /// The entries of the table.
    pub entries: Vec<(RouteKey, RouteEntry)>,
    /// The age of the file.
    #[serde(skip)]
    pub age: Duration,
}

impl SavedTable {
    /// A table to save.
    pub fn new(
        region: RegionName,
        epoch: Epoch,
        revision: Revision,
        signing_keys: Vec<SigningPublicKey>,
        entries: Vec<(RouteKey, RouteEntry)>,
    ) -> SavedTable {
        SavedTable { format: FORMAT, region, epoch, revision, signing_keys, entries, age: Duration::ZERO }
    }

    /// Resets its epoch if it was saved without any key and there are keys now: it may come from an unauthorised
    /// publisher.
    pub fn distrust_epoch(&mut self, trust: &Trust) {
        if trust.has_keys() && self.signing_keys.is_empty() {
            (self.epoch, self.revision) = (Epoch(0), Revision(0));
        }
    }

    /// The table as the seed of a replica.
    pub fn seed(&self) -> Seed<RouteKey, RouteEntry> {
        Seed { epoch: self.epoch, revision: self.revision, entries: self.entries.clone() }
    }
}

impl TableFile {
    /// The table file of `edge` in `directory`, which is created if missing.
    ///
    /// # Errors
    /// If the directory cannot be created or written to.
    pub fn new(directory: &Path, edge: &EdgeName) -> anyhow::Result<TableFile> {
        let why = || format!("the state directory {} (proxy.state_dir) cannot be used", directory.display());
        fs::create_dir_all(directory).with_context(why)?;
        let disk = TableFile { file: directory.join(format!("{edge}.routes.json")) };
        let probe = disk.part_path();
        fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).with_context(why)?;
        Ok(disk)
    }

    /// Loads the last table; nothing if there is none or it cannot be read, which is logged.
    pub fn load(&self) -> Option<SavedTable> {
        let loaded = fs::read(&self.file).and_then(|bytes| {
            let mut saved: SavedTable = serde_json::from_slice(&bytes)?;
            if saved.format != FORMAT {
                return Err(io::Error::other(format!("format {} is not {FORMAT}", saved.format)));
            }
            let written = fs::metadata(&self.file)?.modified()?;
            if !saved.epoch.is_plausible() {
                tracing::warn!(epoch = %saved.epoch, "the epoch of the last table on disk is implausible and ignored");
                (saved.epoch, saved.revision) = (Epoch(0), Revision(0));
            }
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

    /// Replaces the saved table atomically. Blocks.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, saved: &SavedTable) -> io::Result<()> {
        let part = self.part_path();
        let file = fs::File::create(&part)?;
        let mut writer = io::BufWriter::new(file);
        serde_json::to_writer(&mut writer, saved)?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&part, &self.file)
    }

    fn part_path(&self) -> PathBuf {
        self.file.with_extension(format!("{}.part", std::process::id()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/golden/routes-<format>.json` is never changed: it is a file as an earlier build has saved it. After
    /// raising the format, `WRITE_GOLDEN=1 cargo test -p tidegate-proxy golden` writes the new one.
    #[test]
    fn golden_a_table_that_an_earlier_build_has_saved_is_read() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let disk = TableFile { file: directory.join(format!("routes-{FORMAT}.json")) };
        if std::env::var_os("WRITE_GOLDEN").is_some() && !disk.file.exists() {
            let saved = SavedTable::new(
                "us-east".parse().unwrap(),
                Epoch(3),
                Revision(7),
                Vec::new(),
                table_with_everything(),
            );
            fs::create_dir_all(&directory).unwrap();
            disk.save(&saved).unwrap();
        }
        let saved = disk.load().expect("it is there, and read");
        assert_eq!((saved.region.as_str(), saved.epoch, saved.revision), ("us-east", Epoch(3), Revision(7)));
        let kinds =
            |kind: fn(&RouteEntry) -> bool| saved.entries.iter().filter(|(_, entry)| kind(entry)).count();
        assert_eq!(kinds(|entry| matches!(entry, RouteEntry::Edge(_))), 1);
        assert_eq!(kinds(|entry| matches!(entry, RouteEntry::Cluster(_))), 2);
        assert_eq!(kinds(|entry| matches!(entry, RouteEntry::Service(_))), 1);
        assert_eq!(kinds(|entry| matches!(entry, RouteEntry::Tiers(_))), 1);
        assert!(kinds(|entry| matches!(entry, RouteEntry::Health(_))) > 0);
    }

    fn table_with_everything() -> Vec<(RouteKey, RouteEntry)> {
        let fleet = tidegate_model::fleet::Fleet::parse(
            r#"
regions: { us-east: { location: [38.9, -77.4] }, eu-west: { location: [53.3, -6.3] } }
clusters:
  us-east-1:
    region: us-east
    endpoints: ["10.1.0.10:8443", { address: "gw.example.com:8443", network: vpc-us }]
    identity: spiffe://example.org/ns/ingress/sa/us-east-1
    capacity: 2000
  eu-west-1: { region: eu-west, endpoints: ["10.2.0.10:8080"], protocol: http2, max_requests: 100 }
edges:
  edge-us-1: { region: us-east, address: 203.0.113.10, listeners: [http, https] }
listeners:
  http: { bind: "0.0.0.0:80", protocol: http }
  https: { bind: "0.0.0.0:443", protocol: https, certificates: [{ chain: tls/shop.crt, key: tls/shop.key }] }
services:
  shop:
    hosts: [shop.example.com, "*.shop.example.com"]
    clusters: { nearest: [us-east-1, eu-west-1] }
    max_request_body: 1MiB
    retry: { attempts: 3, per_try_timeout: 1s, hedge_after: 80ms, budget: 10% }
    routes: [{ path_prefix: /api, methods: [GET], headers: { x-tenant: gold }, clusters: [eu-west-1] }]
"#,
            "fleet.yaml",
        )
        .unwrap();
        let mut engine =
            tidegate_routing::Engine::new(tidegate_routing::Settings::new("us-east".parse().unwrap()));
        engine.apply(
            tidegate_routing::RouteEvent::Fleet(std::sync::Arc::new(fleet)),
            tidegate_bus::clock::now(),
        );
        engine.table().clone().into_iter().collect()
    }

    #[test]
    fn the_epoch_of_a_table_that_no_key_vouches_for_is_doubted_once_there_are_keys() {
        let key = SigningPublicKey([7; 32]);
        let saved =
            |keys| SavedTable::new("us-east".parse().unwrap(), Epoch(3), Revision(7), keys, Vec::new());
        let (without, with) = (Trust::new(), Trust::new());
        with.set(&[tidegate_bus::seal::Signer::ephemeral().public_key()]);
        for (trust, keys, epoch) in
            [(&without, vec![], 3), (&without, vec![key], 3), (&with, vec![key], 3), (&with, vec![], 0)]
        {
            let mut saved = saved(keys);
            saved.distrust_epoch(trust);
            assert_eq!(saved.epoch, Epoch(epoch));
        }
    }

    #[test]
    fn a_saved_table_is_read_again_and_a_broken_one_is_not() {
        let directory = std::env::temp_dir().join(format!("tidegate-disk-{}", std::process::id()));
        let disk = TableFile::new(&directory, &"edge-1".parse().unwrap()).unwrap();
        assert_eq!(disk.load(), None);
        let saved =
            SavedTable::new("us-east".parse().unwrap(), Epoch(3), Revision(7), Vec::new(), Vec::new());
        disk.save(&saved).unwrap();
        let loaded = disk.load().unwrap();
        assert_eq!((loaded.epoch, loaded.revision), (Epoch(3), Revision(7)));
        fs::write(&disk.file, b"{\"format\":1,").unwrap();
        assert_eq!(disk.load(), None);
        fs::remove_dir_all(&directory).unwrap();
    }
}
