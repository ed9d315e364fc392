//! HTTP/1.1 bodies: reading and writing by framing.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tidegate_http1::{
    ChunkDecoder, ChunkError, Decoded, Fields, Framing, LAST_CHUNK, TrailerPolicy, write_chunk_head,
    write_trailers,
};

use super::Conn;

/// A chunk of a body.
#[derive(Debug)]
pub enum Chunk {
    /// Data, never empty.
    Data(Bytes),
    /// The end, with trailer fields where there are any.
    End(Fields),
}

/// Why a body cannot be read completely.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection failed or ended before the body did.
    #[error("connection failed within a body: {0}")]
    Io(#[from] io::Error),
    /// The framing is malformed.
    #[error(transparent)]
    Malformed(#[from] ChunkError),
    /// An HTTP/2 stream was reset or its connection failed.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// The body exceeds the service's limit.
    #[error("body too large")]
    TooLarge,
}

/// How many body chunks a task moves before it yields: tiny chunks cost as much time as large ones, for which the
/// runtime's limit on reads applies first.
const PIECES: u32 = 256;

/// The cooperative budget of a task that moves a body.
#[derive(Debug)]
pub struct CoopBudget(u32);

impl CoopBudget {
    /// A full budget.
    pub fn new() -> CoopBudget {
        CoopBudget(PIECES)
    }

    /// Spends one unit. Returns whether there was one; otherwise the task is woken to continue later.
    pub fn spend_or_wake(&mut self, cx: &Context<'_>) -> bool {
        let goes_on = self.0 > 0;
        if goes_on {
            self.0 -= 1;
        } else {
            cx.waker().wake_by_ref();
        }
        goes_on
    }
}

/// Reads a body from an HTTP/1.1 connection.
#[derive(Debug)]
pub struct BodyReader {
    state: State,
    dropped_trailers: u32,
}

#[derive(Debug)]
enum State {
    Length(u64),
    Chunked(Box<ChunkDecoder>),
    UntilClose,
    Done,
}

impl BodyReader {
    /// A reader at the start of a body; `trailers` is the policy for its trailers.
    pub fn new(framing: Framing, trailers: TrailerPolicy) -> BodyReader {
        let state = match framing {
            Framing::Empty => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Box::new(ChunkDecoder::new(trailers))),
            Framing::UntilClose => State::UntilClose,
        };
        BodyReader { state, dropped_trailers: 0 }
    }

    /// Whether the whole body was read.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// How many trailer fields were dropped, once the whole body was read.
    pub fn dropped_trailers(&self) -> u32 {
        self.dropped_trailers
    }

    /// The next chunk of the body. After its end: the end again.
    pub fn poll_chunk(&mut self, conn: &mut Conn, cx: &mut Context<'_>) -> Poll<Result<Chunk, BodyError>> {
        loop {
            match &mut self.state {
                State::Done => return Poll::Ready(Ok(Chunk::End(Fields::new()))),
                State::Length(left) => {
                    if !conn.read.is_empty() {
                        let take = usize::try_from(*left).unwrap_or(usize::MAX).min(conn.read.len());
                        *left -= take as u64;
                        if *left == 0 {
                            self.state = State::Done;
                        }
                        return Poll::Ready(Ok(Chunk::Data(conn.read.split_to(take).freeze())));
                    }
                }
                State::UntilClose => {
                    if !conn.read.is_empty() {
                        return Poll::Ready(Ok(Chunk::Data(conn.read.split().freeze())));
                    }
                    if ready!(conn.poll_fill(cx))? == 0 {
                        self.state = State::Done;
                    }
                    continue;
                }
                State::Chunked(decoder) => match decoder.decode(&conn.read)? {
                    Decoded::Data { range } => {
                        conn.advance(range.start);
                        let data = conn.read.split_to(range.len()).freeze();
                        return Poll::Ready(Ok(Chunk::Data(data)));
                    }
                    Decoded::End { consumed } => {
                        conn.advance(consumed);
                        let trailers = decoder.take_trailers();
                        self.dropped_trailers = decoder.dropped_trailers();
                        self.state = State::Done;
                        return Poll::Ready(Ok(Chunk::End(trailers)));
                    }
                    Decoded::NeedMore { consumed } => conn.advance(consumed),
                },
            }
            if ready!(conn.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(BodyError::Io(io::ErrorKind::UnexpectedEof.into())));
            }
        }
    }
}

/// Writes a body to an HTTP/1.1 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyWriter {
    /// Raw data of an announced length.
    Plain,
    /// Raw data, ended by the end of the connection.
    UntilClose,
    /// Chunked.
    Chunked,
    /// No body, as in a response to HEAD.
    Nothing,
}

impl BodyWriter {
    /// Queues a chunk.
    pub fn push(self, conn: &mut Conn, chunk: &Chunk) {
        let out = conn.out();
        match (self, chunk) {
            (BodyWriter::Nothing, _) | (BodyWriter::Plain | BodyWriter::UntilClose, Chunk::End(_)) => {}
            (BodyWriter::Plain | BodyWriter::UntilClose, Chunk::Data(data)) => out.extend_from_slice(data),
            (BodyWriter::Chunked, Chunk::Data(data)) => {
                write_chunk_head(out, data.len());
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
            }
            (BodyWriter::Chunked, Chunk::End(trailers)) if trailers.is_empty() => {
                out.extend_from_slice(LAST_CHUNK);
            }
            (BodyWriter::Chunked, Chunk::End(trailers)) => write_trailers(out, trailers),
        }
    }
}
