//! Fetches snapshots: from the owner, else from the bucket in which it stores them.

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

/// How long the owner may take to respond. A table of 64 MiB takes less on a slow link.
const OWNER_LIMIT: Duration = Duration::from_secs(1);

/// Fetches a snapshot of the table `subject`: from its owner, of at least the epoch `at_least`, else the last one stored.
pub(crate) async fn fetch(
    bus: &Bus,
    subject: &str,
    at_least: Epoch,
    store: Option<&SnapshotStore>,
    trust: &Trust,
) -> Result<Snapshot, BusError> {
    let request = codec::encode(&SnapshotRequest { at_least });
    let failed = match bus.request(&subjects::snapshot(subject), request, OWNER_LIMIT).await {
        // Anybody who may respond to requests could forge the response; the stored snapshot may still be there.
        Ok(body) => match read(subject, &body, trust) {
            Err(error @ BusError::Untrusted { .. }) => error,
            read => return read,
        },
        Err(error) => error,
    };
    let Some(store) = store else { return Err(failed) };
    match store.bucket.get_blob(&store.key).await? {
        Some((_, body)) => read(subject, &body, trust),
        None => Err(failed),
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
