//! `tidegate drain` and `tidegate force`, and their withdrawal.

use std::time::Duration;

use tidegate_bus::{Bus, clock, overrides::OverrideStore};
use tidegate_model::{
    ClusterName, ServiceName,
    fleet::Fleet,
    overrides::{Override, OverrideKind},
};

use tidegate_routing::Hypothesis;

use crate::say::say_line;
use crate::{
    arguments::{BusOptions, DrainOptions, DrainTarget, WithdrawOptions, WithheldChange, WrongArgument},
    author::author,
    contradiction::Contradictions,
    effect::{Effects, regions_with_edges},
    fleet::{self, known},
    link,
};

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

impl DrainTarget {
    fn kind(self, command: &str) -> Result<OverrideKind, WrongArgument> {
        Ok(match self {
            DrainTarget::Cluster { name } => OverrideKind::DrainCluster(name),
            DrainTarget::Edge { name } => OverrideKind::DrainEdge(name),
            DrainTarget::Region { name } => OverrideKind::EvacuateRegion(name),
            DrainTarget::Unknown(words) => {
                let name = words.first().map(String::as_str).unwrap_or_default();
                return Err(WrongArgument(format!(
                    "name the kind of {name}: `tidegate {command} cluster {name}`, `tidegate {command} edge {name}` or \
                     `tidegate {command} region {name}`"
                )));
            }
        })
    }
}

/// Refuses names that are not in the fleet.
fn check(kind: &OverrideKind, fleet: &Fleet) -> anyhow::Result<()> {
    match kind {
        OverrideKind::DrainCluster(name) => known("cluster", name.as_str(), fleet.clusters.keys()),
        OverrideKind::DrainEdge(name) => known("edge", name.as_str(), fleet.edges.keys()),
        OverrideKind::EvacuateRegion(name) => known("region", name.as_str(), fleet.regions.keys()),
        OverrideKind::ForceRoute { service, cluster } => {
            known("service", service.as_str(), fleet.services.keys())?;
            known("cluster", cluster.as_str(), fleet.clusters.keys())
        }
    }
}

/// Drains a cluster, an edge or a region.
pub async fn drain(target: DrainTarget, options: DrainOptions, bus: &BusOptions) -> anyhow::Result<()> {
    put(target.kind("drain")?, options, bus, "tidegate undrain").await
}

/// Forces a service's route.
pub async fn force(
    service: ServiceName,
    cluster: ClusterName,
    options: DrainOptions,
    bus: &BusOptions,
) -> anyhow::Result<()> {
    put(OverrideKind::ForceRoute { service, cluster }, options, bus, "tidegate unforce").await
}

/// Withdraws a drain.
pub async fn undrain(target: DrainTarget, options: WithdrawOptions, bus: &BusOptions) -> anyhow::Result<()> {
    let kind = target.kind("undrain")?;
    if !withdraw(&kind, options, bus).await? {
        anyhow::bail!("there is no {kind}");
    }
    say_line(format_args!("{kind} was withdrawn"))
}

/// Withdraws a forced route.
pub async fn unforce(service: ServiceName, options: WithdrawOptions, bus: &BusOptions) -> anyhow::Result<()> {
    // A service has one forced route at most, whatever the cluster.
    let kind = OverrideKind::ForceRoute { service: service.clone(), cluster: "any".parse()? };
    if !withdraw(&kind, options, bus).await? {
        anyhow::bail!("{service} is not forced anywhere");
    }
    say_line(format_args!("the forced route of {service} was withdrawn"))
}

async fn put(kind: OverrideKind, options: DrainOptions, bus: &BusOptions, undo: &str) -> anyhow::Result<()> {
    let link = link::connect(bus).await?;
    let fleet = fleet::read(&link).await?;
    check(&kind, &fleet)?;
    let now = clock::now();
    let entry = Override {
        kind,
        author: one_line(&author(options.author, bus)),
        reason: one_line(&options.reason),
        created_at: now,
        expires_at: options.length.map(|length| now.plus(length)),
    };
    let found = contradictions(&entry, &fleet, &link, bus.timeout).await?;
    if !found.objections.is_empty() && !options.yes {
        return Err(WithheldChange(format!(
            "nothing was changed, since it needs confirmation:\n    {}\n--yes does it all the same",
            found.objections.join("\n    ")
        ))
        .into());
    }
    OverrideStore::new(&link).put(&entry).await?;
    let until = match options.length {
        None => format!("until it is withdrawn ({undo})"),
        Some(length) => format!("for {}", length_text(length)),
    };
    say_line(format_args!("{}, {until}", entry.kind))?;
    for note in found.objections.iter().chain(&found.notes) {
        eprintln!("tidegate: {note}");
    }
    Ok(())
}

/// What speaks against an override, by the others and by its effect.
async fn contradictions(
    entry: &Override,
    fleet: &Fleet,
    bus: &Bus,
    limit: Duration,
) -> anyhow::Result<Contradictions> {
    let others = OverrideStore::new(bus).list().await?;
    let mut found = Contradictions::with_overrides(&entry.kind, others.values(), fleet, clock::now());
    // A drained edge changes where balancers send requests, and not where edges do.
    if !matches!(entry.kind, OverrideKind::DrainEdge(_)) {
        let hypothesis = Hypothesis { overrides: vec![entry.clone()], ..Hypothesis::default() };
        let effects = Effects::compute(bus, regions_with_edges(fleet, &[]), &hypothesis, limit).await?;
        found.add_effect(&entry.kind, &effects, fleet);
    }
    Ok(found)
}

async fn withdraw(kind: &OverrideKind, options: WithdrawOptions, bus: &BusOptions) -> anyhow::Result<bool> {
    let link = link::connect(bus).await?;
    let author = one_line(&author(options.author, bus));
    Ok(OverrideStore::new(&link).withdraw(kind, &author, &one_line(&options.reason)).await?)
}

/// Makes a text safe for every operator's terminal: one line of bounded length without control characters.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect()
}

/// A duration as people write it: `30m`, `1h`, `90s`, `7d`.
fn length_text(length: Duration) -> String {
    match (length.as_millis(), length.as_secs()) {
        (millis, _) if !millis.is_multiple_of(1000) => format!("{millis}ms"),
        (_, secs) if secs.is_multiple_of(24 * 3600) => format!("{}d", secs / (24 * 3600)),
        (_, secs) if secs.is_multiple_of(3600) => format!("{}h", secs / 3600),
        (_, secs) if secs.is_multiple_of(60) => format!("{}m", secs / 60),
        (_, secs) => format!("{secs}s"),
    }
}
