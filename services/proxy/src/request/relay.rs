//! Relays a response and the rest of its request, with bounded memory in both directions.

use std::{
    cell::RefCell,
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    attempt::poll_upload, client_stream::ClientStream, upload::Upload, upstream_response::UpstreamResponse,
};
use crate::{
    clients::Direction,
    upstream::InFlightRequest,
    wire::{BodyError, Chunk, CoopBudget, IdleTimer, Timer},
};

/// How a relay ended.
pub enum RelayEnd {
    /// The response was relayed completely.
    Whole,
    /// The endpoint failed within its response.
    EndpointFailed(BodyError),
    /// The client disconnected, or read nothing for too long.
    ClientFailed,
    /// The rest of the request's body is malformed or too large.
    RequestRefused(BodyError),
    /// The idle timeout of the stream has passed.
    Idle,
    /// The client is slow and was evicted.
    ClientEvicted,
}

/// The timeouts of a relay.
#[derive(Debug, Clone, Copy)]
pub struct StallLimits {
    /// How long the client may read nothing while data waits for it, or wait idly after it closed its sending
    /// direction.
    pub stall: Duration,
    /// The idle timeout, in both directions.
    pub idle: Duration,
}

/// The outcome of a relay.
pub struct RelayOutcome {
    /// How it ended.
    pub ended: RelayEnd,
    /// Bytes of the response's body that were passed to the client's connection.
    pub sent: u64,
    /// The response, if it was not relayed completely.
    pub unfinished: Option<Box<UpstreamResponse>>,
}

/// Relays until the response has ended.
///
/// The upstream connection is returned to its pool when both directions have ended.
pub async fn relay(
    mut response: Box<UpstreamResponse>,
    upload: &RefCell<Upload<'_>>,
    limits: StallLimits,
    timer: &mut Timer,
) -> RelayOutcome {
    let UpstreamResponse { up, first, in_flight, cursor, .. } = &mut *response;
    // An endpoint that responds without `100 Continue` does not want the body, and would take it for another request.
    let (mut upload_abandoned, mut is_complete) = (upload.borrow_mut().cancel_continue(), false);
    if upload_abandoned {
        // The request no longer waits for its client.
        in_flight.update_client_wait(upload.borrow().down.account().stall_budget());
    }
    let mut sent = 0;
    // Since when the client has read nothing, and how much it had read by then.
    let mut waiting: Option<(Instant, u64)> = None;
    let mut took = DownloadProgress::default();
    let mut idle_timer = IdleTimer::default();
    let ended = poll_fn(|cx| {
        let mut request_failed = None;
        if !cursor.ended && !upload_abandoned {
            if let Poll::Ready(Err(error)) =
                poll_upload(up, in_flight, upload, cursor, &mut upload_abandoned, cx)
            {
                request_failed = Some(error);
            }
        } else if !upload_abandoned {
            // Queued data may not be written completely yet.
            upload_abandoned = matches!(up.poll_flush(cx), Poll::Ready(Err(_)));
        }
        let mut upload = upload.borrow_mut();
        let mut budget = CoopBudget::new();
        while !is_complete && budget.spend_or_wake(cx) {
            match upload.down.poll_room(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(RelayEnd::ClientFailed),
                Poll::Pending => break,
            }
            match first.take().map_or_else(|| up.poll_body(cx), |chunk| Poll::Ready(Ok(chunk))) {
                Poll::Ready(Ok(chunk)) => {
                    match &chunk {
                        Chunk::Data(data) => sent += data.len() as u64,
                        Chunk::End(_) => is_complete = true,
                    }
                    let pushed = match chunk {
                        // A body of known length ends with its last data.
                        Chunk::Data(data) if up.is_body_done() => {
                            upload.down.push_last(data);
                            Ok(())
                        }
                        chunk => upload.down.push(chunk),
                    };
                    if pushed.is_err() {
                        return Poll::Ready(RelayEnd::ClientFailed);
                    }
                }
                Poll::Ready(Err(error)) => {
                    // The client gets what arrived before.
                    _ = upload.down.poll_flush(cx);
                    return Poll::Ready(RelayEnd::EndpointFailed(error));
                }
                Poll::Pending => break,
            }
        }
        match upload.down.poll_flush(cx) {
            Poll::Ready(Ok(())) if is_complete => return Poll::Ready(RelayEnd::Whole),
            Poll::Ready(Ok(())) => {
                if waiting.take().is_some() {
                    took.end_wait(upload.down, in_flight);
                }
            }
            Poll::Ready(Err(_)) => return Poll::Ready(RelayEnd::ClientFailed),
            Poll::Pending => {
                took.begin_wait(upload.down, in_flight, cx);
                let taken = upload.down.delivered();
                let (since, _) = match waiting {
                    Some((_, known)) if known != taken => *waiting.insert((Instant::now(), taken)),
                    Some(known) => known,
                    None => *waiting.insert((Instant::now(), taken)),
                };
                if timer.poll_until(since + limits.stall, cx).is_ready() {
                    return Poll::Ready(RelayEnd::ClientFailed);
                }
            }
        }
        // The endpoint would wait for the rest of the request for ever.
        match request_failed {
            Some(BodyError::Io(_) | BodyError::Http2(_)) => return Poll::Ready(RelayEnd::ClientFailed),
            Some(error @ (BodyError::Malformed(_) | BodyError::TooLarge)) => {
                return Poll::Ready(RelayEnd::RequestRefused(error));
            }
            None => {}
        }
        upload.down.account_buffers(up.buffered());
        if upload.is_client_evicted() {
            return Poll::Ready(RelayEnd::ClientEvicted);
        }
        if upload.down.poll_gone(cx).is_ready() {
            return Poll::Ready(RelayEnd::ClientFailed);
        }
        let moved = sent + upload.received() + upload.down.delivered();
        // The closed sending direction may be a half-close of a client that waits, or a client that is gone.
        let may_be_gone = upload.down.has_ended_sending();
        let limit = if may_be_gone { limits.stall.min(limits.idle) } else { limits.idle };
        ready!(idle_timer.poll(moved, limit, timer, cx));
        Poll::Ready(if may_be_gone { RelayEnd::ClientFailed } else { RelayEnd::Idle })
    })
    .await;
    let unfinished = match ended {
        RelayEnd::Whole => {
            let UpstreamResponse { up, in_flight, sent_whole, .. } = *response;
            up.finish(&in_flight, sent_whole);
            None
        }
        RelayEnd::EndpointFailed(_)
        | RelayEnd::ClientFailed
        | RelayEnd::RequestRefused(_)
        | RelayEnd::Idle
        | RelayEnd::ClientEvicted => Some(response),
    };
    RelayOutcome { ended, sent, unfinished }
}

/// How much of a response the client had read when the request last waited for it.
#[derive(Default)]
struct DownloadProgress(Option<u64>);

impl DownloadProgress {
    fn begin_wait(&mut self, down: &mut ClientStream, in_flight: &InFlightRequest, cx: &Context<'_>) {
        self.record(down);
        in_flight.update_client_wait(Some(down.account_mut().record_wait(Direction::Download, cx)));
    }

    fn end_wait(&mut self, down: &ClientStream, in_flight: &InFlightRequest) {
        self.record(down);
        in_flight.update_client_wait(down.account().stall_budget());
    }

    fn record(&mut self, down: &ClientStream) {
        let taken = down.delivered();
        let before = self.0.replace(taken).unwrap_or(taken);
        down.account().record_progress(Direction::Download, taken - before);
    }
}
