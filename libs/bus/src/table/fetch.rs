//! Fetching a snapshot: from the owner, else from the bucket where it left one.

use std::time::Duration;

use bytes::Bytes;
use tidegate_model::Epoch;

use super::{
    content::{Provenance, Snapshot, SnapshotRequest},
    owner::SnapshotStore,
};
use crate::{
    Bus, BusError, clock,
    codec::{self, open},
    seal::{Purpose, Trust},
    subjects,
};

/// How long the owner may take. A table of 64 MiB takes less on a slow link.
const OWNER_LIMIT: Duration = Duration::from_secs(1);

/// A snapshot of the table `subject`, of the epoch `at_least` when its owner answers, else the last one stored.
pub(crate) async fn fetch(
    bus: &Bus,
    subject: &str,
    at_least: Epoch,
    store: Option<&SnapshotStore>,
    trust: &Trust,
) -> Result<Snapshot, BusError> {
    let request = codec::encode(&SnapshotRequest { at_least });
    let unanswered = match bus.request(&subjects::snapshot(subject), request, OWNER_LIMIT).await {
        // Whoever may answer requests could say anything; what its owner stored may still be there.
        Ok(body) => match read(subject, &body, trust) {
            Err(error @ BusError::Untrusted { .. }) => error,
            read => return read,
        },
        Err(error) => error,
    };
    let Some(store) = store else { return Err(unanswered) };
    match store.bucket.get_blob(&store.key).await? {
        Some((_, body)) => read(subject, &body, trust),
        None => Err(unanswered),
    }
}

fn read(subject: &str, body: &Bytes, trust: &Trust) -> Result<Snapshot, BusError> {
    let body = trust
        .open(Purpose::Snapshot, subject, body)
        .map_err(|why| BusError::Untrusted { subject: subject.to_owned(), why })?;
    let (schema, _) = open(&body)?;
    let mut snapshot: Snapshot = codec::decode(&body)?;
    snapshot.provenance = Provenance { schema, trace: None, received_at: clock::now() };
    Ok(snapshot)
}
