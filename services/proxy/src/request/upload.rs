//! The body of a request, sent to one or more attempts.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tidegate_http1::Fields;
use tokio::time::Instant;

use super::client_stream::ClientStream;
use crate::{
    clients::{Direction, MemoryUse},
    wire::{BodyError, Chunk},
};

/// The most body data that is kept for retries.
pub const REPLAY_LIMIT: usize = 64 * 1024;
/// The memory overhead of a kept chunk.
const CHUNK_OVERHEAD: usize = 64;
/// Smaller chunks are copied to be kept: a reference would keep the whole read buffer, which may be much larger.
const COPY_BELOW: usize = 4096;

/// The body of a request: the part received so far, while it is short enough for retries, and the source of the rest.
pub struct Upload<'a> {
    /// The client.
    pub down: &'a mut ClientStream,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// The number of chunks that are no longer kept; above 0, only one attempt can continue.
    dropped: usize,
    end: Option<Fields>,
    total: u64,
    most: u64,
    /// Whether the client waits for `100 Continue` before it sends.
    expects_continue: bool,
    /// Whether the last [`Upload::poll_next`] found no data from the client.
    awaits_client: bool,
    /// When body data was last received from the client.
    pub progress_at: Instant,
}

/// The position of one attempt in the body.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor {
    next: usize,
    /// Whether this attempt has read the end.
    pub ended: bool,
}

impl<'a> Upload<'a> {
    /// The body that `down` is about to send, at most `most` bytes.
    pub fn new(
        down: &'a mut ClientStream,
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

    /// Whether the body can be replayed from its start.
    pub fn can_replay(&self) -> bool {
        self.dropped == 0
    }

    /// Bytes received from the client.
    pub fn received(&self) -> u64 {
        self.total
    }

    /// Whether the whole body was received, or there is none.
    pub fn is_complete(&self) -> bool {
        self.end.is_some()
    }

    /// Whether the request waits for the client to send more, so that the time does not count against the endpoint.
    pub fn awaits_client(&self) -> bool {
        self.awaits_client
    }

    /// Whether the slow client was evicted.
    pub fn is_client_evicted(&self) -> bool {
        self.down.account().stall_budget().is_some_and(|stall_budget| stall_budget.is_evicted())
    }

    /// Whether the client waits for `100 Continue`.
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Sends `100 Continue` if the client waits for it.
    pub fn send_continue(&mut self) {
        if std::mem::take(&mut self.expects_continue) {
            self.down.send_interim(100, &Fields::new());
        }
    }

    /// Drops the pending `100 Continue`, because the response begins. Returns whether it was pending.
    pub fn cancel_continue(&mut self) -> bool {
        let expected = std::mem::take(&mut self.expects_continue);
        if expected {
            self.end_client_wait();
        }
        expected
    }

    /// Stops waiting for the client's body.
    pub fn end_client_wait(&self) {
        self.down.account().record_progress(Direction::Upload, 0);
    }

    /// The next chunk for the attempt at `cursor`.
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
            // The interim response or its deadline wakes the task. Until the client sends its body, the request waits
            // for the client and is no load for the cluster.
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
                self.keep_for_replay(&data);
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

    fn keep_for_replay(&mut self, data: &Bytes) {
        self.kept_bytes += data.len() + if self.kept.is_empty() { 0 } else { CHUNK_OVERHEAD };
        if self.dropped > 0 || self.kept_bytes > REPLAY_LIMIT {
            self.dropped += self.kept.len() + 1;
            self.kept = Vec::new();
        } else {
            let is_small = data.len() < COPY_BELOW;
            self.kept.push(if is_small { Bytes::copy_from_slice(data) } else { data.clone() });
        }
        let held = if self.dropped > 0 { 0 } else { self.kept_bytes };
        self.down.account_mut().set_memory(MemoryUse::Body, held);
    }
}
