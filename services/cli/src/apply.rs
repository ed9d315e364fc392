//! `tidegate apply`.

use std::{path::Path, time::Duration};

use tidegate_bus::{Bus, fleet::FleetStore};
use tidegate_model::fleet::Fleet;
use tidegate_service::shutdown;

use crate::{
    arguments::{BusOptions, WrongArgument},
    check,
    followed::Followed,
    link::{self, BusRetry},
    say::say_line,
    words::count,
};

/// Checks a fleet file and writes it to the bus. An invalid file changes nothing.
pub async fn apply(file: &Path, author: Option<String>, options: &BusOptions) -> anyhow::Result<()> {
    let (text, fleet) = check::read(file)?;
    let bus = link::connect(options).await?;
    let head = FleetStore::new(&bus).put(&text, &link::author(author)).await?;
    say_applied(file, head.revision, &fleet)
}

/// Applies the file and then each change of it, until interrupted. Waits for the bus. An invalid content is reported and
/// changes nothing, but the first one must be valid. A content that is already applied is not written again.
pub async fn watch(file: &Path, author: Option<String>, options: &BusOptions) -> anyhow::Result<()> {
    if check::is_standard_input(file) {
        return Err(WrongArgument("standard input cannot be watched: name a file".to_owned()).into());
    }
    let (mut text, mut fleet) = check::read(file)?;
    let stop = shutdown::on_signals()?;
    let bus = link::open(options).await?;
    let author = link::author(author);
    let mut followed = Followed::new(file, text.clone());
    let mut applied = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            put = put(&bus, &text, &author, options.timeout), if !applied => {
                applied = true;
                match put {
                    Some(revision) => say_applied(file, revision, &fleet)?,
                    None => say_line(format_args!("{} is already applied", file.display()))?,
                }
            }
            // A change while the bus is away replaces the content that could not be written.
            next = followed.fleet() => {
                (text, fleet) = next;
                applied = false;
            }
        }
    }
}

/// Writes `text` as the fleet, however long the bus is away, which is reported after `at_first`. Returns its revision, or
/// nothing when it is already applied.
async fn put(bus: &Bus, text: &str, author: &str, at_first: Duration) -> Option<u64> {
    // A connection that is still being made is not reported.
    bus.ready(at_first).await;
    let store = FleetStore::new(bus);
    let mut retry = BusRetry::default();
    loop {
        let put = async {
            if store.get().await?.is_some_and(|fleet| fleet.text == text) {
                return Ok(None);
            }
            store.put(text, author).await.map(|head| Some(head.revision))
        };
        match put.await {
            Ok(revision) => return revision,
            Err(error) => retry.wait(&error).await,
        }
    }
}

fn say_applied(file: &Path, revision: u64, fleet: &Fleet) -> anyhow::Result<()> {
    say_line(format_args!(
        "applied {} as revision {revision}: {}, {}",
        check::name_of(file),
        count(fleet.clusters.len(), "cluster"),
        count(fleet.services.len(), "service")
    ))
}
