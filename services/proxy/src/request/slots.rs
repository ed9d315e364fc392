//! Up to two concurrent futures, of which the second is rare and therefore boxed.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// The futures in the slots 0 and 1.
pub struct Slots<'a, F> {
    first: Pin<&'a mut Option<F>>,
    second: Option<Pin<Box<F>>>,
}

impl<'a, F: Future> Slots<'a, F> {
    /// A future in slot 0, and none in slot 1.
    pub fn new(first: Pin<&'a mut Option<F>>) -> Slots<'a, F> {
        Slots { first, second: None }
    }

    /// Puts a future into a slot. The previous one is dropped.
    pub fn set(&mut self, slot: usize, future: F) {
        match slot {
            0 => self.first.set(Some(future)),
            _ => self.second = Some(Box::pin(future)),
        }
    }

    /// Drops the future in a slot.
    pub fn clear(&mut self, slot: usize) {
        match slot {
            0 => self.first.set(None),
            _ => self.second = None,
        }
    }

    /// Polls both; ready with the slot and output of the first that is. The slot must be cleared afterwards.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(usize, F::Output)> {
        if let Some(future) = self.first.as_mut().as_pin_mut()
            && let Poll::Ready(output) = future.poll(cx)
        {
            return Poll::Ready((0, output));
        }
        match &mut self.second {
            Some(future) => future.as_mut().poll(cx).map(|output| (1, output)),
            None => Poll::Pending,
        }
    }
}
