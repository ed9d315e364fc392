//! Listens on the bus and keeps a ledger; waits until the ledger shows something.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tidegate_bus::{
    Bus, NatsSettings, codec,
    report::Reports,
    subjects,
    table::{Replicas, TableUpdate, Update},
};
use tidegate_model::{
    report::{Applied, Suspicion},
    routes::{RouteCause, RouteEntry, RouteKey},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::ledger::{Change, Ledger};

/// A table counts as gone only after a time that no test waits for.
const SILENCE: Duration = Duration::from_secs(3600);

/// Listens until dropped.
#[derive(Debug)]
pub struct Watch {
    ledger: Arc<Mutex<Ledger>>,
    changed: watch::Receiver<()>,
    listening: JoinHandle<()>,
}

type Routes = mpsc::Receiver<TableUpdate<RouteKey, RouteEntry>>;

impl Watch {
    /// Begins to listen, on a connection of its own.
    ///
    /// # Errors
    /// When the bus cannot be used.
    pub async fn start(settings: NatsSettings) -> anyhow::Result<Watch> {
        let bus = Bus::connect(settings).await?;
        let applied = bus.subscribe_reports(subjects::ALL_APPLIED).await?;
        let suspicions = bus.subscribe_reports(subjects::ALL_SUSPICIONS).await?;
        let (replicas, routes) = Replicas::start(bus.clone(), subjects::ALL_ROUTES, SILENCE).await?;
        anyhow::ensure!(bus.ready(Duration::from_secs(20)).await, "the nats-server is not there");
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (sender, changed) = watch::channel(());
        let listening = tokio::spawn(listen(replicas, routes, applied, suspicions, ledger.clone(), sender));
        Ok(Watch { ledger, changed, listening })
    }

    /// What was heard so far.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something in the ledger.
    ///
    /// # Errors
    /// When it has found nothing after `limit`; says `what` was waited for and how things stand.
    pub async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&Ledger) -> Option<T>,
    ) -> anyhow::Result<T> {
        let mut changed = self.changed.clone();
        let found = async {
            loop {
                changed.mark_unchanged();
                let found = look(&self.ledger());
                if let Some(found) = found {
                    return Ok(found);
                }
                changed.changed().await.context("the bus has closed")?;
            }
        };
        match tokio::time::timeout(limit, found).await {
            Ok(found) => found,
            Err(_) => anyhow::bail!("not after {limit:?}: {what}\n{}", self.ledger().summary()),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(
    replicas: Replicas,
    mut routes: Routes,
    mut applied: Reports<Applied>,
    mut suspicions: Reports<Suspicion>,
    ledger: Arc<Mutex<Ledger>>,
    changed: watch::Sender<()>,
) {
    let locked = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        tokio::select! {
            update = routes.recv() => match update {
                Some(TableUpdate::Update(subject, update)) => take(&mut locked(), &subject, update),
                Some(TableUpdate::Gone(_)) => continue,
                None => break,
            },
            Some(report) = applied.next() => note_applied(&mut locked(), report.body),
            Some(report) = suspicions.next() => locked().suspicions.push(report.body),
            else => break,
        }
        changed.send_replace(());
    }
    drop(replicas);
}

fn note_applied(ledger: &mut Ledger, applied: Applied) {
    ledger.reported_at.insert(applied.edge.to_string(), applied.reported_at);
    let same = ledger.edge(applied.edge.as_str()).is_some_and(|last| {
        let mut last = last.clone();
        last.reported_at = applied.reported_at;
        last == applied
    });
    if !same {
        ledger.applied.push(applied);
    }
}

fn take(ledger: &mut Ledger, subject: &str, update: Update<RouteKey, RouteEntry>) {
    let Some(region) = subjects::parse_routes(subject) else { return };
    let table = ledger.tables.entry(region.to_string()).or_default();
    match update {
        Update::Snapshot { epoch, revision, entries, received_at } => {
            let entries = entries.into_iter().collect();
            // Whoever takes a region over tells what it has concluded meanwhile by its table, not by a change of the last one.
            if table.epoch < epoch && !table.entries.is_empty() {
                ledger.changes.push(Change {
                    region: region.to_string(),
                    epoch,
                    revision,
                    entries: table.changes_to(&entries),
                    cause: RouteCause { causes: Vec::new(), input_at: received_at, decided_at: received_at },
                });
            }
            table.heard_at = received_at;
            (table.epoch, table.revision) = (epoch, revision);
            table.entries = entries;
        }
        Update::Delta { epoch, revision, changes, meta, received_at, .. } => {
            table.heard_at = received_at;
            (table.epoch, table.revision) = (epoch, revision);
            for (key, entry) in changes.iter().cloned() {
                match entry {
                    Some(entry) => table.entries.insert(key, entry),
                    None => table.entries.remove(&key),
                };
            }
            if let Ok(cause) = codec::decode(&meta) {
                let region = region.to_string();
                ledger.changes.push(Change { region, epoch, revision, entries: changes, cause });
            }
        }
        Update::Heartbeat { epoch, revision, received_at, .. } => {
            table.heard_at = received_at;
            (table.epoch, table.revision) = (epoch, revision);
        }
        Update::Refused { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::{
        Epoch, Revision, Timestamp, health::CheckId, routes::HealthEntry, verdict::Verdict,
    };

    use super::*;
    use crate::plan::HOME;

    #[test]
    fn what_a_new_owner_has_concluded_is_a_change_and_what_a_reader_missed_is_not() {
        let mut ledger = Ledger::default();
        let mut hears = |epoch, revision, verdict| {
            let health = HealthEntry { verdict, reason: String::new(), endpoints: Vec::new() };
            let key = RouteKey::Health(HOME.cluster.parse().unwrap(), CheckId(1));
            let update = Update::Snapshot {
                epoch: Epoch(epoch),
                revision: Revision(revision),
                entries: vec![(key, RouteEntry::Health(health))],
                received_at: Timestamp(epoch),
            };
            take(&mut ledger, &subjects::routes(&HOME.name.parse().unwrap()), update);
            ledger.changes.len()
        };

        let told = [hears(1, 1, Verdict::Up), hears(1, 2, Verdict::Down), hears(1, 3, Verdict::Up)];
        assert_eq!(told, [0, 0, 0]);
        assert_eq!(hears(2, 1, Verdict::Down), 1);

        let change =
            ledger.change_since(HOME.name, Timestamp(2), |change| change.health(HOME.cluster).is_some());
        let change = change.expect("the new owner's first table");
        assert_eq!((change.epoch, change.health(HOME.cluster).unwrap().verdict), (Epoch(2), Verdict::Down));
    }
}
