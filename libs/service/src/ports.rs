//! The addresses that this process listens on: logged, and written to a file for a parent that started it on port 0.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// The addresses that this process listens on, by name. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Ports(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    file: Option<PathBuf>,
    addresses: Mutex<BTreeMap<String, SocketAddr>>,
}

impl Ports {
    /// Addresses that are written to `file`, when one is given, as one JSON object.
    pub fn new(file: Option<PathBuf>) -> Ports {
        Ports(Arc::new(Inner { file, addresses: Mutex::default() }))
    }

    /// Adds the address of the listener `name`. The file is replaced atomically.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn add(&self, name: &str, address: SocketAddr) -> io::Result<()> {
        tracing::info!(listener = name, %address, "listening");
        let mut addresses = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.insert(name.to_owned(), address);
        let Some(file) = &self.0.file else { return Ok(()) };
        let part = file.with_extension(format!("{}.part", std::process::id()));
        let text = serde_json::to_vec(&*addresses).map_err(io::Error::other)?;
        fs::write(&part, text)
            .and_then(|()| fs::rename(part, file))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
    }

    /// The address of `name`.
    pub fn get(&self, name: &str) -> Option<SocketAddr> {
        self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }
}
