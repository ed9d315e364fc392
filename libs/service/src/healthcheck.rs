//! `healthcheck`: checks the readiness of the running service with the same settings, for containers without a shell.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Context as _;

/// The time limit of connecting, of writing and of each read.
const LIMIT: Duration = Duration::from_secs(2);
/// The largest response, in bytes.
const MAX_RESPONSE: u64 = 64 * 1024;

/// Requests `path` from the admin listener that is bound to `bind`. Returns the body of the response.
///
/// # Errors
/// When the port is not fixed, there is no response, or its status is not 200; then with its body.
pub fn ask(bind: SocketAddr, path: &str) -> anyhow::Result<String> {
    anyhow::ensure!(bind.port() != 0, "admin.bind has port 0: a health check needs a fixed one");
    let address = reachable(bind);
    let response = request(address, path)
        .with_context(|| format!("the admin listener at {address} does not respond"))?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response.as_str(), ""));
    let status = head.split_ascii_whitespace().nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "{path} responds with {status}: {}", body.trim());
    Ok(body.to_owned())
}

/// The address at which a listener bound to `bind` can be reached.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, bind.port())
}

fn request(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.take(MAX_RESPONSE).read_to_string(&mut response)?;
    Ok(response)
}
