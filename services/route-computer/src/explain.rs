//! Responses to `tidegate explain`.

use bytes::Bytes;
use serde_json::json;
use tidegate_bus::{Bus, Message, subjects};
use tidegate_routing::Engine;

/// Responds to a request whose body is a service's name with JSON: an explanation, or `{"error": …}`.
pub async fn respond(bus: &Bus, engine: &Engine, request: &Message) {
    let explained = std::str::from_utf8(&request.body)
        .ok()
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| "the name of a service is required".to_owned())
        .and_then(|name| engine.explain(&name).ok_or_else(|| format!("the fleet has no service {name}")));
    let body = match explained {
        Ok(explanation) => serde_json::to_vec(&explanation).unwrap_or_default(),
        Err(error) => json!({ "error": error }).to_string().into_bytes(),
    };
    if let Err(error) = bus.reply(request, Bytes::from(body)).await {
        tracing::debug!(%error, subject = subjects::EXPLAIN, "a response was not sent");
    }
}
