//! Responses to hypotheses of operators: `tidegate what-if`, `apply --dry-run`, and what `drain` and `force` ask first.
//!
//! The loop only clones the engine; the rest happens on a blocking thread, one hypothesis at a time. Requests wait in their
//! bounded subscription meanwhile.

use bytes::Bytes;
use serde_json::json;
use tidegate_bus::{Bus, BusError, Message, Subscription, subjects};
use tidegate_model::RegionName;
use tidegate_routing::{Engine, Hypothesis};
use tokio::task::JoinSet;

/// Receives hypotheses and responds with their effects.
pub struct HypothesisResponder {
    bus: Bus,
    requests: Subscription,
    /// The response in progress, at most one.
    responses: JoinSet<()>,
}

impl HypothesisResponder {
    /// Subscribes to the hypotheses for `region`.
    ///
    /// # Errors
    /// When the bus is closed.
    pub async fn start(bus: &Bus, region: &RegionName) -> Result<HypothesisResponder, BusError> {
        let requests = bus.subscribe(&subjects::what_if(region)).await?;
        Ok(HypothesisResponder { bus: bus.clone(), requests, responses: JoinSet::new() })
    }

    /// The next request, once the response to the one before was sent; nothing when the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Message> {
        while self.responses.join_next().await.is_some() {}
        self.requests.next().await
    }

    /// Begins to respond, with JSON: an effect, or `{"error": …}`.
    pub fn respond(&mut self, engine: &Engine, request: Message) {
        let (bus, engine) = (self.bus.clone(), engine.clone());
        self.responses.spawn(async move {
            let body = request.body.clone();
            let computed = tokio::task::spawn_blocking(move || response(engine, &body)).await;
            let body = computed.unwrap_or_else(|error| error_json(&format!("it failed: {error}")));
            if let Err(error) = bus.reply(&request, Bytes::from(body)).await {
                tracing::debug!(%error, subject = subjects::WHAT_IF, "a response was not sent");
            }
        });
    }
}

fn response(engine: Engine, request: &[u8]) -> Vec<u8> {
    let hypothesis = serde_json::from_slice::<Hypothesis>(request).map_err(|error| {
        format!("the hypothesis cannot be read, so tidegate is of another version: {error}")
    });
    let effect =
        hypothesis.and_then(|hypothesis| engine.what_if(&hypothesis).map_err(|error| error.to_string()));
    match effect {
        Ok(effect) => serde_json::to_vec(&effect).unwrap_or_default(),
        Err(error) => error_json(&error),
    }
}

fn error_json(error: &str) -> Vec<u8> {
    json!({ "error": error }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tidegate_model::{Timestamp, fleet::Fleet};
    use tidegate_routing::{Effect, RouteEvent, Settings};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn hypotheses_are_responded_to_one_after_the_other_and_change_nothing() {
        // Given an engine with a fleet, and requests that wait.
        let bus = Bus::in_process();
        let region: RegionName = "us".parse().unwrap();
        let mut engine = Engine::new(Settings::new(region.clone()));
        engine.apply(RouteEvent::Fleet(Arc::new(Fleet::default())), Timestamp(1));
        let mut responder = HypothesisResponder::start(&bus, &region).await.unwrap();
        let asks =
            async |body: Vec<u8>| bus.request(&subjects::what_if(&region), body.into(), LIMIT).await.unwrap();
        let good = serde_json::to_vec(&Hypothesis::default()).unwrap();

        // When they are served.
        let serves = async {
            loop {
                let request = responder.next().await.unwrap();
                responder.respond(&engine, request);
                assert_eq!(responder.responses.len(), 1);
            }
        };
        let (first, second, wrong) = tokio::select! {
            responses = async { tokio::join!(asks(good.clone()), asks(good.clone()), asks(b"{}".to_vec())) } => responses,
            () = serves => unreachable!("it does not end"),
        };

        // Then each has its response, and one that cannot be read is told so.
        for response in [&first, &second] {
            assert_eq!(serde_json::from_slice::<Effect>(response).unwrap().region, region);
        }
        assert!(String::from_utf8_lossy(&wrong).contains("another version"), "{wrong:?}");
    }
}
