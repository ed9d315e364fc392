//! The client's side of one request, over HTTP/1.1 or HTTP/2.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tidegate_http1::{Fields, Framing, Response};

use super::{
    heads::{self, ResponseContext},
    local_reply::LocalReply,
};
use crate::{
    clients::{MemoryUse, RequestAccount},
    wire::{BodyError, BodyReader, BodyWriter, Chunk, Conn, Http2Reader, Http2Writer, LIBRARY_BUFFER},
};

/// The client's side of a request: source of the request's body, sink of the response.
pub enum ClientStream {
    /// Over HTTP/1.1.
    Http1(Box<Http1ClientStream>),
    /// On an HTTP/2 stream.
    Http2(Box<Http2ClientStream>),
}

/// A client's HTTP/1.1 connection during one request.
pub struct Http1ClientStream {
    /// The connection.
    pub conn: Conn,
    /// The request's body.
    pub reader: BodyReader,
    /// The response's body.
    pub writer: BodyWriter,
    /// Whether the client speaks HTTP/1.0.
    pub is_http10: bool,
    /// Whether another request may follow.
    pub keep_alive: bool,
    /// Whether the request was a HEAD.
    pub is_head: bool,
    /// The resources used for the request.
    pub account: RequestAccount,
}

/// A client's HTTP/2 stream.
pub struct Http2ClientStream {
    /// The request's body; absent if it has none.
    pub reader: Option<Http2Reader>,
    respond: h2::server::SendResponse<Bytes>,
    writer: Option<Http2Writer>,
    is_head: bool,
    account: RequestAccount,
}

impl Http2ClientStream {
    /// A stream without a response.
    pub fn new(
        reader: Option<Http2Reader>,
        respond: h2::server::SendResponse<Bytes>,
        is_head: bool,
        account: RequestAccount,
    ) -> Http2ClientStream {
        Http2ClientStream { reader, respond, writer: None, is_head, account }
    }
}

impl ClientStream {
    /// The account of the request.
    pub fn account(&self) -> &RequestAccount {
        match self {
            ClientStream::Http1(down) => &down.account,
            ClientStream::Http2(down) => &down.account,
        }
    }

    /// The account of the request, mutable.
    pub fn account_mut(&mut self) -> &mut RequestAccount {
        match self {
            ClientStream::Http1(down) => &mut down.account,
            ClientStream::Http2(down) => &mut down.account,
        }
    }

    /// Updates the account with the buffers of both sides; `upstream` is the size of the endpoint's side. Of two
    /// parallel attempts the last one polled counts, since the bodies of such requests are short.
    pub fn account_buffers(&mut self, upstream: usize) {
        let bytes = match self {
            ClientStream::Http1(down) => down.conn.buffered(),
            ClientStream::Http2(down) => {
                down.writer.as_ref().map_or(0, |writer| writer.buffered(LIBRARY_BUFFER))
            }
        };
        let account = self.account_mut();
        account.set_memory(MemoryUse::ClientStream, bytes);
        account.set_memory(MemoryUse::Upstream, upstream);
    }

    /// Whether the request has no body.
    pub fn has_no_body(&self) -> bool {
        match self {
            ClientStream::Http1(down) => down.reader.is_done(),
            ClientStream::Http2(down) => down.reader.is_none(),
        }
    }

    /// Whether the whole request body was read.
    pub fn is_body_read(&self) -> bool {
        match self {
            ClientStream::Http1(down) => down.reader.is_done(),
            ClientStream::Http2(down) => down.reader.as_ref().is_none_or(Http2Reader::is_done),
        }
    }

    /// How many trailer fields of the request were dropped.
    pub fn dropped_trailers(&self) -> u32 {
        match self {
            ClientStream::Http1(down) => down.reader.dropped_trailers(),
            ClientStream::Http2(down) => down.reader.as_ref().map_or(0, Http2Reader::dropped_trailers),
        }
    }

    /// The next chunk of the request's body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, BodyError>> {
        match self {
            ClientStream::Http1(down) => {
                // The client may be waiting for queued data (an interim response).
                if !down.conn.is_flushed()
                    && let Poll::Ready(Err(error)) = down.conn.poll_flush(cx)
                {
                    return Poll::Ready(Err(error.into()));
                }
                down.reader.poll_chunk(&mut down.conn, cx)
            }
            ClientStream::Http2(down) => match &mut down.reader {
                Some(reader) => reader.poll_chunk(cx),
                None => Poll::Ready(Ok(Chunk::End(Fields::new()))),
            },
        }
    }

    /// Sends an interim (1xx) response, unless the client speaks HTTP/1.0.
    pub fn send_interim(&mut self, status: u16, fields: &Fields) {
        match self {
            ClientStream::Http1(down) if !down.is_http10 => {
                heads::write_interim_response(down.conn.out(), status, fields, &[]);
            }
            ClientStream::Http1(_) => {}
            ClientStream::Http2(down) => {
                if let Ok(head) = heads::http2_response(status, fields) {
                    // A closed connection is noticed at the final response.
                    let _gone = down.respond.send_informational(head);
                }
            }
        }
    }

    /// Disables keep-alive for an HTTP/1.1 connection; an HTTP/2 connection sends GOAWAY by itself.
    pub fn disable_keep_alive(&mut self) {
        match self {
            ClientStream::Http1(down) => down.keep_alive = false,
            ClientStream::Http2(_) => {}
        }
    }

    /// Sends a response head. `framing` is the response's framing, `body_read` whether the whole request body was read:
    /// otherwise the connection can't be reused.
    pub fn send_head(
        &mut self,
        response: &Response,
        framing: Framing,
        body_read: bool,
        request_id: &[u8],
    ) -> Result<(), BodyError> {
        match self {
            ClientStream::Http1(down) => {
                down.keep_alive &= body_read;
                let written = heads::write_http1_response(
                    down.conn.out(),
                    response,
                    framing,
                    ResponseContext {
                        is_http10: down.is_http10,
                        is_head: down.is_head,
                        keep_alive: down.keep_alive,
                        request_id,
                    },
                );
                down.writer = written.writer;
                down.keep_alive = written.keep_alive;
                Ok(())
            }
            ClientStream::Http2(down) => {
                let mut head = heads::http2_response(response.status, &response.fields)?;
                heads::add_response_fields(head.headers_mut(), request_id);
                let ends = framing == Framing::Empty || down.is_head;
                let stream = down.respond.send_response(head, ends)?;
                down.writer = (!ends).then(|| Http2Writer::new(stream));
                Ok(())
            }
        }
    }

    /// Queues a local reply.
    pub fn push_local_reply(&mut self, reply: &LocalReply, request_id: &[u8]) -> Result<(), BodyError> {
        let mut response = Response { status: reply.status, ..Response::default() };
        for (name, value) in reply.fields.iter() {
            response.fields.push(name, value);
        }
        let body = if reply.body.is_empty() { String::new() } else { format!("{}\n", reply.body) };
        response.fields.push(b"content-type", b"text/plain; charset=utf-8");
        response.fields.push(b"content-length", body.len().to_string().as_bytes());
        let framing = if body.is_empty() { Framing::Empty } else { Framing::Length(body.len() as u64) };
        let body_read = self.is_body_read();
        self.send_head(&response, framing, body_read, request_id)?;
        if framing == Framing::Empty {
            return Ok(());
        }
        // Nothing was queued before, so there is room; what exceeds the client's window is sent by `poll_flush`.
        self.push(Chunk::Data(Bytes::from(body)))
    }

    /// Ready when another chunk of the response's body may be pushed.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            ClientStream::Http1(down) => down.conn.poll_room(cx).map_err(BodyError::from),
            ClientStream::Http2(down) => match &mut down.writer {
                Some(writer) => writer.poll_room(cx).map_err(BodyError::from),
                None => Poll::Ready(Ok(())),
            },
        }
    }

    /// Queues a chunk of the response's body.
    pub fn push(&mut self, chunk: Chunk) -> Result<(), BodyError> {
        match self {
            ClientStream::Http1(down) => down.writer.push(&mut down.conn, &chunk),
            ClientStream::Http2(down) => {
                if let Some(writer) = &mut down.writer {
                    writer.push(chunk)?;
                }
            }
        }
        Ok(())
    }

    /// Queues the last data of a response without trailers.
    pub fn push_last(&mut self, data: Bytes) {
        match self {
            ClientStream::Http1(down) => down.writer.push(&mut down.conn, &Chunk::Data(data)),
            ClientStream::Http2(down) => {
                if let Some(writer) = &mut down.writer {
                    writer.push_last(data);
                }
            }
        }
    }

    /// Writes queued data.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            ClientStream::Http1(down) => down.conn.poll_flush(cx).map_err(BodyError::from),
            ClientStream::Http2(_) => self.poll_room(cx),
        }
    }

    /// How many bytes were delivered towards the client, as far as visible. Only for comparisons.
    pub fn delivered(&self) -> u64 {
        match self {
            ClientStream::Http1(down) => down.conn.total_written(),
            ClientStream::Http2(down) => down.writer.as_ref().map_or(0, Http2Writer::given),
        }
    }

    /// Ends a local reply and writes it out.
    pub fn poll_end(&mut self, ended: &mut bool, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        ready!(self.poll_room(cx))?;
        if !std::mem::replace(ended, true) {
            self.push(Chunk::End(Fields::new()))?;
        }
        self.poll_flush(cx)
    }

    /// Ready when the client has reset the stream (HTTP/2 only), or is evicted to free memory.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            ClientStream::Http1(down) if down.account.is_evicted() => Poll::Ready(()),
            ClientStream::Http1(_) => Poll::Pending,
            ClientStream::Http2(down) => {
                let reset = match &mut down.writer {
                    Some(writer) => writer.poll_reset(cx),
                    None => down.respond.poll_reset(cx),
                };
                reset.map(|_| ())
            }
        }
    }

    /// Ready when the client has cancelled the request or its connection has failed. An HTTP/1.1 client that has only
    /// closed its sending direction may still wait for the response.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            ClientStream::Http1(down) if down.account.is_evicted() => Poll::Ready(()),
            // While the body is read, reading detects it. After the body, at most one read is buffered.
            ClientStream::Http1(down) if down.reader.is_done() && down.conn.read.is_empty() => {
                match down.conn.poll_fill(cx) {
                    Poll::Ready(Err(_)) => Poll::Ready(()),
                    Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
                }
            }
            ClientStream::Http1(_) => Poll::Pending,
            ClientStream::Http2(_) => self.poll_reset(cx),
        }
    }

    /// Whether the client has closed its sending direction.
    pub fn has_ended_sending(&self) -> bool {
        match self {
            ClientStream::Http1(down) => down.conn.is_ended(),
            ClientStream::Http2(_) => false,
        }
    }

    /// Aborts a response so that the client cannot take it for complete.
    pub fn abort(&mut self) {
        match self {
            ClientStream::Http1(down) => {
                down.keep_alive = false;
                if down.writer == BodyWriter::UntilClose {
                    down.conn.io().reset_on_close();
                }
            }
            ClientStream::Http2(down) => match &mut down.writer {
                Some(writer) => writer.reset(h2::Reason::INTERNAL_ERROR),
                None => down.respond.send_reset(h2::Reason::INTERNAL_ERROR),
            },
        }
    }
}
