//! Finds the process that listens on an address, to name it in errors.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// A process that listens on an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortHolder {
    /// Its process id.
    pub pid: u32,
    /// Its command name.
    pub name: String,
}

impl PortHolder {
    /// The process that listens on `address`, or on an address that conflicts with it. Nothing if there is none, or it
    /// cannot be found, such as one of another user.
    pub fn find(address: SocketAddr) -> Option<PortHolder> {
        let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
        let inodes: Vec<String> = tables
            .iter()
            .filter_map(|table| fs::read_to_string(table).ok())
            .flat_map(|table| listening_inodes(&table, address))
            .collect();
        let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
        let processes = fs::read_dir("/proc").ok()?.flatten();
        processes.filter_map(|process| holder_of(&process.path(), &sockets)).next()
    }

    /// Whether it is an edge, on its own or within `tidegate dev`.
    pub fn is_edge(&self) -> bool {
        matches!(self.name.as_str(), "tidegate-proxy" | "tidegate")
    }
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// The inodes of sockets in a table of `/proc/net` that listen on `address` or conflict with it.
fn listening_inodes(table: &str, address: SocketAddr) -> Vec<String> {
    let conflicts = |other: SocketAddr| {
        let (own, ip) = (address.ip().to_canonical(), other.ip().to_canonical());
        other.port() == address.port() && (own == ip || own.is_unspecified() || ip.is_unspecified())
    };
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_listening = fields.get(3) == Some(&LISTEN) && conflicts(parse_address(fields.get(1)?)?);
        is_listening.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// Parses an address such as `0100007F:1F90`: words in the machine's byte order, and the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The process of a folder in `/proc`, if it has one of the sockets.
fn holder_of(process: &Path, sockets: &[String]) -> Option<PortHolder> {
    let pid = process.file_name()?.to_str()?.parse().ok()?;
    let has_socket = fs::read_dir(process.join("fd")).ok()?.flatten().any(|file| {
        let target = fs::read_link(file.path()).unwrap_or_default();
        sockets.iter().any(|socket| target.as_os_str() == socket.as_str())
    });
    let name = || fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned();
    has_socket.then(|| PortHolder { pid, name: name() })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_process_that_listens_on_a_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for ip in ["127.0.0.1", "0.0.0.0"] {
            let holder = PortHolder::find((ip.parse::<IpAddr>().unwrap(), address.port()).into());
            assert_eq!(holder.map(|holder| holder.pid), Some(std::process::id()), "{ip}");
        }
        assert_eq!(PortHolder::find(SocketAddr::from(([127, 0, 0, 2], address.port()))), None);
        drop(listener);
        assert_eq!(PortHolder::find(address), None);
    }
}
