//! One probe of one endpoint.

mod connect;
mod grpc;
mod http1;
mod http2;
mod judge;
mod way;

use std::io;

use tidegate_model::{
    fleet::Address,
    health::{HealthCheck, Probe},
    observation::{Failure, ProbeOutcome},
};
use tokio::time::Instant;

use self::judge::Answer;
pub use self::{connect::Connection, way::Way};

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
) -> io::Result<(ProbeOutcome, Option<Connection>)> {
    let deadline = Instant::now() + check.timeout;
    match run(way, endpoint, check, reused, deadline).await {
        Ok(connection) => Ok((ProbeOutcome::Pass, connection)),
        Err(Refusal::Failed(failure, connection)) => Ok((ProbeOutcome::Fail(failure), connection)),
        Err(Refusal::Here(error)) => Err(error),
    }
}

/// Why a probe did not pass.
enum Refusal {
    /// The endpoint failed it. The connection is there when the failure was not its own.
    Failed(Failure, Option<Connection>),
    /// It could not be made from here.
    Here(io::Error),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Refusal::Failed(failure, None)
    }
}

/// How an exchange on a connection ended without an answer.
enum Broken {
    /// The connection ended before any byte of an answer. On a reused one that may only mean that the endpoint had
    /// closed it for being idle, which is no failure.
    Unanswered,
    /// It failed.
    Failed(Failure),
}

async fn run(
    way: &Way,
    endpoint: &Address,
    check: &HealthCheck,
    reused: Option<Connection>,
    deadline: Instant,
) -> Result<Option<Connection>, Refusal> {
    let http2_only = match &check.probe {
        Probe::Tcp => {
            // The connection itself is what is asked for; a later probe asks for a new one.
            connect::connect(way, endpoint, false, deadline).await?;
            return Ok(None);
        }
        Probe::Http { .. } => false,
        Probe::Grpc { .. } => true,
    };
    let answered = match reused {
        Some(connection) => match exchange(way, connection, endpoint, check, deadline).await {
            Err(Broken::Unanswered) => None,
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
    match answered {
        Ok((answer, connection)) => match answer.judge(&check.probe) {
            Ok(()) => Ok(connection),
            Err(failure) => Err(Refusal::Failed(failure, connection)),
        },
        Err(Broken::Unanswered) => Err(Failure::Reset.into()),
        Err(Broken::Failed(failure)) => Err(failure.into()),
    }
}

async fn exchange(
    way: &Way,
    connection: Connection,
    endpoint: &Address,
    check: &HealthCheck,
    deadline: Instant,
) -> Result<(Answer, Option<Connection>), Broken> {
    let scheme = if way.upstream().tls.is_some() { "https" } else { "http" };
    let exchanging = async {
        match (connection, &check.probe) {
            (Connection::Http1(stream), Probe::Http { path, host, expected_body, .. }) => {
                let host = host.clone().unwrap_or_else(|| endpoint.to_string());
                http1::ask(stream, path, &host, expected_body.is_some()).await
            }
            (Connection::Http2(http2), Probe::Http { path, host, expected_body, .. }) => {
                let host = host.clone().unwrap_or_else(|| endpoint.to_string());
                http2::get(http2, scheme, path, &host, expected_body.is_some()).await
            }
            (Connection::Http2(http2), Probe::Grpc { service }) => {
                grpc::check(http2, scheme, service, &endpoint.to_string()).await
            }
            // The peer chose HTTP/1.1 where only HTTP/2 was offered, or the check has no exchange.
            (Connection::Http1(_), Probe::Grpc { .. })
            | (Connection::Http1(_) | Connection::Http2(_), Probe::Tcp) => {
                Err(Broken::Failed(Failure::BadAnswer))
            }
        }
    };
    tokio::time::timeout_at(deadline, exchanging).await.unwrap_or(Err(Broken::Failed(Failure::NoAnswer)))
}
