//! One request of a client, over either version.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tidegate_http1::{Fields, Framing, Response, write_field, write_status_line};

use super::{
    heads::{self, ResponseContext},
    local_reply::LocalReply,
};
use crate::{
    clients::{Account, Held},
    wire::{BodyError, BodyReader, BodyWriter, Chunk, Conn, Http2Reader, Http2Writer, LIBRARY_BUFFER},
};

/// A request's client: its body is read from here, the response is written here.
pub enum Downstream {
    /// Over HTTP/1.1.
    Http1(Box<Http1Downstream>),
    /// On an HTTP/2 stream.
    Http2(Box<Http2Downstream>),
}

/// A client's HTTP/1.1 connection, at one request.
pub struct Http1Downstream {
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
    /// What is held for the request.
    pub account: Account,
}

/// A client's HTTP/2 stream.
pub struct Http2Downstream {
    /// The request's body; absent when it has none.
    pub reader: Option<Http2Reader>,
    respond: h2::server::SendResponse<Bytes>,
    writer: Option<Http2Writer>,
    is_head: bool,
    account: Account,
}

impl Http2Downstream {
    /// A stream that waits for its response.
    pub fn new(
        reader: Option<Http2Reader>,
        respond: h2::server::SendResponse<Bytes>,
        is_head: bool,
        account: Account,
    ) -> Http2Downstream {
        Http2Downstream { reader, respond, writer: None, is_head, account }
    }
}

impl Downstream {
    /// The account of the request.
    pub fn account(&self) -> &Account {
        match self {
            Downstream::Http1(down) => &down.account,
            Downstream::Http2(down) => &down.account,
        }
    }

    /// The account of the request, to be changed.
    pub fn account_mut(&mut self) -> &mut Account {
        match self {
            Downstream::Http1(down) => &mut down.account,
            Downstream::Http2(down) => &mut down.account,
        }
    }

    /// Takes into account what the buffers of both sides hold while the request waits; at the endpoint's, `upstream`. Of two
    /// attempts at once it is the one that was looked at last: the body of such a request is short.
    pub fn hold_buffers(&mut self, upstream: usize) {
        let bytes = match self {
            Downstream::Http1(down) => down.conn.held(),
            Downstream::Http2(down) => down.writer.as_ref().map_or(0, |writer| writer.held(LIBRARY_BUFFER)),
        };
        let account = self.account_mut();
        account.hold(Held::Downstream, bytes);
        account.hold(Held::Upstream, upstream);
    }

    /// Whether the request has no body.
    pub fn has_no_body(&self) -> bool {
        match self {
            Downstream::Http1(down) => down.reader.is_done(),
            Downstream::Http2(down) => down.reader.is_none(),
        }
    }

    /// The length of the request's body as it will be told to the endpoint is known from its fields; this is whether
    /// the whole body was read.
    pub fn is_body_read(&self) -> bool {
        match self {
            Downstream::Http1(down) => down.reader.is_done(),
            Downstream::Http2(down) => down.reader.as_ref().is_none_or(Http2Reader::is_done),
        }
    }

    /// How many trailer fields of the request were not let pass.
    pub fn dropped_trailers(&self) -> u32 {
        match self {
            Downstream::Http1(down) => down.reader.dropped_trailers(),
            Downstream::Http2(down) => down.reader.as_ref().map_or(0, Http2Reader::dropped_trailers),
        }
    }

    /// The next piece of the request's body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, BodyError>> {
        match self {
            Downstream::Http1(down) => {
                // What waits to be written (an interim answer) may be what the client waits for.
                if !down.conn.is_flushed()
                    && let Poll::Ready(Err(error)) = down.conn.poll_flush(cx)
                {
                    return Poll::Ready(Err(error.into()));
                }
                down.reader.poll_chunk(&mut down.conn, cx)
            }
            Downstream::Http2(down) => match &mut down.reader {
                Some(reader) => reader.poll_chunk(cx),
                None => Poll::Ready(Ok(Chunk::End(Fields::new()))),
            },
        }
    }

    /// Sends an interim (1xx) answer; to a client of HTTP/1.0, nothing.
    pub fn send_interim(&mut self, status: u16, fields: &Fields) {
        match self {
            Downstream::Http1(down) if !down.is_http10 => {
                let out = down.conn.out();
                write_status_line(out, status);
                for (name, value) in fields.iter().filter(|(name, _)| heads::is_end_to_end(name)) {
                    write_field(out, name, value);
                }
                out.extend_from_slice(b"\r\n");
            }
            Downstream::Http1(_) => {}
            Downstream::Http2(down) => {
                if let Ok(head) = heads::http2_response(status, fields) {
                    // A client that has gone is noticed at the response itself.
                    let _gone = down.respond.send_informational(head);
                }
            }
        }
    }

    /// Lets no other request follow on the client's connection; over HTTP/2 the connection itself says so (`GOAWAY`).
    pub fn end_after_this(&mut self) {
        match self {
            Downstream::Http1(down) => down.keep_alive = false,
            Downstream::Http2(_) => {}
        }
    }

    /// Sends the head of an endpoint's answer. `framing` is the response's own; `body_read` whether the request's whole
    /// body was read, without which the connection can't be used again.
    pub fn send_head(
        &mut self,
        answer: &Response,
        framing: Framing,
        body_read: bool,
        request_id: &[u8],
    ) -> Result<(), BodyError> {
        match self {
            Downstream::Http1(down) => {
                down.keep_alive &= body_read;
                let told = heads::write_http1_response(
                    down.conn.out(),
                    answer,
                    framing,
                    ResponseContext {
                        is_http10: down.is_http10,
                        is_head: down.is_head,
                        keep_alive: down.keep_alive,
                        request_id,
                    },
                );
                down.writer = told.writer;
                down.keep_alive = told.keep_alive;
                Ok(())
            }
            Downstream::Http2(down) => {
                let mut head = heads::http2_response(answer.status, &answer.fields)?;
                heads::add_response_fields(head.headers_mut(), request_id);
                let ends = framing == Framing::Empty || down.is_head;
                let stream = down.respond.send_response(head, ends)?;
                down.writer = (!ends).then(|| Http2Writer::new(stream));
                Ok(())
            }
        }
    }

    /// Sends a response of our own.
    pub fn reply(&mut self, reply: &LocalReply, request_id: &[u8]) -> Result<(), BodyError> {
        let mut answer = Response { status: reply.status, ..Response::default() };
        for (name, value) in reply.fields.iter() {
            answer.fields.push(name, value);
        }
        let body = if reply.body.is_empty() { String::new() } else { format!("{}\n", reply.body) };
        answer.fields.push(b"content-type", b"text/plain; charset=utf-8");
        answer.fields.push(b"content-length", body.len().to_string().as_bytes());
        let framing = if body.is_empty() { Framing::Empty } else { Framing::Length(body.len() as u64) };
        let body_read = self.is_body_read();
        self.send_head(&answer, framing, body_read, request_id)?;
        if framing != Framing::Empty {
            match self {
                Downstream::Http1(down) => {
                    down.writer.push(&mut down.conn, &Chunk::Data(Bytes::from(body)));
                }
                Downstream::Http2(down) => {
                    // Nothing was pushed before, so this needs no wait for room: what the client's window does not hold
                    // at once is sent by `poll_flush`.
                    if let Some(writer) = &mut down.writer {
                        writer.push(Chunk::Data(Bytes::from(body)))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ready when another piece of the response's body may be pushed.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            Downstream::Http1(down) => down.conn.poll_room(cx).map_err(BodyError::from),
            Downstream::Http2(down) => match &mut down.writer {
                Some(writer) => writer.poll_room(cx).map_err(BodyError::from),
                None => Poll::Ready(Ok(())),
            },
        }
    }

    /// Adds a piece of the response's body.
    pub fn push(&mut self, chunk: Chunk) -> Result<(), BodyError> {
        match self {
            Downstream::Http1(down) => down.writer.push(&mut down.conn, &chunk),
            Downstream::Http2(down) => {
                if let Some(writer) = &mut down.writer {
                    writer.push(chunk)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the last data of a response whose end is known to follow without trailers.
    pub fn push_last(&mut self, data: Bytes) {
        match self {
            Downstream::Http1(down) => down.writer.push(&mut down.conn, &Chunk::Data(data)),
            Downstream::Http2(down) => {
                if let Some(writer) = &mut down.writer {
                    writer.push_last(data);
                }
            }
        }
    }

    /// Writes what was pushed.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            Downstream::Http1(down) => down.conn.poll_flush(cx).map_err(BodyError::from),
            Downstream::Http2(_) => self.poll_room(cx),
        }
    }

    /// How many bytes the client has taken, as far as can be seen; to be compared only.
    pub fn taken(&self) -> u64 {
        match self {
            Downstream::Http1(down) => down.conn.total_written(),
            Downstream::Http2(down) => down.writer.as_ref().map_or(0, Http2Writer::given),
        }
    }

    /// Ends a response of our own and writes it out.
    pub fn poll_end(&mut self, ended: &mut bool, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        ready!(self.poll_room(cx))?;
        if !std::mem::replace(ended, true) {
            self.push(Chunk::End(Fields::new()))?;
        }
        self.poll_flush(cx)
    }

    /// Ready when the client has given the request up in so many words, which only HTTP/2 has, or must, since too much is
    /// held for it.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Downstream::Http1(down) if down.account.is_evicted() => Poll::Ready(()),
            Downstream::Http1(_) => Poll::Pending,
            Downstream::Http2(down) => {
                let reset = match &mut down.writer {
                    Some(writer) => writer.poll_reset(cx),
                    None => down.respond.poll_reset(cx),
                };
                reset.map(|_| ())
            }
        }
    }

    /// Ready when the client has given the request up or its connection has failed. An HTTP/1.1 client that has only
    /// ended its direction is not gone: it may wait for its response.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Downstream::Http1(down) if down.account.is_evicted() => Poll::Ready(()),
            // While its body is read, that tells. Of what comes after it, one read's worth is taken and kept.
            Downstream::Http1(down) if down.reader.is_done() && down.conn.read.is_empty() => {
                match down.conn.poll_fill(cx) {
                    Poll::Ready(Err(_)) => Poll::Ready(()),
                    Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
                }
            }
            Downstream::Http1(_) => Poll::Pending,
            Downstream::Http2(_) => self.poll_reset(cx),
        }
    }

    /// Whether the client will send nothing more, not even another request.
    pub fn has_ended_sending(&self) -> bool {
        match self {
            Downstream::Http1(down) => down.conn.is_ended(),
            Downstream::Http2(_) => false,
        }
    }

    /// Breaks a response off so that the client cannot take it for whole.
    pub fn abort(&mut self) {
        match self {
            Downstream::Http1(down) => {
                down.keep_alive = false;
                if down.writer == BodyWriter::UntilClose {
                    down.conn.io().reset_on_close();
                }
            }
            Downstream::Http2(down) => match &mut down.writer {
                Some(writer) => writer.reset(h2::Reason::INTERNAL_ERROR),
                None => down.respond.send_reset(h2::Reason::INTERNAL_ERROR),
            },
        }
    }
}
