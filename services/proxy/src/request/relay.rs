//! Relays a response, and what is left of the request, with bounded memory in both directions.

use std::{
    cell::RefCell,
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    attempt::{UpstreamResponse, poll_upload},
    downstream::Downstream,
    upload::Upload,
};
use crate::{
    clients::Direction,
    upstream::InFlight,
    wire::{BodyError, Chunk, IdleTimer, Timer, Turn},
};

/// How a relay ended.
pub enum RelayEnd {
    /// The response was relayed whole.
    Whole,
    /// The endpoint broke off within its response.
    EndpointFailed(BodyError),
    /// The client broke off, or took nothing for too long.
    ClientFailed,
    /// The rest of the request's body is one that is not forwarded.
    RequestRefused(BodyError),
    /// Nothing came from either side for too long.
    Idle,
    /// The client is slow, and its place was needed.
    GivenUp,
}

/// How long a relay waits.
#[derive(Debug, Clone, Copy)]
pub struct StallLimits {
    /// For a client that takes nothing of what waits for it, or that has ended its direction while nothing comes.
    pub stall: Duration,
    /// For anything to pass in either direction.
    pub idle: Duration,
}

/// What came of a relay.
pub struct Relayed {
    /// How it ended.
    pub ended: RelayEnd,
    /// Bytes of the response's body that were given to the client's connection.
    pub sent: u64,
    /// The response, where it was not relayed whole.
    pub unfinished: Option<Box<UpstreamResponse>>,
}

/// Relays until the response has ended.
///
/// The connection to the endpoint is given back when both directions have ended.
pub async fn relay(
    mut answer: Box<UpstreamResponse>,
    upload: &RefCell<Upload<'_>>,
    limits: StallLimits,
    timer: &mut Timer,
) -> Relayed {
    let UpstreamResponse { up, first, flight, cursor, .. } = &mut *answer;
    // An endpoint that answers without `100 Continue` does not want the body, and would take it for another request.
    let (mut broken, mut answered) = (upload.borrow_mut().forget_continue(), false);
    if broken {
        // Nor does it wait for the client any more.
        flight.update_client_wait(upload.borrow().down.account().pace());
    }
    let mut sent = 0;
    // Since when the client has taken nothing, and how much it had taken then.
    let mut waiting: Option<(Instant, u64)> = None;
    let mut took = Taking::default();
    let mut silence = IdleTimer::default();
    let ended = poll_fn(|cx| {
        let mut request_failed = None;
        if !cursor.ended && !broken {
            if let Poll::Ready(Err(error)) = poll_upload(up, flight, upload, cursor, &mut broken, cx) {
                request_failed = Some(error);
            }
        } else if !broken {
            // What was pushed may not be written whole yet.
            broken = matches!(up.poll_flush(cx), Poll::Ready(Err(_)));
        }
        let mut upload = upload.borrow_mut();
        let mut turn = Turn::new();
        while !answered && turn.goes_on(cx) {
            match upload.down.poll_room(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(RelayEnd::ClientFailed),
                Poll::Pending => break,
            }
            match first.take().map_or_else(|| up.poll_body(cx), |chunk| Poll::Ready(Ok(chunk))) {
                Poll::Ready(Ok(chunk)) => {
                    match &chunk {
                        Chunk::Data(data) => sent += data.len() as u64,
                        Chunk::End(_) => answered = true,
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
                    // The client is given what came before.
                    _ = upload.down.poll_flush(cx);
                    return Poll::Ready(RelayEnd::EndpointFailed(error));
                }
                Poll::Pending => break,
            }
        }
        match upload.down.poll_flush(cx) {
            Poll::Ready(Ok(())) if answered => return Poll::Ready(RelayEnd::Whole),
            Poll::Ready(Ok(())) => {
                if waiting.take().is_some() {
                    took.end_wait(upload.down, flight);
                }
            }
            Poll::Ready(Err(_)) => return Poll::Ready(RelayEnd::ClientFailed),
            Poll::Pending => {
                took.begin_wait(upload.down, flight, cx);
                let taken = upload.down.taken();
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
        // The endpoint waits for the rest of the request, which will not come: neither side would end the other's wait.
        match request_failed {
            Some(BodyError::Io(_) | BodyError::Http2(_)) => return Poll::Ready(RelayEnd::ClientFailed),
            Some(error @ (BodyError::Malformed(_) | BodyError::TooLarge)) => {
                return Poll::Ready(RelayEnd::RequestRefused(error));
            }
            None => {}
        }
        upload.down.hold_buffers(up.held());
        if upload.is_given_up() {
            return Poll::Ready(RelayEnd::GivenUp);
        }
        if upload.down.poll_gone(cx).is_ready() {
            return Poll::Ready(RelayEnd::ClientFailed);
        }
        let moved = sent + upload.received() + upload.down.taken();
        // Its end of sending may be a half-close, and then the response is awaited; or all that it will ever say.
        let may_be_gone = upload.down.has_ended_sending();
        let limit = if may_be_gone { limits.stall.min(limits.idle) } else { limits.idle };
        ready!(silence.poll(moved, limit, timer, cx));
        Poll::Ready(if may_be_gone { RelayEnd::ClientFailed } else { RelayEnd::Idle })
    })
    .await;
    let unfinished = match ended {
        RelayEnd::Whole => {
            let UpstreamResponse { up, flight, sent_whole, .. } = *answer;
            up.finish(&flight, sent_whole);
            None
        }
        RelayEnd::EndpointFailed(_)
        | RelayEnd::ClientFailed
        | RelayEnd::RequestRefused(_)
        | RelayEnd::Idle
        | RelayEnd::GivenUp => Some(answer),
    };
    Relayed { ended, sent, unfinished }
}

/// How much a client had taken of a response when it was last waited for.
#[derive(Default)]
struct Taking(Option<u64>);

impl Taking {
    fn begin_wait(&mut self, down: &mut Downstream, flight: &InFlight, cx: &Context<'_>) {
        self.record(down);
        flight.update_client_wait(Some(down.account_mut().record_wait(Direction::Download, cx)));
    }

    fn end_wait(&mut self, down: &Downstream, flight: &InFlight) {
        self.record(down);
        flight.update_client_wait(down.account().pace());
    }

    fn record(&mut self, down: &Downstream) {
        let taken = down.taken();
        let before = self.0.replace(taken).unwrap_or(taken);
        down.account().record_progress(Direction::Download, taken - before);
    }
}
