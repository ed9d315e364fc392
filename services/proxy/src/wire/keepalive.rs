//! TCP keepalive and user timeout, for peers that vanish silently.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// The idle time before the first keepalive probe, and the interval between probes.
const ASK_AFTER: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long sent data may stay unacknowledged, or a peer's window may stay closed (the default of nginx's
/// `send_timeout`). By default the kernel retries for a quarter of an hour.
pub const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes the kernel close connections whose peer is gone: by keepalive probes when idle, and by `user_timeout` for
/// unacknowledged data. Connections accepted on a listening socket inherit it.
///
/// # Errors
/// If the socket is not TCP, or has failed already.
pub fn set_keepalive(socket: &SockRef<'_>, user_timeout: Duration) -> io::Result<()> {
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY))?;
    socket.set_tcp_user_timeout(Some(user_timeout))
}
