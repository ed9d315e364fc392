//! TLS for listeners: certificates by SNI.

use std::{collections::HashMap, fmt, path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::Ticketer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tidegate_model::fleet::CertificateFiles;

use crate::{
    Renewable, TlsError,
    files::{Content, FromFiles},
    pem, provider,
};

/// TLS for a listener: selects the certificate by SNI among those of the files, which may change meanwhile.
///
/// A certificate is for the DNS names among its alternative names, wildcards included; an exact name takes
/// precedence over a wildcard, and the earlier of two certificates with the same name over the later. Without SNI, or with a name
/// that no certificate has, the first certificate is used.
pub struct ServerTls {
    certificates: Arc<FromFiles<Certificates>>,
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// TLS with the certificates of `files` that offers the ALPN protocols `alpn`, the preferred one first. Sessions are resumed by
    /// tickets (their keys are of this process and rotate every six hours), without 0-RTT data.
    ///
    /// # Errors
    /// There is no file, one can't be read or used, or a key is not its certificate's own.
    pub fn load(files: &[CertificateFiles], alpn: &[&[u8]]) -> Result<ServerTls, TlsError> {
        if files.is_empty() {
            return Err(TlsError::NoCertificate);
        }
        let paths: Vec<PathBuf> = files.iter().flat_map(|f| [f.chain.clone(), f.key.clone()]).collect();
        let certificates = Arc::new(FromFiles::load(paths, Certificates::read)?);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(BySni(certificates.clone())));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.ticketer = Ticketer::new()?;
        Ok(ServerTls { certificates, config: Arc::new(config) })
    }

    /// Whether the certificate for `sni` is also the one for `host` (without a port). Where it is not, a request for that host on
    /// the connection is misdirected (421): the client has verified a certificate for other names, and the listener may trust or
    /// route these differently (RFC 9110, section 15.5.20). A client without SNI has verified no name, so every host matches.
    pub fn serves_alike(&self, sni: Option<&str>, host: &str) -> bool {
        let Some(sni) = sni else { return true };
        let host = host.strip_suffix('.').unwrap_or(host);
        if sni.eq_ignore_ascii_case(host) {
            return true;
        }
        let certificates = self.certificates.current();
        Arc::ptr_eq(&certificates.choose(Some(sni)), &certificates.choose(Some(host)))
    }

    /// The configuration that accepts connections. It stays the same when certificates change, and should be shared by all
    /// workers: otherwise each has its own ticket keys.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.certificates).finish()
    }
}

impl Renewable for ServerTls {
    fn renew(&self) -> Result<bool, TlsError> {
        self.certificates.renew()
    }

    fn problem(&self) -> Option<String> {
        self.certificates.problem()
    }
}

#[derive(Debug)]
struct Certificates {
    first: Arc<CertifiedKey>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By the suffix after `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
}

impl Certificates {
    /// Builds it from pairs of chain and key.
    fn read(contents: &[Content]) -> Result<Certificates, TlsError> {
        let mut exact = HashMap::new();
        let mut wildcard = HashMap::new();
        let mut first = None;
        for pair in contents.chunks_exact(2) {
            let certificate = Arc::new(pem::certified_key(&pair[0], &pair[1])?);
            for name in names(&certificate, &pair[0])? {
                let (map, key) = match name.strip_prefix("*.") {
                    Some(suffix) => (&mut wildcard, suffix.to_owned()),
                    None => (&mut exact, name),
                };
                map.entry(key).or_insert_with(|| certificate.clone());
            }
            first.get_or_insert(certificate);
        }
        Ok(Certificates { first: first.ok_or(TlsError::NoCertificate)?, exact, wildcard })
    }

    fn choose(&self, sni: Option<&str>) -> Arc<CertifiedKey> {
        let Some(name) = sni.map(str::to_ascii_lowercase) else { return self.first.clone() };
        let below = || name.split_once('.').and_then(|(_, suffix)| self.wildcard.get(suffix));
        self.exact.get(&name).or_else(below).unwrap_or(&self.first).clone()
    }
}

/// The DNS names of a certificate, in lower case.
fn names(certificate: &CertifiedKey, file: &Content) -> Result<Vec<String>, TlsError> {
    let unusable = |detail: String| TlsError::Certificate { path: file.path.clone(), detail };
    let leaf = certificate.end_entity_cert()?;
    let parsed = webpki::EndEntityCert::try_from(leaf).map_err(|error| unusable(error.to_string()))?;
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

#[derive(Debug)]
struct BySni(Arc<FromFiles<Certificates>>);

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().choose(hello.server_name()))
    }
}
