//! An upgraded connection (tunnel).

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use crate::{
    clients::{MemoryUse, RequestAccount},
    wire::{Conn, IdleLimits, IdleTimer, Timer},
};

/// Relays bytes between `a` and `b` until both directions have ended, one fails, the idle timeout has passed, or the
/// client's connection is evicted.
pub async fn tunnel(
    a: &mut Conn,
    b: &mut Conn,
    account: &mut RequestAccount,
    idle: IdleLimits,
    timer: &mut Timer,
) -> io::Result<()> {
    let (mut a_done, mut b_done) = (false, false);
    let mut idle_timer = IdleTimer::default();
    poll_fn(|cx| {
        let forth = if a_done { Poll::Ready(Ok(())) } else { poll_copy(a, b, cx) };
        a_done |= matches!(forth, Poll::Ready(Ok(())));
        let back = if b_done { Poll::Ready(Ok(())) } else { poll_copy(b, a, cx) };
        b_done |= matches!(back, Poll::Ready(Ok(())));
        account.set_memory(MemoryUse::ClientStream, a.buffered() + b.buffered());
        if account.is_evicted() {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        match (forth, back) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            _ if a_done && b_done => Poll::Ready(Ok(())),
            _ => {
                // A side that has closed its direction may be gone: the other one gets the timeout of a response.
                let limit = if a_done || b_done { idle.stream.min(idle.tunnel) } else { idle.tunnel };
                let moved = a.total_written() + b.total_written();
                idle_timer.poll(moved, limit, timer, cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    })
    .await
}

/// Copies until `from` ends, and then shuts `to` down.
fn poll_copy(from: &mut Conn, to: &mut Conn, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    loop {
        ready!(to.poll_room(cx))?;
        if !from.read.is_empty() {
            to.out().extend_from_slice(&from.read);
            from.read.clear();
        }
        match from.poll_fill(cx) {
            Poll::Ready(Ok(0)) => return to.poll_shutdown(cx),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(to.poll_flush(cx))?;
                // An idle tunnel holds no buffers.
                from.release_buffers();
                to.release_buffers();
                return Poll::Pending;
            }
        }
    }
}
