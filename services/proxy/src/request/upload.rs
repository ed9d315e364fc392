//! A request's body on its way to one or more attempts.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tidegate_http1::Fields;
use tokio::time::Instant;

use super::downstream::Downstream;
use crate::{
    clients::{Direction, Held},
    wire::{BodyError, Chunk},
};

/// How much of a body is kept so that it can be sent again.
pub const REPLAY_LIMIT: usize = 64 * 1024;
/// What a chunk that is kept counts for beside its data: a body of tiny chunks takes more room than what is in it.
const CHUNK_OVERHEAD: usize = 64;
/// Smaller chunks are copied to be kept: they would keep the whole buffer in which they came, with the heads of other chunks,
/// which may be much longer.
const KEPT_AS_IT_IS: usize = 4096;

/// The body of a request: what came so far, while it is little enough to be sent again, and where the rest comes from.
pub struct Upload<'a> {
    /// The client.
    pub down: &'a mut Downstream,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// Chunks of which nothing is kept any more; then only one attempt can read on.
    dropped: usize,
    end: Option<Fields>,
    total: u64,
    most: u64,
    /// Whether the client waits for `100 Continue` before it sends.
    expects_continue: bool,
    /// Whether the last [`Upload::poll_next`] found no data from the client.
    awaits_client: bool,
    /// When data last came from the client.
    pub progress_at: Instant,
}

/// How far one attempt has read a body.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor {
    next: usize,
    /// Whether the end was given to this attempt.
    pub ended: bool,
}

impl<'a> Upload<'a> {
    /// The body that `down` has yet to send, at most `most` bytes.
    pub fn new(
        down: &'a mut Downstream,
        expects_continue: bool,
        most: Option<u64>,
        now: Instant,
    ) -> Upload<'a> {
        let end = down.has_no_body().then(Fields::new);
        Upload {
            expects_continue: expects_continue && end.is_none(),
            down,
            kept: Vec::new(),
            kept_bytes: 0,
            dropped: 0,
            end,
            total: 0,
            most: most.unwrap_or(u64::MAX),
            awaits_client: false,
            progress_at: now,
        }
    }

    /// Whether an attempt can begin at the start of the body.
    pub fn can_replay(&self) -> bool {
        self.dropped == 0
    }

    /// Bytes that came from the client.
    pub fn received(&self) -> u64 {
        self.total
    }

    /// Whether the whole body is here (or there is none).
    pub fn is_complete(&self) -> bool {
        self.end.is_some()
    }

    /// Whether nothing goes on before the client sends more: then the endpoint is not to blame for the time.
    pub fn awaits_client(&self) -> bool {
        self.awaits_client
    }

    /// Whether the client was slow, and was given up because its place is needed.
    pub fn is_given_up(&self) -> bool {
        self.down.account().pace().is_some_and(|pace| pace.is_given_up())
    }

    /// Whether the client waits for `100 Continue`.
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Tells the client to send its body, if it waits for that.
    pub fn let_continue(&mut self) {
        if std::mem::take(&mut self.expects_continue) {
            self.down.send_interim(100, &Fields::new());
        }
    }

    /// The client is not told to send its body any more, since its response begins. Returns whether it still waited for that.
    pub fn forget_continue(&mut self) -> bool {
        let expected = std::mem::take(&mut self.expects_continue);
        if expected {
            self.end_client_wait();
        }
        expected
    }

    /// Nothing more is wanted of the client's body.
    pub fn end_client_wait(&self) {
        self.down.account().record_progress(Direction::Upload, 0);
    }

    /// The next piece for the attempt at `cursor`.
    pub fn poll_next(&mut self, cursor: &mut Cursor, cx: &mut Context<'_>) -> Poll<Result<Chunk, BodyError>> {
        if let Some(data) = self.kept.get(cursor.next) {
            cursor.next += 1;
            return Poll::Ready(Ok(Chunk::Data(data.clone())));
        }
        if let Some(trailers) = &self.end {
            cursor.ended = true;
            return Poll::Ready(Ok(Chunk::End(trailers.clone())));
        }
        if self.expects_continue {
            // The interim answer, or its deadline, wakes the task. A client that has sent nothing yet is waited for, whoever
            // has to speak first: the request is no work for the cluster before there is more of it.
            self.down.account_mut().record_wait(Direction::Upload, cx);
            return Poll::Pending;
        }
        let polled = self.down.poll_body(cx);
        self.awaits_client = polled.is_pending();
        if self.awaits_client {
            self.down.account_mut().record_wait(Direction::Upload, cx);
        }
        let chunk = ready!(polled)?;
        let bytes = if let Chunk::Data(data) = &chunk { data.len() as u64 } else { 0 };
        self.down.account().record_progress(Direction::Upload, bytes);
        match chunk {
            Chunk::Data(data) => {
                self.total += bytes;
                if self.total > self.most {
                    return Poll::Ready(Err(BodyError::TooLarge));
                }
                self.progress_at = Instant::now();
                self.keep(&data);
                cursor.next += 1;
                Poll::Ready(Ok(Chunk::Data(data)))
            }
            Chunk::End(trailers) => {
                self.end = Some(trailers.clone());
                cursor.ended = true;
                Poll::Ready(Ok(Chunk::End(trailers)))
            }
        }
    }

    fn keep(&mut self, data: &Bytes) {
        self.kept_bytes += data.len() + if self.kept.is_empty() { 0 } else { CHUNK_OVERHEAD };
        if self.dropped > 0 || self.kept_bytes > REPLAY_LIMIT {
            self.dropped += self.kept.len() + 1;
            self.kept = Vec::new();
        } else {
            let is_small = data.len() < KEPT_AS_IT_IS;
            self.kept.push(if is_small { Bytes::copy_from_slice(data) } else { data.clone() });
        }
        let held = if self.dropped > 0 { 0 } else { self.kept_bytes };
        self.down.account_mut().hold(Held::Body, held);
    }
}
