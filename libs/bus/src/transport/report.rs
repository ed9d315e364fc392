//! Reports: small typed messages that may be lost and are repeated.

use std::marker::PhantomData;

use tidegate_model::Timestamp;

use crate::{
    Bus, BusError, Subscription, TraceContext,
    codec::{self, Wire},
};

/// A received report.
#[derive(Debug, Clone)]
pub struct Report<T> {
    /// The subject that it was published on.
    pub subject: String,
    /// The content.
    pub body: T,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
    /// When it was received.
    pub received_at: Timestamp,
}

/// A subscription to the reports of a pattern: see [`Subscription`].
#[derive(Debug)]
pub struct Reports<T> {
    subscription: Subscription,
    unreadable: u64,
    body: PhantomData<fn() -> T>,
}

impl Bus {
    /// Publishes a report.
    ///
    /// # Errors
    /// As for [`Bus::publish`].
    pub async fn publish_report<T: Wire>(
        &self,
        subject: &str,
        trace: Option<&TraceContext>,
        report: &T,
    ) -> Result<(), BusError> {
        self.publish(subject, trace, codec::encode(report)).await
    }

    /// Subscribes to reports.
    ///
    /// # Errors
    /// As for [`Bus::subscribe`].
    pub async fn subscribe_reports<T: Wire>(&self, pattern: &str) -> Result<Reports<T>, BusError> {
        let subscription = self.subscribe(pattern).await?;
        Ok(Reports { subscription, unreadable: 0, body: PhantomData })
    }
}

impl<T: Wire> Reports<T> {
    /// The next report; nothing when the bus is closed. Messages that are no `T` are counted and skipped. Cancel-safe.
    pub async fn next(&mut self) -> Option<Report<T>> {
        loop {
            let message = self.subscription.next().await?;
            match codec::decode(&message.body) {
                Ok(body) => {
                    return Some(Report {
                        subject: message.subject,
                        body,
                        trace: message.trace,
                        received_at: message.received_at,
                    });
                }
                Err(error) => {
                    self.unreadable += 1;
                    tracing::debug!(subject = %message.subject, %error, "a report cannot be read");
                }
            }
        }
    }

    /// The number of messages that could not be decoded.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }
}
