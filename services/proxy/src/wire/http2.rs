//! HTTP/2 streams as bodies, and header maps as fields.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tidegate_http1::{ChunkError, FieldVerdict, Fields, TrailerPolicy};

use super::{BodyError, Chunk};

/// The most response data that the library buffers per stream for a client that does not read.
pub const LIBRARY_BUFFER: usize = 32 * 1024;

/// Reads a body from an HTTP/2 stream.
pub struct Http2Reader {
    stream: h2::RecvStream,
    trailers: TrailerPolicy,
    dropped_trailers: u32,
    data_ended: bool,
    /// Whether the message has no body, so that data would be excess.
    is_bodiless: bool,
}

impl Http2Reader {
    /// A reader of `stream`; `trailers` is the policy for its trailers.
    pub fn new(stream: h2::RecvStream, trailers: TrailerPolicy) -> Http2Reader {
        Http2Reader { stream, trailers, dropped_trailers: 0, data_ended: false, is_bodiless: false }
    }

    /// Sets whether the response has no body because of its status or the request's method. Then it is complete with
    /// its head, and data or errors after it count as its end.
    pub fn without_body(self, is_bodiless: bool) -> Http2Reader {
        Http2Reader { is_bodiless, ..self }
    }

    /// Whether the peer has ended the stream and all of its data was read.
    pub fn is_done(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// How many trailer fields were dropped, once the whole body was read.
    pub fn dropped_trailers(&self) -> u32 {
        self.dropped_trailers
    }

    /// The size of received data that was not read.
    pub fn buffered(&mut self) -> usize {
        self.stream.flow_control().used_capacity()
    }

    /// The next chunk of the body.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, BodyError>> {
        let polled = ready!(self.poll_stream(cx));
        Poll::Ready(match polled {
            Ok(Chunk::Data(_)) | Err(_) if self.is_bodiless => Ok(Chunk::End(Fields::new())),
            polled => polled,
        })
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, BodyError>> {
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(data) => {
                    let data = data?;
                    // Data is only polled when there is room for it, so its window is released at once.
                    self.stream.flow_control().release_capacity(data.len())?;
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Chunk::Data(data)));
                    }
                }
                None => self.data_ended = true,
            }
        }
        let Some(map) = ready!(self.stream.poll_trailers(cx))? else {
            return Poll::Ready(Ok(Chunk::End(Fields::new())));
        };
        let (trailers, dropped) = trailers_of(&map, self.trailers)?;
        self.dropped_trailers += dropped;
        Poll::Ready(Ok(Chunk::End(trailers)))
    }
}

/// Writes a body to an HTTP/2 stream.
pub struct Http2Writer {
    stream: h2::SendStream<Bytes>,
    waiting: Bytes,
    /// Whether the queued data is the last.
    ends: bool,
    given: u64,
}

impl Http2Writer {
    /// A writer to `stream`.
    pub fn new(stream: h2::SendStream<Bytes>) -> Http2Writer {
        Http2Writer { stream, waiting: Bytes::new(), ends: false, given: 0 }
    }

    /// Ready when all queued data was passed to the library.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.waiting.is_empty() {
            self.stream.reserve_capacity(self.waiting.len());
            let granted = match ready!(self.stream.poll_capacity(cx)) {
                Some(granted) => granted?,
                None => return Poll::Ready(Err(h2::Reason::CANCEL.into())),
            };
            let part = self.waiting.split_to(granted.min(self.waiting.len()));
            self.given += part.len() as u64;
            let last = self.ends && self.waiting.is_empty();
            self.stream.send_data(part, last)?;
        }
        Poll::Ready(Ok(()))
    }

    /// How many bytes the peer's flow control has admitted.
    pub fn given(&self) -> u64 {
        self.given
    }

    /// The buffered bytes for a peer that does not read, including the full `library_buffer`.
    pub fn buffered(&self, library_buffer: usize) -> usize {
        if self.waiting.is_empty() { 0 } else { self.waiting.len() + library_buffer }
    }

    /// Queues the last data of a body without trailers, and ends the stream with it. Only while
    /// [`Http2Writer::poll_room`] is ready.
    pub fn push_last(&mut self, data: Bytes) {
        self.waiting = data;
        self.ends = true;
    }

    /// Queues a chunk. Only while [`Http2Writer::poll_room`] is ready.
    pub fn push(&mut self, chunk: Chunk) -> Result<(), h2::Error> {
        match chunk {
            Chunk::Data(data) => {
                self.waiting = data;
                Ok(())
            }
            Chunk::End(_) if self.ends => Ok(()),
            Chunk::End(trailers) if trailers.is_empty() => self.stream.send_data(Bytes::new(), true),
            Chunk::End(trailers) => self.stream.send_trailers(map_of(&trailers)),
        }
    }

    /// Ends the stream with an error.
    pub fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }

    /// Ready when the peer has reset the stream.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<h2::Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }
}

/// The fields of a header map, in its order.
pub fn fields_of(map: &HeaderMap) -> Fields {
    let mut fields = Fields::new();
    fields.reserve(map.len(), size_of(map));
    for (name, value) in map {
        fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    fields
}

/// The total size of names and values in a header map.
pub fn size_of(map: &HeaderMap) -> usize {
    map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// The trailer fields that the policy keeps, and the number of those it drops.
fn trailers_of(map: &HeaderMap, policy: TrailerPolicy) -> Result<(Fields, u32), ChunkError> {
    let mut fields = Fields::new();
    let mut dropped = 0;
    for (name, value) in map {
        if is_padded(value.as_bytes()) {
            return Err(ChunkError::Trailers);
        }
        match policy.judge(name.as_str().as_bytes()) {
            FieldVerdict::Keep => fields.push(name.as_str().as_bytes(), value.as_bytes()),
            FieldVerdict::Drop => dropped += 1,
            FieldVerdict::Refuse => return Err(ChunkError::Underscore),
        }
    }
    Ok((fields, dropped))
}

/// Whether a value begins or ends with white space, which HTTP/1.1 would lose (RFC 9113, section 8.2.1).
pub fn is_padded(value: &[u8]) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.first()) || is_space(value.last())
}

/// A header map of the fields, without invalid ones.
fn map_of(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields.iter() {
        append(&mut map, name, value);
    }
    map
}

/// Adds a field to a header map, unless it is invalid.
pub fn append(map: &mut HeaderMap, name: &[u8], value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
        map.append(name, value);
    }
}
