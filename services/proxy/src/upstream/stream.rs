//! One request at an endpoint, over either version.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tidegate_http1::{
    Fields, Framing, Method, Response, TrailerPolicy, Version, content_length, list_contains, parse_response,
};
use tidegate_model::observation::Failure;

use super::{
    connect::SEND_BUFFER,
    endpoint::InFlight,
    error::{Sent, failure_of},
    http2_conn::{Http2Conn, StreamGuard},
};
use crate::wire::{
    BodyError, BodyReader, BodyWriter, Chunk, Conn, Http2Reader, Http2Writer, fields_of, is_padded,
};

/// The largest response head.
const HEAD_BYTES: usize = 128 * 1024;

/// A request at an endpoint.
pub enum UpstreamStream {
    /// Over a connection of its own.
    Http1(Http1Upstream),
    /// On a stream.
    Http2(Http2Upstream),
}

/// A request over HTTP/1.1.
pub struct Http1Upstream {
    /// The connection.
    pub conn: Conn,
    /// Whether it has carried a request before.
    pub reused: bool,
    written_before: u64,
    writer: BodyWriter,
    framing: Framing,
    reader: BodyReader,
    keep_alive: bool,
    keep_for: Option<Duration>,
    got_anything: bool,
    /// Whether the response has no body because of its status or the request's method: an endpoint may send one all the same.
    is_bodiless: bool,
}

/// A request over HTTP/2.
pub struct Http2Upstream {
    /// The connection.
    pub conn: Http2Conn,
    response: Option<h2::client::ResponseFuture>,
    framing: Framing,
    reader: Option<Http2Reader>,
    writer: Option<Http2Writer>,
    stream: StreamGuard,
    went_away: bool,
    conn_failed: bool,
}

impl Drop for Http2Upstream {
    fn drop(&mut self) {
        // Given up without a response: is it only slow, or is the connection dead?
        if self.response.is_some() {
            self.stream.check();
        }
    }
}

impl UpstreamStream {
    /// A request whose head waits in `conn` to be written.
    pub fn http1(conn: Conn, reused: bool, writer: BodyWriter) -> UpstreamStream {
        UpstreamStream::Http1(Http1Upstream {
            written_before: conn.total_written(),
            conn,
            reused,
            writer,
            framing: Framing::Empty,
            reader: BodyReader::new(Framing::Empty, TrailerPolicy::Response),
            keep_alive: true,
            keep_for: None,
            got_anything: false,
            is_bodiless: false,
        })
    }

    /// A request whose head was sent on a stream; `writer` is absent when it has no body.
    pub fn http2(
        conn: Http2Conn,
        stream: StreamGuard,
        response: h2::client::ResponseFuture,
        writer: Option<Http2Writer>,
    ) -> UpstreamStream {
        UpstreamStream::Http2(Http2Upstream {
            conn,
            response: Some(response),
            framing: Framing::Empty,
            reader: None,
            writer,
            stream,
            went_away: false,
            conn_failed: false,
        })
    }

    /// Waits for a response head, interim ones included, and reads it into `response`.
    pub fn poll_head(
        &mut self,
        method: &Method,
        response: &mut Response,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), (Failure, Sent)>> {
        match self {
            UpstreamStream::Http1(up) => up.poll_head(method, response, cx),
            UpstreamStream::Http2(up) => up.poll_head(method, response, cx),
        }
    }

    /// The next piece of the response's body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, BodyError>> {
        match self {
            UpstreamStream::Http1(up) => up.reader.poll_chunk(&mut up.conn, cx),
            UpstreamStream::Http2(up) => match &mut up.reader {
                Some(reader) => reader.poll_chunk(cx),
                None => Poll::Ready(Ok(Chunk::End(Fields::new()))),
            },
        }
    }

    /// The framing of the response's body, once its head is here.
    pub fn framing(&self) -> Framing {
        match self {
            UpstreamStream::Http1(up) => up.framing,
            UpstreamStream::Http2(up) => up.framing,
        }
    }

    /// Whether the response's body has ended already.
    pub fn is_body_done(&self) -> bool {
        match self {
            UpstreamStream::Http1(up) => up.reader.is_done(),
            UpstreamStream::Http2(up) => up.reader.as_ref().is_none_or(Http2Reader::is_done),
        }
    }

    /// Ready when another piece of the request's body may be pushed.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            UpstreamStream::Http1(up) => up.conn.poll_room(cx).map_err(BodyError::from),
            UpstreamStream::Http2(up) => match &mut up.writer {
                Some(writer) => writer.poll_room(cx).map_err(BodyError::from),
                None => Poll::Ready(Ok(())),
            },
        }
    }

    /// Adds a piece of the request's body.
    pub fn push(&mut self, chunk: Chunk) -> Result<(), BodyError> {
        match self {
            UpstreamStream::Http1(up) => up.writer.push(&mut up.conn, &chunk),
            UpstreamStream::Http2(up) => {
                if let Some(writer) = &mut up.writer {
                    writer.push(chunk)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what was pushed.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            UpstreamStream::Http1(up) => up.conn.poll_flush(cx).map_err(BodyError::from),
            UpstreamStream::Http2(_) => self.poll_room(cx),
        }
    }

    /// What its buffers take, of both directions.
    pub fn held(&mut self) -> usize {
        match self {
            UpstreamStream::Http1(up) => up.conn.held(),
            UpstreamStream::Http2(up) => {
                let writer = up.writer.as_ref().map_or(0, |writer| writer.held(SEND_BUFFER));
                writer + up.reader.as_mut().map_or(0, Http2Reader::held)
            }
        }
    }

    /// Gives back the buffers that are empty, when the request was sent whole and its response may take long.
    pub fn release_buffers(&mut self) {
        match self {
            UpstreamStream::Http1(up) => up.conn.release_buffers(),
            UpstreamStream::Http2(_) => {}
        }
    }

    /// Whether the endpoint may have acted on the request.
    pub fn sent(&self) -> Sent {
        match self {
            UpstreamStream::Http1(up) if up.conn.total_written() == up.written_before => Sent::Nothing,
            UpstreamStream::Http1(_) | UpstreamStream::Http2(_) => Sent::Maybe,
        }
    }

    /// Whether everything that was pushed has been written.
    pub fn is_flushed(&self) -> bool {
        match self {
            UpstreamStream::Http1(up) => up.conn.is_flushed(),
            UpstreamStream::Http2(_) => true,
        }
    }

    /// Gives the connection back when another request may follow on it. `sent_whole` says that the request had been sent
    /// whole when its response began: the endpoint may have stopped reading it otherwise, and would take the rest for
    /// another request, or close the connection.
    pub fn finish(self, in_flight: &InFlight, sent_whole: bool) {
        if let UpstreamStream::Http1(up) = self
            && sent_whole
            && up.keep_alive
            && up.reader.is_done()
        {
            let idle = in_flight.cluster.upstream.idle_timeout;
            let keep = up.keep_for.map_or(idle, |told| told.min(idle));
            in_flight.endpoint.pool.put(up.conn, tokio::time::Instant::now(), keep, up.is_bodiless);
        }
    }
}

impl Http1Upstream {
    fn poll_head(
        &mut self,
        method: &Method,
        response: &mut Response,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), (Failure, Sent)>> {
        loop {
            if !self.conn.read.is_empty() {
                self.got_anything = true;
                match parse_response(&self.conn.read, HEAD_BYTES, method, response) {
                    Ok(Some((length, framing))) => {
                        self.conn.advance(length);
                        self.framing = framing;
                        self.reader = BodyReader::new(framing, TrailerPolicy::Response);
                        if response.status >= 200 {
                            self.is_bodiless = is_bodiless(method, response.status);
                            self.read_keep_alive(response);
                        }
                        return Poll::Ready(Ok(()));
                    }
                    Ok(None) => {}
                    Err(_) => return Poll::Ready(Err((Failure::BadAnswer, Sent::Maybe))),
                }
            }
            match ready!(self.conn.poll_fill(cx)) {
                Ok(count) if count > 0 => {}
                Ok(_) | Err(_) => {
                    let unsent = self.conn.total_written() == self.written_before;
                    let sent = if unsent { Sent::Nothing } else { Sent::Maybe };
                    return Poll::Ready(Err((Failure::Reset, sent)));
                }
            }
        }
    }

    fn read_keep_alive(&mut self, response: &Response) {
        let (mut close, mut keep) = (false, false);
        for value in response.fields.get_all(b"connection") {
            close |= list_contains(value, b"close");
            keep |= list_contains(value, b"keep-alive");
        }
        self.keep_alive = !close && (response.version == Version::Http11 || keep);
        // A second less than the peer says: it counts from when it sent, we from when we received.
        self.keep_for = response.fields.get(b"keep-alive").and_then(keep_alive_timeout).map(|told| {
            told.saturating_sub(Duration::from_secs(1)).max(Duration::from_millis(500)).min(told)
        });
    }

    /// Whether the connection died without a response although it had served before: the peer may have closed it idle.
    pub fn is_stale(&self) -> bool {
        self.reused && !self.got_anything
    }
}

impl Http2Upstream {
    /// Whether it was the connection that failed, not only this stream.
    pub fn conn_failed(&self) -> bool {
        self.conn_failed
    }

    /// Whether the peer ended the connection in good order before it took this request.
    pub fn went_away(&self) -> bool {
        self.went_away
    }

    fn poll_head(
        &mut self,
        method: &Method,
        response: &mut Response,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), (Failure, Sent)>> {
        let Some(future) = &mut self.response else {
            return Poll::Pending;
        };
        match future.poll_informational(cx) {
            Poll::Ready(Some(Ok(interim))) => {
                response.status = interim.status().as_u16();
                response.fields = fields_of(interim.headers());
                return Poll::Ready(Ok(()));
            }
            // An error is the response's as well, which tells it below.
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => {}
        }
        match ready!(Pin::new(future).poll(cx)) {
            Ok(answer) => {
                self.response = None;
                let (head, stream) = answer.into_parts();
                response.status = head.status.as_u16();
                response.version = Version::Http11;
                response.fields = fields_of(&head.headers);
                let is_right =
                    response.status <= 599 && !response.fields.iter().any(|(_, value)| is_padded(value));
                let (true, Ok(length)) = (is_right, content_length(&response.fields)) else {
                    return Poll::Ready(Err((Failure::BadAnswer, Sent::Maybe)));
                };
                let is_bodiless = is_bodiless(method, response.status);
                self.framing = match length {
                    _ if stream.is_end_stream() => Framing::Empty,
                    Some(0) | None => Framing::Chunked,
                    Some(length) => Framing::Length(length),
                };
                let reader = Http2Reader::new(stream, TrailerPolicy::Response).without_body(is_bodiless);
                self.reader = Some(reader);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.response = None;
                self.conn_failed = !error.is_reset();
                self.went_away =
                    error.is_remote() && error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
                Poll::Ready(Err(failure_of(&error)))
            }
        }
    }
}

/// Whether a response to `method` has no body, whatever its fields say (RFC 9112, section 6.3).
fn is_bodiless(method: &Method, status: u16) -> bool {
    *method == Method::Head || matches!(status, 204 | 304)
}

/// The seconds of `Keep-Alive: timeout=N`.
fn keep_alive_timeout(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    let seconds = text.split(',').find_map(|part| part.trim().strip_prefix("timeout=")?.parse().ok())?;
    Some(Duration::from_secs(seconds))
}
