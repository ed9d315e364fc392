//! The limit of open files, and so of connections, and errors by exhausted local resources.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

/// Raises the limit of open files as far as the system allows and returns it. The usual soft limit of 1024 is too low for a
/// gateway's connections.
///
/// # Errors
/// When the limit cannot be read.
pub fn raise_open_files() -> io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

/// Whether an error of creating a socket or connecting it to `peer` is due to exhausted local resources and says nothing
/// about the peer: no file descriptors (of the process or the system), no free port, no buffers, no memory.
///
/// `peer` is absent where a name was resolved on the way.
pub fn is_resource_exhaustion(error: &io::Error, peer: Option<SocketAddr>) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    const ENOBUFS: i32 = 105;
    match error.kind() {
        io::ErrorKind::OutOfMemory => true,
        // No free port, or no local address of the peer's family.
        io::ErrorKind::AddrNotAvailable => peer.is_none_or(has_source),
        _ => matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS)),
    }
}

/// Whether there is a local address from which `peer` can be reached. Nothing is sent.
fn has_source(peer: SocketAddr) -> bool {
    let any = match peer {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    UdpSocket::bind(any).and_then(|socket| socket.connect(peer)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_the_hard_one() {
        let raised = raise_open_files().unwrap();
        let (soft, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap();
        assert_eq!((raised, soft), (hard, hard));
    }

    #[test]
    fn an_address_without_a_route_is_no_exhaustion_of_ports() {
        let error = io::Error::from(io::ErrorKind::AddrNotAvailable);
        assert!(is_resource_exhaustion(&error, Some("127.0.0.1:80".parse().unwrap())));
        // A link's own address without the link.
        assert!(!is_resource_exhaustion(&error, Some("[fe80::1]:80".parse().unwrap())));
        assert!(!is_resource_exhaustion(
            &io::ErrorKind::ConnectionRefused.into(),
            Some("127.0.0.1:80".parse().unwrap())
        ));
    }
}
