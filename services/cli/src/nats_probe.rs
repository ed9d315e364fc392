//! Finds out why the bus cannot be reached, from what answers at its address: a NATS server greets each connection with INFO
//! before TLS and before any credentials.

use std::time::Duration;

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// The port of NATS where an address has none.
const PORT: u16 = 4222;
/// The most of a greeting that is read.
const LONGEST: u64 = 64 * 1024;

/// What answers at the address of a NATS server.
#[derive(Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// Nothing accepts the connection; the error.
    Nothing(String),
    /// Something that is no NATS server.
    Other,
    /// A NATS server.
    Server(Greeting),
}

/// The parts of INFO that matter here.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Greeting {
    auth_required: bool,
    tls_required: bool,
    tls_available: bool,
    tls_verify: bool,
}

/// Looks at the first of `servers`, separated by commas, that accepts a connection.
pub async fn probe_servers(servers: &str, limit: Duration) -> ProbeResult {
    let mut found = ProbeResult::Nothing("no address is given".to_owned());
    for server in servers.split(',') {
        found = probe_server(server.trim(), limit).await;
        if !matches!(found, ProbeResult::Nothing(_)) {
            return found;
        }
    }
    found
}

async fn probe_server(server: &str, limit: Duration) -> ProbeResult {
    let address = server.split_once("://").map_or(server, |(_, address)| address);
    let address = if address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        address.to_owned()
    } else {
        format!("{address}:{PORT}")
    };
    let mut stream = match timeout(limit, TcpStream::connect(&address)).await {
        Err(_) => return ProbeResult::Nothing("the connection attempt times out".to_owned()),
        Ok(Err(error)) => return ProbeResult::Nothing(error.to_string()),
        Ok(Ok(stream)) => stream,
    };
    // Something else than NATS waits for its client to speak first.
    _ = stream.write_all(b"PING\r\n").await;
    let mut greeting = Vec::new();
    let mut limited = (&mut stream).take(LONGEST);
    let read = async {
        while !greeting.contains(&b'\n') && limited.read_buf(&mut greeting).await.is_ok_and(|count| count > 0)
        {
        }
    };
    // What came within the limit decides.
    _ = timeout(limit, read).await;
    let line = greeting.split(|byte| *byte == b'\n').next().unwrap_or_default();
    match line.strip_prefix(b"INFO ").map(serde_json::from_slice::<Greeting>) {
        Some(Ok(greeting)) => ProbeResult::Server(greeting),
        Some(Err(_)) | None => ProbeResult::Other,
    }
}

/// The reason why a connection failed, the cause first. `why` is what the client says of it.
pub fn describe_connect_failure(servers: &str, user: Option<&str>, found: &ProbeResult, why: &str) -> String {
    let wants_tls = servers.contains("tls://");
    match found {
        ProbeResult::Nothing(error) => {
            format!("no server accepts connections at {servers} (--nats-servers): {error}")
        }
        ProbeResult::Other => format!("the server at {servers} is not a NATS server (--nats-servers)"),
        ProbeResult::Server(greeting) if wants_tls && !greeting.tls_required && !greeting.tls_available => {
            format!(
                "the NATS server at {servers} has no TLS: use nats:// without --nats-ca, or give the server certificates"
            )
        }
        ProbeResult::Server(_) if why.contains("authorization") => {
            let who = user.map_or_else(
                || {
                    "a client without credentials (--nats-user and --nats-password-file, --nats-credentials)"
                        .to_owned()
                },
                |user| format!("{user}, or its password (--nats-user, --nats-password-file)"),
            );
            format!("the NATS server at {servers} refuses {who}: {why}")
        }
        ProbeResult::Server(greeting) if why.contains("TLS") && greeting.tls_verify => {
            format!(
                "{why}; the NATS server at {servers} also demands a certificate (--nats-certificate, --nats-key)"
            )
        }
        ProbeResult::Server(_) => format!("{why}: the NATS server at {servers}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn found(greeting: &'static [u8]) -> ProbeResult {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("nats://{}", listener.local_addr().unwrap());
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting).await.unwrap();
            // Until the client has seen enough.
            _ = stream.read_to_end(&mut Vec::new()).await;
        };
        tokio::join!(probe_servers(&server, Duration::from_secs(5)), serving).0
    }

    #[tokio::test]
    async fn what_answers_is_told_apart() {
        let server = found(b"INFO {\"auth_required\":true,\"jetstream\":true}\r\n").await;
        assert_eq!(server, ProbeResult::Server(Greeting { auth_required: true, ..Greeting::default() }));
        assert_eq!(found(b"HTTP/1.1 400 Bad Request\r\n\r\n").await, ProbeResult::Other);

        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(matches!(
            probe_servers(&gone.to_string(), Duration::from_secs(5)).await,
            ProbeResult::Nothing(_)
        ));
    }

    #[test]
    fn the_cause_comes_first() {
        let plain = ProbeResult::Server(Greeting { auth_required: true, ..Greeting::default() });
        let refused =
            describe_connect_failure("nats://a", Some("user ann"), &plain, "authorization violation");
        assert!(
            refused.starts_with("the NATS server at nats://a refuses user ann, or its password"),
            "{refused}"
        );
        let refused = describe_connect_failure("nats://a", None, &plain, "authorization violation");
        assert!(refused.contains("refuses a client without credentials"), "{refused}");
        let no_tls = describe_connect_failure("tls://a", None, &plain, "no server accepts the connection");
        assert!(no_tls.starts_with("the NATS server at tls://a has no TLS"), "{no_tls}");
        let nothing = describe_connect_failure(
            "nats://a",
            None,
            &ProbeResult::Nothing("connection refused".to_owned()),
            "x",
        );
        assert!(nothing.starts_with("no server accepts connections at nats://a"), "{nothing}");
    }
}
