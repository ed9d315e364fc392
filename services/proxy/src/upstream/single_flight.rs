//! One connection that is being made for all that wait for it: an HTTP/2 connection takes many requests, so a failover
//! must not cost a handshake for each request that is under way.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::Poll,
};

use super::error::ConnectError;
use crate::wire::WakeSet;

/// What is being made for an endpoint, if anything is.
#[derive(Default)]
pub struct SingleFlight {
    current: RefCell<Option<Rc<Connecting>>>,
    /// Whether the endpoint chose HTTP/1.1, on which a connection serves one request alone.
    speaks_http1: Cell<bool>,
}

#[derive(Default)]
struct Connecting {
    outcome: RefCell<Option<Result<(), ConnectError>>>,
    waiting: WakeSet,
}

/// Whose turn it is to connect.
pub enum Role {
    /// The asker's: others wait for it until the [`Leader`] is dropped.
    Leader(Leader),
    /// Another's.
    Waiter(Waiter),
}

/// Whoever makes the connection. Dropped without a word on how it went, it lets another connect.
pub struct Leader {
    making: Rc<Connecting>,
}

/// Somebody who waits for the connection.
pub struct Waiter {
    making: Rc<Connecting>,
    key: Cell<Option<usize>>,
}

impl SingleFlight {
    /// Whose turn it is. Nothing where connections are not shared.
    pub fn join(&self) -> Option<Role> {
        if self.speaks_http1.get() {
            return None;
        }
        let mut current = self.current.borrow_mut();
        match &*current {
            Some(making) if making.outcome.borrow().is_none() => {
                Some(Role::Waiter(Waiter { making: making.clone(), key: Cell::new(None) }))
            }
            Some(_) | None => {
                let making = Rc::<Connecting>::default();
                *current = Some(making.clone());
                Some(Role::Leader(Leader { making }))
            }
        }
    }

    /// Takes note of the version that the endpoint chose.
    pub fn set_http1(&self, http1: bool) {
        self.speaks_http1.set(http1);
    }
}

impl Leader {
    /// The connection could not be made: those who wait for it share that, too.
    pub fn failed(self, unconnected: ConnectError) {
        *self.making.outcome.borrow_mut() = Some(Err(unconnected));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.making.outcome.borrow_mut().get_or_insert(Ok(()));
        self.making.waiting.wake_all();
    }
}

impl Waiter {
    /// Waits until the connection is there, or somebody else must make it.
    ///
    /// # Errors
    /// When it could not be made.
    pub async fn wait(self) -> Result<(), ConnectError> {
        poll_fn(|cx| {
            if let Some(outcome) = &*self.making.outcome.borrow() {
                return Poll::Ready(outcome.clone());
            }
            if self.key.get().is_none() {
                self.key.set(Some(self.making.waiting.insert(cx.waker().clone())));
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.making.waiting.remove(key);
        }
    }
}
