//! Three servers of one region, which replicate their data.

use super::{NatsServer, lasting_port};

/// Starts a cluster of three servers. They elect a leader a moment later.
///
/// # Panics
/// When there is no nats-server, or one is not ready in time.
pub fn three_servers() -> [NatsServer; 3] {
    let ports = [0; 3].map(|_| lasting_port());
    let routes = ports.map(|port| format!("\"nats://127.0.0.1:{port}\"")).join(", ");
    [0, 1, 2].map(|number: usize| {
        let config = format!(
            r#"
            server_name: server-{number}
            cluster {{ name: region, listen: "127.0.0.1:{port}", routes: [{routes}] }}
            "#,
            port = ports[number],
        );
        NatsServer::start_with(&config, true)
    })
}
