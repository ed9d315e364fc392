//! How to reach NATS.

use std::{fmt, io, path::PathBuf};

use async_nats::ServerAddr;

use crate::BusError;

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// The addresses of the servers, at least one: `nats://host:port` or `tls://host:port`. One is chosen at random, another
    /// when it fails.
    pub servers: Vec<String>,
    /// The name of this connection, which the server shows.
    pub name: String,
    /// How this client authenticates.
    pub credentials: Credentials,
    /// TLS; absent: plain text, unless an address begins with `tls://`.
    pub tls: Option<NatsTls>,
    /// The messages that a subscription buffers; more are lost.
    pub subscription_capacity: usize,
    /// The replicas of a bucket (1, 3 or 5): exactly of one that this process creates, at least of one that exists.
    pub bucket_replicas: usize,
}

impl NatsSettings {
    /// Settings for `servers` without credentials.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>, name: &str) -> NatsSettings {
        NatsSettings {
            servers: servers.into_iter().map(Into::into).collect(),
            name: name.to_owned(),
            credentials: Credentials::None,
            tls: None,
            subscription_capacity: 8192,
            bucket_replicas: 1,
        }
    }

    /// Checks a server's address.
    ///
    /// # Errors
    /// [`BusError::Address`] when it is malformed.
    pub fn check_server(address: &str) -> Result<(), BusError> {
        parse_server(address).map(drop)
    }
}

pub(super) fn parse_server(address: &str) -> Result<ServerAddr, BusError> {
    address.parse().map_err(|error: io::Error| BusError::Address {
        address: address.to_owned(),
        reason: error.to_string(),
    })
}

/// TLS towards NATS. The files are read when a connection is made.
#[derive(Debug, Clone, Default)]
pub struct NatsTls {
    /// The PEM file with the authorities that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// The PEM files with the client certificate and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// How a client authenticates. `Debug` shows no secret.
#[derive(Clone, Default)]
pub enum Credentials {
    /// None.
    #[default]
    None,
    /// A `.creds` file with a JWT and an NKEY seed.
    File(PathBuf),
    /// A user name and password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token.
    Token(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::None => f.write_str("None"),
            Credentials::File(path) => write!(f, "File({})", path.display()),
            Credentials::Password { user, .. } => write!(f, "Password({user})"),
            Credentials::Token(_) => f.write_str("Token"),
        }
    }
}
