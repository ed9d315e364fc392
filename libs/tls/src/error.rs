//! Why TLS can't be set up.

use std::{io, path::PathBuf};

/// Why TLS can't be set up, or why new files were not taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("can't read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no PEM section of the kind that is needed, or a broken one.
    #[error("{path} holds no usable {what}: {detail}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A certificate can't be used, for example because the key is not its own.
    #[error("the certificate in {path} can't be used: {detail}", path = path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// No certificate at all was named.
    #[error("no certificate is named")]
    NoCertificate,
    /// The system has no trusted authorities.
    #[error("this system has no trusted authorities ({0}); name a file with them by `ca`")]
    NoSystemRoots(String),
    /// The server's name is not one.
    #[error("{0:?} can't be asked for as a server's name")]
    ServerName(String),
    /// The TLS library refused the configuration.
    #[error("TLS can't be set up: {0}")]
    Setup(#[from] rustls::Error),
    /// The verifier of certificates refused the trusted authorities.
    #[error("the trusted authorities can't be used: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}
