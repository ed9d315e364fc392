//! `healthcheck`: a service's binary asks a running service of the same settings how it is, for containers without a shell.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Context as _;

/// How long connecting, asking and reading may take each.
const LIMIT: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const MAX_ANSWER: u64 = 64 * 1024;

/// Asks the admin listener that is bound to `bind` for `path`. Returns its answer's body.
///
/// # Errors
/// When the port is not fixed, nobody answers, or the answer is not 200; then with what it says.
pub fn ask(bind: SocketAddr, path: &str) -> anyhow::Result<String> {
    anyhow::ensure!(bind.port() != 0, "admin.bind has port 0: a health check needs a fixed one");
    let address = reachable(bind);
    let answer =
        request(address, path).with_context(|| format!("the admin listener at {address} does not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    let status = head.split_ascii_whitespace().nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "{path} answers {status}: {}", body.trim());
    Ok(body.to_owned())
}

/// The address to connect to for one that is listened on.
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
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}
