//! Up to two futures at once, of which the second is rare: it is boxed, so that not every request has its room.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// The futures, by the slots 0 and 1.
pub struct Slots<'a, F> {
    usual: Pin<&'a mut Option<F>>,
    rare: Option<Pin<Box<F>>>,
}

impl<'a, F: Future> Slots<'a, F> {
    /// Nothing but what is in slot 0.
    pub fn new(usual: Pin<&'a mut Option<F>>) -> Slots<'a, F> {
        Slots { usual, rare: None }
    }

    /// Puts a future into a slot, in place of the one that was there, which is dropped.
    pub fn set(&mut self, slot: usize, future: F) {
        match slot {
            0 => self.usual.set(Some(future)),
            _ => self.rare = Some(Box::pin(future)),
        }
    }

    /// Drops what is in a slot.
    pub fn clear(&mut self, slot: usize) {
        match slot {
            0 => self.usual.set(None),
            _ => self.rare = None,
        }
    }

    /// Polls all; ready with the slot of the first that is. It is to be taken out then.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(usize, F::Output)> {
        if let Some(future) = self.usual.as_mut().as_pin_mut()
            && let Poll::Ready(output) = future.poll(cx)
        {
            return Poll::Ready((0, output));
        }
        match &mut self.rare {
            Some(future) => future.as_mut().poll(cx).map(|output| (1, output)),
            None => Poll::Pending,
        }
    }
}
