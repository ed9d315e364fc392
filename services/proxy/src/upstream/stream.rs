//! A request at an endpoint, over HTTP/1.1 or HTTP/2.

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
    endpoint::InFlightRequest,
    error::{Sent, failure_of},
    http2_conn::{Http2Conn, StreamGuard},
};
use crate::wire::{
    BodyError, BodyReader, BodyWriter, Chunk, Conn, Http2Reader, Http2Writer, fields_of, is_padded,
};

/// The maximum size of a response head.
const HEAD_BYTES: usize = 128 * 1024;

/// A request at an endpoint.
pub enum UpstreamStream {
    /// On a connection of its own.
    Http1(Http1Upstream),
    /// On a stream of a shared connection.
    Http2(Http2Upstream),
}

/// A request over HTTP/1.1.
pub struct Http1Upstream {
    /// The connection.
    pub conn: Conn,
    /// Whether it carried a request before.
    pub reused: bool,
    written_before: u64,
    writer: BodyWriter,
    framing: Framing,
    reader: BodyReader,
    keep_alive: bool,
    keep_for: Option<Duration>,
    has_received: bool,
    /// Whether the response has no body because of its status or the request's method. A faulty endpoint may send one
    /// nevertheless.
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
        // Abandoned without a response: the endpoint may be slow, or the connection dead.
        if self.response.is_some() {
            self.stream.request_check();
        }
    }
}

impl UpstreamStream {
    /// A request whose head is queued in `conn`.
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
            has_received: false,
            is_bodiless: false,
        })
    }

    /// A request whose head was sent on a stream; `writer` is absent if it has no body.
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

    /// Reads a response head, interim or final, into `response`.
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

    /// The next chunk of the response's body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, BodyError>> {
        match self {
            UpstreamStream::Http1(up) => up.reader.poll_chunk(&mut up.conn, cx),
            UpstreamStream::Http2(up) => match &mut up.reader {
                Some(reader) => reader.poll_chunk(cx),
                None => Poll::Ready(Ok(Chunk::End(Fields::new()))),
            },
        }
    }

    /// The framing of the response's body, once its head was received.
    pub fn framing(&self) -> Framing {
        match self {
            UpstreamStream::Http1(up) => up.framing,
            UpstreamStream::Http2(up) => up.framing,
        }
    }

    /// Whether the response's body has ended.
    pub fn is_body_done(&self) -> bool {
        match self {
            UpstreamStream::Http1(up) => up.reader.is_done(),
            UpstreamStream::Http2(up) => up.reader.as_ref().is_none_or(Http2Reader::is_done),
        }
    }

    /// Ready when another chunk of the request's body may be pushed.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            UpstreamStream::Http1(up) => up.conn.poll_room(cx).map_err(BodyError::from),
            UpstreamStream::Http2(up) => match &mut up.writer {
                Some(writer) => writer.poll_room(cx).map_err(BodyError::from),
                None => Poll::Ready(Ok(())),
            },
        }
    }

    /// Queues a chunk of the request's body.
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

    /// Writes queued data.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            UpstreamStream::Http1(up) => up.conn.poll_flush(cx).map_err(BodyError::from),
            UpstreamStream::Http2(_) => self.poll_room(cx),
        }
    }

    /// The size of its buffers in both directions.
    pub fn buffered(&mut self) -> usize {
        match self {
            UpstreamStream::Http1(up) => up.conn.buffered(),
            UpstreamStream::Http2(up) => {
                let writer = up.writer.as_ref().map_or(0, |writer| writer.buffered(SEND_BUFFER));
                writer + up.reader.as_mut().map_or(0, Http2Reader::buffered)
            }
        }
    }

    /// Releases empty buffers, when the request was sent completely and the response may take long.
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

    /// Whether all queued data was written.
    pub fn is_flushed(&self) -> bool {
        match self {
            UpstreamStream::Http1(up) => up.conn.is_flushed(),
            UpstreamStream::Http2(_) => true,
        }
    }

    /// Returns the connection to the pool if it can be reused. `sent_whole` is whether the request was sent completely
    /// before its response began: otherwise the endpoint may have stopped reading, and would take the rest for another
    /// request or close the connection.
    pub fn finish(self, in_flight: &InFlightRequest, sent_whole: bool) {
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
                self.has_received = true;
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
                    Err(_) => return Poll::Ready(Err((Failure::BadResponse, Sent::Maybe))),
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
        // A second less than the peer's value: its timer starts when it sends, this one when the response arrives.
        self.keep_for = response.fields.get(b"keep-alive").and_then(keep_alive_timeout).map(|told| {
            told.saturating_sub(Duration::from_secs(1)).max(Duration::from_millis(500)).min(told)
        });
    }

    /// Whether a reused connection ended without a response: the peer may have closed it as idle.
    pub fn is_stale(&self) -> bool {
        self.reused && !self.has_received
    }
}

impl Http2Upstream {
    /// Whether the connection failed, not only this stream.
    pub fn conn_failed(&self) -> bool {
        self.conn_failed
    }

    /// Whether the peer closed the connection gracefully before it processed this request.
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
            // The response fails with the same error below.
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
                    return Poll::Ready(Err((Failure::BadResponse, Sent::Maybe)));
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
