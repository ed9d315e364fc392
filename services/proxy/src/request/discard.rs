//! The rest of a response that nobody wants any more: read where it is short, so that its connection serves another request.
//!
//! A client that goes away in the middle would otherwise cost a connection to an endpoint each time, and clients that do
//! so on purpose would make the edge flood its endpoints with new ones.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Poll, ready},
    time::Duration,
};

use tidegate_http1::{Method, Response};

use crate::{
    context::WorkerContext,
    upstream::{InFlight, UpstreamStream},
    wire::Chunk,
};

/// The longest body, in bytes, and the longest time for it.
const MOST_BYTES: usize = 64 * 1024;
const WITHIN: Duration = Duration::from_millis(250);
const MOST_INTERIM: u8 = 4;

/// A request at an endpoint, whose response is discarded when its client goes away before it is there.
pub struct Discarding<'a> {
    worker: &'a Rc<WorkerContext>,
    method: &'a Method,
    parts: Option<(UpstreamStream, InFlight)>,
    /// Whether the whole request was sent: what follows on the connection is its response then.
    pub is_sent: bool,
}

impl<'a> Discarding<'a> {
    /// Watches over a request that was begun.
    pub fn new(
        worker: &'a Rc<WorkerContext>,
        method: &'a Method,
        up: UpstreamStream,
        flight: InFlight,
    ) -> Discarding<'a> {
        Discarding { worker, method, parts: Some((up, flight)), is_sent: false }
    }

    /// The request, and what counts it.
    ///
    /// # Panics
    /// After [`Discarding::take`].
    pub fn parts(&mut self) -> (&mut UpstreamStream, &InFlight) {
        let (up, flight) = self.parts.as_mut().expect("it was not taken");
        (up, flight)
    }

    /// Nothing is discarded any more.
    ///
    /// # Panics
    /// When it was taken before.
    pub fn take(mut self) -> (UpstreamStream, InFlight) {
        self.parts.take().expect("it was not taken")
    }
}

impl Drop for Discarding<'_> {
    fn drop(&mut self) {
        if let Some((up, flight)) = self.parts.take()
            && self.is_sent
        {
            flight.stop_waiting();
            discard(self.worker, up, flight, self.method, false);
        }
    }
}

/// Reads what is left of a response in a task of its own, where that costs little. `has_head` says whether its head was
/// read.
pub fn discard(
    worker: &Rc<WorkerContext>,
    up: UpstreamStream,
    flight: InFlight,
    method: &Method,
    has_head: bool,
) {
    if has_head && up.is_body_done() {
        return up.finish(&flight, true);
    }
    // A stream of HTTP/2 is reset, which costs no connection.
    if matches!(up, UpstreamStream::Http1(_)) && worker.may_discard() {
        worker.connector.spawn(read_rest(up, flight, method.clone(), has_head));
    }
}

async fn read_rest(mut up: UpstreamStream, flight: InFlight, method: Method, mut has_head: bool) {
    let mut head = Response::default();
    let (mut left, mut interim) = (MOST_BYTES, 0);
    let rest = poll_fn(|cx| {
        loop {
            if !has_head {
                if ready!(up.poll_head(&method, &mut head, cx)).is_err() || head.status == 101 {
                    return Poll::Ready(false);
                }
                has_head = head.status >= 200;
                interim += u8::from(!has_head);
                if interim > MOST_INTERIM {
                    return Poll::Ready(false);
                }
                continue;
            }
            match ready!(up.poll_body(cx)) {
                Ok(Chunk::Data(data)) if data.len() <= left => left -= data.len(),
                Ok(Chunk::End(_)) => return Poll::Ready(true),
                Ok(Chunk::Data(_)) | Err(_) => return Poll::Ready(false),
            }
        }
    });
    if tokio::time::timeout(WITHIN, rest).await == Ok(true) {
        up.finish(&flight, true);
    }
}
