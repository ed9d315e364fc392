//! An upgraded connection: bytes in both directions, until both have ended.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use crate::{
    clients::{Account, Held},
    wire::{Conn, IdleLimits, IdleTimer, Timer},
};

/// Relays bytes between `a` and `b` until both directions have ended, one fails, nothing passes for too long, or the client's
/// connection is to end.
pub async fn tunnel(
    a: &mut Conn,
    b: &mut Conn,
    account: &mut Account,
    idle: IdleLimits,
    timer: &mut Timer,
) -> io::Result<()> {
    let (mut a_done, mut b_done) = (false, false);
    let mut silence = IdleTimer::default();
    poll_fn(|cx| {
        let forth = if a_done { Poll::Ready(Ok(())) } else { poll_copy(a, b, cx) };
        a_done |= matches!(forth, Poll::Ready(Ok(())));
        let back = if b_done { Poll::Ready(Ok(())) } else { poll_copy(b, a, cx) };
        b_done |= matches!(back, Poll::Ready(Ok(())));
        account.hold(Held::Downstream, a.held() + b.held());
        if account.is_evicted() {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        match (forth, back) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            _ if a_done && b_done => Poll::Ready(Ok(())),
            _ => {
                // Whoever has ended its direction may be gone: the other one is waited for as for any response.
                let limit = if a_done || b_done { idle.stream.min(idle.tunnel) } else { idle.tunnel };
                let moved = a.total_written() + b.total_written();
                silence.poll(moved, limit, timer, cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    })
    .await
}

/// Copies until the end of `from`, which ends `to` as well.
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
                // A tunnel may be silent for long: meanwhile it holds nothing.
                from.release_buffers();
                to.release_buffers();
                return Poll::Pending;
            }
        }
    }
}
