//! One probe of one endpoint.

mod connect;
mod error;
mod grpc;
mod http1;
mod http2;
mod judge;
mod stream;
mod way;

use std::io;

use tidegate_model::{
    fleet::Address,
    health::{HealthCheck, Probe},
    observation::{Failure, Outcome},
};
use tokio::time::Instant;

pub use self::{connect::Connection, way::Way};
use self::{
    error::{ConnectError, ExchangeError},
    judge::Answer,
};

/// Probes `endpoint` by `check`, over `reused` if that is given and still works, else over a connection of its own.
/// Ends within the check's timeout. Returns the outcome, and a connection that can be reused, if there is one.
///
/// # Errors
/// This machine lacks what a connection needs (files, ports, memory), which says nothing of the endpoint.
pub async fn probe(
    way: &Way,
    endpoint: &Address,
    check: &HealthCheck,
    reused: Option<Connection>,
) -> io::Result<(Outcome, Option<Connection>)> {
    let deadline = Instant::now() + check.timeout;
    match run(way, endpoint, check, reused, deadline).await {
        Ok(outcome) => Ok(outcome),
        Err(ConnectError::Failed(failure)) => Ok((Outcome::Fail(failure), None)),
        Err(ConnectError::LocalResources(error)) => Err(error),
    }
}

async fn run(
    way: &Way,
    endpoint: &Address,
    check: &HealthCheck,
    reused: Option<Connection>,
    deadline: Instant,
) -> Result<(Outcome, Option<Connection>), ConnectError> {
    let http2_only = match &check.probe {
        Probe::Tcp => {
            // The connection itself is what is asked for; a later probe asks for a new one.
            connect::connect(way, endpoint, false, deadline).await?;
            return Ok((Outcome::Pass, None));
        }
        Probe::Http { .. } => false,
        Probe::Grpc { .. } => true,
    };
    let answered = match reused {
        Some(connection) => match exchange(way, connection, endpoint, check, deadline).await {
            Err(ExchangeError::NoResponse) => None,
            other => Some(other),
        },
        None => None,
    };
    let answered = match answered {
        Some(answered) => answered,
        None => {
            let connection = connect::connect(way, endpoint, http2_only, deadline).await?;
            exchange(way, connection, endpoint, check, deadline).await
        }
    };
    Ok(match answered {
        Ok((answer, connection)) => match answer.judge(&check.probe) {
            Ok(()) => (Outcome::Pass, connection),
            Err(failure) => (Outcome::Fail(failure), connection),
        },
        Err(ExchangeError::NoResponse) => (Outcome::Fail(Failure::Reset), None),
        Err(ExchangeError::Failed(failure)) => (Outcome::Fail(failure), None),
    })
}

async fn exchange(
    way: &Way,
    connection: Connection,
    endpoint: &Address,
    check: &HealthCheck,
    deadline: Instant,
) -> Result<(Answer, Option<Connection>), ExchangeError> {
    let scheme = if way.upstream().tls.is_some() { "https" } else { "http" };
    let exchanging = async {
        match (connection, &check.probe) {
            (Connection::Http1(stream), Probe::Http { path, host, expected_body, .. }) => {
                let host = host.clone().unwrap_or_else(|| endpoint.to_string());
                let (answer, stream) = http1::ask(stream, path, &host, expected_body.is_some()).await?;
                Ok((answer, stream.map(Connection::Http1)))
            }
            (Connection::Http2(http2), Probe::Http { path, host, expected_body, .. }) => {
                let host = host.clone().unwrap_or_else(|| endpoint.to_string());
                let (answer, http2) = http2::get(http2, scheme, path, &host, expected_body.is_some()).await?;
                Ok((answer, http2.map(Connection::Http2)))
            }
            (Connection::Http2(http2), Probe::Grpc { service }) => {
                let (answer, http2) = grpc::check(http2, scheme, service, &endpoint.to_string()).await?;
                Ok((answer, http2.map(Connection::Http2)))
            }
            // The peer chose HTTP/1.1 where only HTTP/2 was offered, or the check has no exchange.
            (Connection::Http1(_), Probe::Grpc { .. })
            | (Connection::Http1(_) | Connection::Http2(_), Probe::Tcp) => {
                Err(ExchangeError::Failed(Failure::BadAnswer))
            }
        }
    };
    tokio::time::timeout_at(deadline, exchanging)
        .await
        .unwrap_or(Err(ExchangeError::Failed(Failure::NoAnswer)))
}
