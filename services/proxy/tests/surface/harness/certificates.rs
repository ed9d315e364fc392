//! An authority, and certificates by it, as files.

use std::{fs, path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tidegate_model::fleet::CertificateFiles;
use tidegate_tls::ServerTls;

/// An authority with a directory for its files, removed when dropped.
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority; `name` is that of its directory.
    pub fn new(name: &str) -> Authority {
        let directory = std::env::temp_dir().join(format!("tidegate-proxy-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        fs::write(directory.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { directory, issuer: Issuer::new(params, key) }
    }

    /// The authority's own certificate.
    pub fn file(&self) -> String {
        self.directory.join("ca.crt").display().to_string()
    }

    /// Writes a certificate for `hosts` to `<name>.crt` and `<name>.key`, in place of one that is there.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> CertificateFiles {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = CertificateFiles {
            chain: self.directory.join(format!("{name}.crt")),
            key: self.directory.join(format!("{name}.key")),
        };
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::write(&files.chain, certificate.pem()).unwrap();
        files
    }

    /// The same as an item of a listener's `certificates`.
    pub fn item(&self, name: &str, hosts: &[&str]) -> String {
        let files = self.issue(name, hosts);
        format!("{{ chain: {}, key: {} }}", files.chain.display(), files.key.display())
    }

    /// The TLS of an origin for `127.0.0.1`.
    pub fn origin(&self, alpn: &[&[u8]]) -> Arc<ServerTls> {
        Arc::new(ServerTls::load(&[self.issue("origin", &["127.0.0.1"])], alpn).unwrap())
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.directory);
    }
}
