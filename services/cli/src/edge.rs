//! `tidegate edge reset`, and the signing keys that edges trust.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use tidegate_bus::{BusError, seal::Signer, subjects};
use tidegate_model::EdgeName;

use crate::{
    arguments::BusOptions,
    fleet::{self, known},
    link,
    say::say_line,
};

/// How long an edge may take to respond.
const RESPONSE_LIMIT: Duration = Duration::from_secs(3);

/// Clears the epoch fence of an edge.
pub async fn reset(name: &EdgeName, bus: &BusOptions) -> anyhow::Result<()> {
    let bus = link::connect(bus).await?;
    let fleet = fleet::read(&bus).await?;
    known("edge", name.as_str(), fleet.edges.keys())?;
    let region = &fleet.edges[name].region;
    match bus.request(&subjects::reset(region, name), bytes::Bytes::new(), RESPONSE_LIMIT).await {
        Ok(_) => {
            say_line(format_args!("{name} fetches the table of {region} again and keeps serving meanwhile"))
        }
        Err(BusError::NoResponder(_) | BusError::TimedOut { .. }) => {
            anyhow::bail!("{name} does not respond: it is not running, or cannot reach the bus")
        }
        Err(error) => Err(error).context(format!("{name} cannot be asked")),
    }
}

/// Creates a private key and prints its public key.
pub fn signing_key(out: &Path) -> anyhow::Result<()> {
    let key = Signer::create(out)?.public_key();
    say_line(format_args!("{key}"))
}
