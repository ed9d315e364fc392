//! TLS towards clusters.

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, RootCertStore,
    client::{ResolvesClientCert, WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::ServerName,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tidegate_model::fleet::{Address, UpstreamTls};

use crate::{
    Renewable, TlsError,
    files::{Content, FromFiles},
    identity::IdentityVerifier,
    pem, provider,
};

/// Whether a client resumes earlier sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumption {
    /// It does: handshakes are cheaper.
    On,
    /// It does not: each handshake verifies the server's certificate, which a probe has to.
    Off,
}

/// TLS towards the endpoints of a cluster.
///
/// The server is verified by its SPIFFE ID where the cluster has one, else by name, against the trusted authorities of
/// the cluster or of the system.
pub struct ClientTls {
    config: FromFiles<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// TLS with the configuration `tls` and the ALPN protocols `alpn`, the preferred one first.
    ///
    /// # Errors
    /// A file can't be read or used, no authorities are configured and the system has none, or the server name is invalid.
    pub fn load(tls: &UpstreamTls, alpn: &[&[u8]], resumption: Resumption) -> Result<ClientTls, TlsError> {
        let server_name = tls.server_name.as_deref().map(parse_name).transpose()?;
        let certificate = tls.client_certificate.iter().flat_map(|f| [f.chain.clone(), f.key.clone()]);
        let paths: Vec<PathBuf> = tls.ca.iter().cloned().chain(certificate).collect();
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let tls = tls.clone();
        let build = move |contents: &[Content]| configure(&tls, contents, &alpn, resumption);
        Ok(ClientTls { config: FromFiles::load(paths, build)?, server_name })
    }

    /// The configuration for the next connection. It changes with the files, which also discards earlier sessions, so get it
    /// for each connection.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.current()
    }

    /// The server name for SNI towards `endpoint`, which is verified where there is no SPIFFE ID.
    ///
    /// # Errors
    /// The endpoint's host is no valid server name.
    pub fn server_name(&self, endpoint: &Address) -> Result<ServerName<'static>, TlsError> {
        match (&self.server_name, endpoint) {
            (Some(name), _) => Ok(name.clone()),
            (None, Address::Ip(address)) => Ok(ServerName::IpAddress(address.ip().into())),
            (None, Address::Name { host, .. }) => parse_name(host),
        }
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientTls").field(&self.config).finish()
    }
}

impl Renewable for ClientTls {
    fn renew(&self) -> Result<bool, TlsError> {
        self.config.renew()
    }

    fn problem(&self) -> Option<String> {
        self.config.problem()
    }
}

fn parse_name(text: &str) -> Result<ServerName<'static>, TlsError> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(ServerName::IpAddress(address.into())),
        Err(_) => ServerName::try_from(text.to_owned()).map_err(|_| TlsError::ServerName(text.to_owned())),
    }
}

/// Builds a configuration from the contents of the files of `tls`: the authorities, if configured, then chain and key, if
/// configured.
fn configure(
    tls: &UpstreamTls,
    contents: &[Content],
    alpn: &[Vec<u8>],
    resumption: Resumption,
) -> Result<ClientConfig, TlsError> {
    let (authorities, certificate) = contents.split_at(usize::from(tls.ca.is_some()));
    let roots = match authorities.first() {
        Some(file) => Arc::new(pem::authorities(file)?),
        None => system_roots()?,
    };
    let provider = provider();
    let verifier: Arc<dyn ServerCertVerifier> = match &tls.identity {
        Some(identity) => Arc::new(IdentityVerifier::new(identity.clone(), roots, provider.clone())),
        None => WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build()?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        [chain, key] => builder.with_client_cert_resolver(own(pem::certified_key(chain, key)?)),
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.to_vec();
    if resumption == Resumption::Off {
        config.resumption = rustls::client::Resumption::disabled();
    }
    Ok(config)
}

fn own(certificate: CertifiedKey) -> Arc<dyn ResolvesClientCert> {
    Arc::new(SingleCertAndKey::from(certificate))
}

/// The system's trusted authorities, read once: they are many, and the same for all clusters.
fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(roots.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems ship authorities that do not parse; the others are still valid.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "no file of them".to_owned(), ToString::to_string);
        return Err(TlsError::NoSystemRoots(why));
    }
    Ok(ROOTS.get_or_init(|| Arc::new(roots)).clone())
}
