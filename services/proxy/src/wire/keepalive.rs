//! What the kernel does about a peer that has vanished without a word.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// Silence after which the kernel asks an idle peer whether it is still there, and how often it asks again.
const ASK_AFTER: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long what was sent may stay unacknowledged, or a peer may take nothing (nginx gives up sending after the same time).
/// Without a limit the kernel tries for a quarter of an hour.
pub const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Has the kernel end a connection whose peer is gone: asked when it is silent, and after `unacknowledged` without a word
/// on what was sent to it. Set on a listening socket it holds for each connection accepted there.
///
/// # Errors
/// When the socket is not one of TCP, or has failed already.
pub fn end_when_gone(socket: &SockRef<'_>, unacknowledged: Duration) -> io::Result<()> {
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY))?;
    socket.set_tcp_user_timeout(Some(unacknowledged))
}
