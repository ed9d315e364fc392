//! PEM bytes to certificates and keys.

use std::path::Path;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::{TlsError, files::Content, provider};

/// All certificates of a file, at least one.
pub(crate) fn certificates(file: &Content) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |detail: String| pem_error(&file.path, "certificate", detail);
    let certificates = CertificateDer::pem_slice_iter(&file.bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("there is none".to_owned()));
    }
    Ok(certificates)
}

/// A certificate with its key, which must be the certificate's own.
pub(crate) fn certified_key(chain: &Content, key: &Content) -> Result<CertifiedKey, TlsError> {
    let certificates = certificates(chain)?;
    let private = PrivateKeyDer::from_pem_slice(&key.bytes)
        .map_err(|error| pem_error(&key.path, "private key", error.to_string()))?;
    CertifiedKey::from_der(certificates, private, &provider())
        .map_err(|error| TlsError::Certificate { path: chain.path.clone(), detail: error.to_string() })
}

/// The authorities of a file, at least one.
pub(crate) fn authorities(file: &Content) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Certificate { path: file.path.clone(), detail: error.to_string() })?;
    }
    Ok(roots)
}

fn pem_error(path: &Path, what: &'static str, detail: String) -> TlsError {
    TlsError::Pem { path: path.to_owned(), what, detail }
}
