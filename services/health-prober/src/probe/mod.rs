//! A single probe of one endpoint.

mod connect;
mod error;
mod grpc;
mod http1;
mod http2;
mod response;
mod stream;
mod transport;

use std::io;

use tidegate_model::{
    fleet::Address,
    health::{HealthCheck, Probe},
    observation::{Failure, ProbeOutcome},
};
use tokio::time::Instant;

pub use self::{connect::Connection, transport::ProbeTransport};
use self::{
    error::{ConnectError, ExchangeError},
    response::ProbeResponse,
};

/// Probes `endpoint` by `check` over `reused`, or over a new connection if that is absent or stale. Ends within the check's
/// timeout. Returns the outcome, and the connection if it can be reused.
///
/// # Errors
/// This machine lacks resources for a connection (files, ports, memory), which is no failure of the endpoint.
pub async fn probe(
    transport: &ProbeTransport,
    endpoint: &Address,
    check: &HealthCheck,
    reused: Option<Connection>,
) -> io::Result<(ProbeOutcome, Option<Connection>)> {
    let deadline = Instant::now() + check.timeout;
    match run(transport, endpoint, check, reused, deadline).await {
        Ok(outcome) => Ok(outcome),
        Err(ConnectError::Failed(failure)) => Ok((ProbeOutcome::Fail(failure), None)),
        Err(ConnectError::LocalResources(error)) => Err(error),
    }
}

async fn run(
    transport: &ProbeTransport,
    endpoint: &Address,
    check: &HealthCheck,
    reused: Option<Connection>,
    deadline: Instant,
) -> Result<(ProbeOutcome, Option<Connection>), ConnectError> {
    let http2_only = match &check.probe {
        Probe::Tcp => {
            // The connection is the probe; the next one needs a new connection.
            connect::connect(transport, endpoint, false, deadline).await?;
            return Ok((ProbeOutcome::Pass, None));
        }
        Probe::Http { .. } => false,
        Probe::Grpc { .. } => true,
    };
    let reused = match reused {
        Some(connection) => match exchange(transport, connection, endpoint, check, deadline).await {
            Err(ExchangeError::NoResponse) => None,
            other => Some(other),
        },
        None => None,
    };
    let exchanged = match reused {
        Some(exchanged) => exchanged,
        None => {
            let connection = connect::connect(transport, endpoint, http2_only, deadline).await?;
            exchange(transport, connection, endpoint, check, deadline).await
        }
    };
    Ok(match exchanged {
        Ok((response, connection)) => match response.evaluate(&check.probe) {
            Ok(()) => (ProbeOutcome::Pass, connection),
            Err(failure) => (ProbeOutcome::Fail(failure), connection),
        },
        Err(ExchangeError::NoResponse) => (ProbeOutcome::Fail(Failure::Reset), None),
        Err(ExchangeError::Failed(failure)) => (ProbeOutcome::Fail(failure), None),
    })
}

async fn exchange(
    transport: &ProbeTransport,
    connection: Connection,
    endpoint: &Address,
    check: &HealthCheck,
    deadline: Instant,
) -> Result<(ProbeResponse, Option<Connection>), ExchangeError> {
    let scheme = if transport.upstream().tls.is_some() { "https" } else { "http" };
    let exchanging = async {
        match (connection, &check.probe) {
            (Connection::Http1(stream), Probe::Http { path, host, expected_body, .. }) => {
                let host = host.clone().unwrap_or_else(|| endpoint.to_string());
                let (response, stream) = http1::get(stream, path, &host, expected_body.is_some()).await?;
                Ok((response, stream.map(Connection::Http1)))
            }
            (Connection::Http2(http2), Probe::Http { path, host, expected_body, .. }) => {
                let host = host.clone().unwrap_or_else(|| endpoint.to_string());
                let (response, http2) =
                    http2::get(http2, scheme, path, &host, expected_body.is_some()).await?;
                Ok((response, http2.map(Connection::Http2)))
            }
            (Connection::Http2(http2), Probe::Grpc { service }) => {
                let (response, http2) = grpc::check(http2, scheme, service, &endpoint.to_string()).await?;
                Ok((response, http2.map(Connection::Http2)))
            }
            // The peer chose HTTP/1.1 where only HTTP/2 was offered, or the check has no exchange.
            (Connection::Http1(_), Probe::Grpc { .. })
            | (Connection::Http1(_) | Connection::Http2(_), Probe::Tcp) => {
                Err(ExchangeError::Failed(Failure::BadResponse))
            }
        }
    };
    tokio::time::timeout_at(deadline, exchanging)
        .await
        .unwrap_or(Err(ExchangeError::Failed(Failure::NoResponse)))
}
