//! Answers the question why a service's requests go where they go.

use bytes::Bytes;
use serde_json::json;
use tidegate_bus::{Bus, Message, subjects};
use tidegate_routing::Engine;

/// Answers a request whose body is a service's name, with JSON: an explanation, or `{"error": …}`.
pub async fn answer(bus: &Bus, engine: &Engine, request: &Message) {
    let explained = std::str::from_utf8(&request.body)
        .ok()
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| "a service's name is needed".to_owned())
        .and_then(|name| engine.explain(&name).ok_or_else(|| format!("the fleet has no service {name}")));
    let body = match explained {
        Ok(explanation) => serde_json::to_vec(&explanation).unwrap_or_default(),
        Err(error) => json!({ "error": error }).to_string().into_bytes(),
    };
    if let Err(error) = bus.reply(request, Bytes::from(body)).await {
        tracing::debug!(%error, subject = subjects::EXPLAIN, "an answer was not sent");
    }
}
