//! `tidegate explain`.

use std::fmt::Write as _;

use anyhow::Context as _;
use bytes::Bytes;
use tidegate_bus::{BusError, subjects};
use tidegate_model::{RegionName, ServiceName, fleet::Service};
use tidegate_routing::{CandidateExplanation, Explanation};

use crate::say::{say, say_line};
use crate::{
    arguments::BusOptions,
    events::moment,
    fleet::{self, known},
    link,
};

/// Requests an explanation from the region's route-computers and prints it.
pub async fn explain(
    service: &ServiceName,
    region: &RegionName,
    json: bool,
    options: &BusOptions,
) -> anyhow::Result<()> {
    let bus = link::connect(options).await?;
    let request = Bytes::copy_from_slice(service.as_str().as_bytes());
    let response = match bus.request(&subjects::explain(region), request, options.timeout).await {
        Err(BusError::NoResponder(_)) => {
            if let Ok(fleet) = fleet::read(&bus).await {
                known("region", region.as_str(), fleet.regions.keys())?;
            }
            anyhow::bail!("no route-computer runs for region {region}");
        }
        response => response?,
    };
    if let Ok(refused) = serde_json::from_slice::<Refused>(&response) {
        if let Ok(fleet) = fleet::read(&bus).await {
            known("service", service.as_str(), fleet.services.keys())?;
        }
        anyhow::bail!("{}", refused.error);
    }
    if json {
        say_line(String::from_utf8_lossy(&response))?;
        return Ok(());
    }
    let explanation: Explanation =
        serde_json::from_slice(&response).context("the route-computer is of another version")?;
    // The requests of its routes are described where the fleet can be read.
    let fleet = if explanation.actions.len() > 1 { fleet::read(&bus).await.ok() } else { None };
    say(text(&explanation, fleet.as_ref().and_then(|fleet| fleet.services.get(service))))?;
    Ok(())
}

#[derive(serde::Deserialize)]
struct Refused {
    error: String,
}

fn text(explanation: &Explanation, service: Option<&Service>) -> String {
    let mut text = format!("{} as {} sees it\n", explanation.service, explanation.region);
    for (index, action) in explanation.actions.iter().enumerate() {
        let route = service.and_then(|service| service.routes.get(index.checked_sub(1)?));
        let which = match (index, route) {
            (0, _) => "default".to_owned(),
            (_, Some(route)) => format!("route {index} ({})", route.matches),
            (_, None) => format!("route {index}"),
        };
        // Writing to a String does not fail.
        _ = writeln!(text, "\n{which}: {}", action.tiers.reason);
        for (region, measured, settled) in &action.demand {
            _ = writeln!(text, "  demand in {region}: {measured}/s (shares follow {settled}/s)");
        }
        if action.tiers.fail_open {
            text.push_str("  all clusters seem down: all are tried\n");
        }
        if action.tiers.shed_permille > 0 {
            _ = writeln!(
                text,
                "  shed for lack of capacity: {}.{} %",
                action.tiers.shed_permille / 10,
                action.tiers.shed_permille % 10
            );
        }
        for candidate in &action.candidates {
            line(&mut text, candidate);
        }
    }
    text
}

fn line(text: &mut String, candidate: &CandidateExplanation) {
    let position = match candidate.tier {
        Some(0) => format!("{}.{} %", candidate.share_permille / 10, candidate.share_permille % 10),
        Some(tier) => format!("fallback {tier}"),
        None => "not used".to_owned(),
    };
    _ = writeln!(
        text,
        "  {:<20} {:<12} {:<10} {}",
        candidate.cluster.as_str(),
        position,
        candidate.verdict.to_string(),
        candidate.reason
    );
    let capacity =
        candidate.capacity.map_or_else(|| "no limit".to_owned(), |capacity| format!("{capacity}/s"));
    _ = writeln!(
        text,
        "  {:<20} in {}, {}; load {}/s of {capacity}{}{}",
        "",
        candidate.region,
        candidate.proximity,
        candidate.load,
        if candidate.slow_start_permille < 1000 {
            format!("; slow start at {} %", candidate.slow_start_permille / 10)
        } else {
            String::new()
        },
        candidate
            .suppressed_until
            .map(|until| format!("; suppressed until {}", moment(until)))
            .unwrap_or_default(),
    );
    for item in &candidate.overrides {
        let overruled =
            item.overruled.as_ref().map(|why| format!(" (without effect: {why})")).unwrap_or_default();
        _ = writeln!(text, "  {:<20} {}{overruled}", "", item.text);
    }
}
