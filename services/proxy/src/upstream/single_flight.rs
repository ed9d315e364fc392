//! A shared connection attempt (single flight): an HTTP/2 connection takes many requests, so a failover must not cost a
//! handshake per request.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::Poll,
};

use super::error::ConnectError;
use crate::wire::WakeSet;

/// The shared connection attempt of an endpoint.
#[derive(Default)]
pub struct SingleFlight {
    current: RefCell<Option<Rc<Connecting>>>,
    /// Whether the endpoint negotiated HTTP/1.1, where connections are not shared.
    speaks_http1: Cell<bool>,
}

#[derive(Default)]
struct Connecting {
    outcome: RefCell<Option<Result<(), ConnectError>>>,
    waiting: WakeSet,
}

/// The role of a request in a shared connection attempt.
pub enum Role {
    /// It connects; others wait until the [`Leader`] is dropped.
    Leader(Leader),
    /// It waits for another request's attempt.
    Waiter(Waiter),
}

/// The request that connects. If dropped without an outcome, waiters check the pool and one of them connects.
pub struct Leader {
    connecting: Rc<Connecting>,
}

/// A request that waits for the connection.
pub struct Waiter {
    connecting: Rc<Connecting>,
    key: Cell<Option<usize>>,
}

impl SingleFlight {
    /// Joins the connection attempt, or begins one. Nothing if connections are not shared.
    pub fn join(&self) -> Option<Role> {
        if self.speaks_http1.get() {
            return None;
        }
        let mut current = self.current.borrow_mut();
        match &*current {
            Some(connecting) if connecting.outcome.borrow().is_none() => {
                Some(Role::Waiter(Waiter { connecting: connecting.clone(), key: Cell::new(None) }))
            }
            Some(_) | None => {
                let connecting = Rc::<Connecting>::default();
                *current = Some(connecting.clone());
                Some(Role::Leader(Leader { connecting }))
            }
        }
    }

    /// Records whether the endpoint negotiated HTTP/1.1.
    pub fn set_http1(&self, http1: bool) {
        self.speaks_http1.set(http1);
    }
}

impl Leader {
    /// Ends the attempt with an error, which the waiters share.
    pub fn fail(self, error: ConnectError) {
        *self.connecting.outcome.borrow_mut() = Some(Err(error));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.connecting.outcome.borrow_mut().get_or_insert(Ok(()));
        self.connecting.waiting.wake_all();
    }
}

impl Waiter {
    /// Waits until the attempt ends; then the pool has a connection, or another attempt is needed.
    ///
    /// # Errors
    /// If connecting failed.
    pub async fn wait(self) -> Result<(), ConnectError> {
        poll_fn(|cx| {
            if let Some(outcome) = &*self.connecting.outcome.borrow() {
                return Poll::Ready(outcome.clone());
            }
            if self.key.get().is_none() {
                self.key.set(Some(self.connecting.waiting.insert(cx.waker().clone())));
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.connecting.waiting.remove(key);
        }
    }
}
