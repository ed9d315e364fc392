//! A timer for deadlines that are set far more often than reached.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// A reusable timer. The runtime's timer is only reset for an earlier deadline; if it fires too early, it is armed
/// again. So a deadline per request costs a comparison instead of an entry in the timer wheel.
#[derive(Default)]
pub struct Timer {
    armed: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Timer {
    /// A timer that is not armed yet.
    pub fn new() -> Timer {
        Timer::default()
    }

    /// Ready once `deadline` has passed; otherwise the task is woken then, or earlier. Must be called within a runtime.
    pub fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let (armed, sleep) = self.armed.get_or_insert_with(|| (deadline, Box::pin(sleep_until(deadline))));
        loop {
            if *armed > deadline {
                *armed = deadline;
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            *armed = deadline;
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn later_and_earlier_deadlines_are_kept() {
        let mut timer = Timer::new();
        let start = Instant::now();
        for after in [50, 500, 20] {
            let deadline = Instant::now() + Duration::from_millis(after);
            poll_fn(|cx| timer.poll_until(deadline, cx)).await;
            assert!(Instant::now() >= deadline && Instant::now() < deadline + Duration::from_millis(5));
        }
        assert_eq!(start.elapsed().as_millis() / 10, 57);
    }
}
