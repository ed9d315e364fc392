//! Discards the rest of an unwanted response if it is short, so that its connection can be reused.
//!
//! Otherwise each client that disconnects during a response would cost an upstream connection, and clients could make
//! the edge flood endpoints with new ones.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Poll, ready},
    time::Duration,
};

use tidegate_http1::{Method, Response};

use super::upstream_response::UpstreamResponse;
use crate::{
    upstream::{InFlightRequest, UpstreamStream},
    wire::Chunk,
    worker_context::WorkerContext,
};

/// The longest rest of a body that is read, in bytes, and the longest time for it.
const MOST_BYTES: usize = 64 * 1024;
const WITHIN: Duration = Duration::from_millis(250);
const MAX_INTERIM: u8 = 4;

/// A request at an endpoint. If dropped before its response arrived, but after all of the request was sent, so that the
/// response follows on the connection, the response is discarded.
pub struct DiscardGuard<'a> {
    worker: &'a Rc<WorkerContext>,
    method: &'a Method,
    response: Option<Box<UpstreamResponse>>,
}

impl<'a> DiscardGuard<'a> {
    /// Guards a request whose head was sent.
    pub fn new(
        worker: &'a Rc<WorkerContext>,
        method: &'a Method,
        response: Box<UpstreamResponse>,
    ) -> DiscardGuard<'a> {
        DiscardGuard { worker, method, response: Some(response) }
    }

    /// The request and what has arrived of its response.
    ///
    /// # Panics
    /// After [`DiscardGuard::disarm`].
    pub fn response(&mut self) -> &mut UpstreamResponse {
        self.response.as_mut().expect("it was not taken")
    }

    /// Takes the request out, so that nothing is discarded.
    ///
    /// # Panics
    /// If it was disarmed before.
    pub fn disarm(&mut self) -> Box<UpstreamResponse> {
        self.response.take().expect("it was not taken")
    }
}

impl Drop for DiscardGuard<'_> {
    fn drop(&mut self) {
        if let Some(response) = self.response.take()
            && response.sent_whole
        {
            response.in_flight.stop_waiting();
            discard(self.worker, response.up, response.in_flight, self.method, false);
        }
    }
}

/// Reads the rest of a response in a task of its own, if that is cheap. `has_head` is whether its head was read.
pub fn discard(
    worker: &Rc<WorkerContext>,
    up: UpstreamStream,
    in_flight: InFlightRequest,
    method: &Method,
    has_head: bool,
) {
    if has_head && up.is_body_done() {
        return up.finish(&in_flight, true);
    }
    // An HTTP/2 stream is reset, which costs no connection.
    if matches!(up, UpstreamStream::Http1(_)) && worker.may_discard() {
        worker.connector.spawn(read_rest(up, in_flight, method.clone(), has_head));
    }
}

async fn read_rest(mut up: UpstreamStream, in_flight: InFlightRequest, method: Method, mut has_head: bool) {
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
                if interim > MAX_INTERIM {
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
        up.finish(&in_flight, true);
    }
}
