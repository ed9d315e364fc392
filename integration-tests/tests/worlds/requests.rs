//! Requests as the edge's spans tell of them: the whole, and each of its tries.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tidegate_integration_tests::{
    Fault,
    load::{Outcome, Record},
    world::until,
};
use tidegate_model::Timestamp;

use crate::collector::{Collector, Received};

const LIMIT: Duration = Duration::from_secs(30);
/// A thread may be held up so long between what it does and the reading of its clock.
const HELD_UP: Duration = Duration::from_millis(20);

/// The spans of a request: the edge's own, and as many tries as that says there were.
pub async fn whole(collector: &Collector, id: &str) -> anyhow::Result<Vec<Received>> {
    until(&format!("the trace {id}"), LIMIT, async || {
        let spans: Vec<Received> =
            collector.spans().into_iter().filter(|received| received.trace_id() == id).collect();
        let said = spans.iter().find_map(|received| received.attribute("tidegate.attempts"));
        Ok((said == Some((spans.len().saturating_sub(1)).to_string())).then_some(spans))
    })
    .await
}

/// The edge's own span.
pub fn server(spans: &[Received]) -> &Received {
    let own = spans.iter().find(|received| received.attribute("tidegate.attempts").is_some());
    own.expect("the edge's own span")
}

/// The tries, in the order in which they were made. All are parts of the edge's own span.
pub fn tries(spans: &[Received]) -> Vec<&Received> {
    let own = &server(spans).span.span_id;
    let mut tries: Vec<&Received> = spans.iter().filter(|received| &received.span.span_id != own).collect();
    assert!(tries.iter().all(|received| &received.span.parent_span_id == own), "{tries:?}");
    tries.sort_by_key(|received| received.attribute("tidegate.attempt"));
    tries
}

/// Demands that a request that failed was lost with reason: its client was told so, and when it was sent to one of the
/// `lost` endpoints, which may have taken it before the `fault` or in spite of it, the edge did not serve by the verdict
/// yet.
pub async fn is_lost_with_reason(
    collector: &Collector,
    failed: &Record,
    fault: Fault,
    lost: &[SocketAddr],
    served_by_verdict_at: Timestamp,
) -> anyhow::Result<()> {
    let how = match fault {
        Fault::Kill | Fault::Endpoint => "connection reset",
        Fault::Freeze => "no response in time",
        Fault::Answer503 => "503",
        Fault::Drain => anyhow::bail!("a drain loses nothing: {failed:?}"),
    };
    anyhow::ensure!(
        matches!(failed.outcome, Outcome::Answered { status: 502..=504, .. }),
        "it was not said: {failed:?}"
    );
    let id = failed.id.as_deref().context("every answer has an id")?;
    let trace = until(&format!("the edge's span of {id}"), LIMIT, async || {
        let is_it = |r: &Received| r.attribute("tidegate.request_id").as_deref() == Some(id);
        Ok(collector.spans().iter().find(|received| is_it(received)).map(Received::trace_id))
    })
    .await?;
    let spans = whole(collector, &trace).await?;
    let tries = tries(&spans);
    let last = tries.last().context("it was tried")?;
    let endpoint = last.attribute("tidegate.endpoint").unwrap_or_default();
    anyhow::ensure!(
        lost.iter().any(|lost| lost.to_string() == endpoint),
        "{endpoint} was not lost: {tries:?}"
    );
    anyhow::ensure!(last.attribute("error.type").as_deref() == Some(how), "it was not under way: {tries:?}");
    anyhow::ensure!(last.began() <= served_by_verdict_at.plus(HELD_UP), "after the verdict: {tries:?}");
    Ok(())
}
