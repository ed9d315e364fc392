//! What the kernel knows of a connection.

use std::net::SocketAddr;

/// One end of a TCP connection, as `/proc/net/tcp` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// The state's number in the kernel; see [`CLOSE_WAIT`].
    pub state: u8,
    /// The timer that is running, by its number in the kernel; see [`KEEPALIVE`].
    pub timer: u8,
}

/// The state of an end whose connection is open in both directions.
pub const ESTABLISHED: u8 = 1;
/// The state of an end whose other end has ended its direction.
pub const CLOSE_WAIT: u8 = 8;
/// The timer after which a silent peer is asked whether it is there.
pub const KEEPALIVE: u8 = 2;

/// The end at `local` of its connection with `remote`; both of IPv4.
pub fn socket(local: SocketAddr, remote: SocketAddr) -> Option<Socket> {
    find(|here, there| (here, there) == (local.port(), remote.port())).pop()
}

/// The other ends of connections to `remote`, which is of IPv4.
pub fn sockets_to(remote: SocketAddr) -> Vec<Socket> {
    find(|_, there| there == remote.port())
}

fn find(wanted: impl Fn(u16, u16) -> bool) -> Vec<Socket> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = |text: &str| u16::from_str_radix(text.rsplit(':').next().unwrap(), 16).unwrap();
    let sockets = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        wanted(port(fields[1]), port(fields[2])).then(|| Socket {
            state: u8::from_str_radix(fields[3], 16).unwrap(),
            timer: fields[5].split(':').next().unwrap().parse().unwrap(),
        })
    });
    sockets.collect()
}
