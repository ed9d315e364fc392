//! `tidegate explain`.

use std::fmt::Write as _;

use anyhow::Context as _;
use bytes::Bytes;
use tidegate_bus::{BusError, subjects};
use tidegate_model::{RegionName, ServiceName};
use tidegate_routing::{Candidate, Explanation};

use crate::say::{say, say_line};
use crate::{arguments::BusOptions, link};

/// Asks the region's route-computers and prints what they say.
pub async fn explain(
    service: &ServiceName,
    region: &RegionName,
    json: bool,
    options: &BusOptions,
) -> anyhow::Result<()> {
    let bus = link::connect(options).await?;
    let question = Bytes::copy_from_slice(service.as_str().as_bytes());
    let answer = match bus.request(&subjects::explain(region), question, options.timeout).await {
        Err(BusError::NoResponder(_)) => anyhow::bail!("no route-computer runs for region {region}"),
        answer => answer?,
    };
    if let Ok(refused) = serde_json::from_slice::<Refused>(&answer) {
        anyhow::bail!("{}", refused.error);
    }
    if json {
        say_line(String::from_utf8_lossy(&answer))?;
        return Ok(());
    }
    let explanation: Explanation =
        serde_json::from_slice(&answer).context("the route-computer is of another version")?;
    say(text(&explanation))?;
    Ok(())
}

#[derive(serde::Deserialize)]
struct Refused {
    error: String,
}

fn text(explanation: &Explanation) -> String {
    let mut text = format!("{} as {} sees it\n", explanation.service, explanation.region);
    for (place, action) in explanation.actions.iter().enumerate() {
        let which = if place == 0 { "default".to_owned() } else { format!("route {place}") };
        // Writing to a String does not fail.
        _ = writeln!(text, "\n{which}: {}", action.tiers.reason);
        for (region, measured, settled) in &action.demand {
            _ = writeln!(text, "  demand in {region}: {measured}/s (shares follow {settled}/s)");
        }
        if action.tiers.fail_open {
            text.push_str("  everything seems down: all of it is tried\n");
        }
        if action.tiers.shed_permille > 0 {
            _ = writeln!(
                text,
                "  refused for lack of room: {}.{} %",
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

fn line(text: &mut String, candidate: &Candidate) {
    let place = match candidate.tier {
        Some(0) => format!("{}.{} %", candidate.share_permille / 10, candidate.share_permille % 10),
        Some(tier) => format!("fallback {tier}"),
        None => "not used".to_owned(),
    };
    _ = writeln!(
        text,
        "  {:<20} {:<12} {:<10} {}",
        candidate.cluster.as_str(),
        place,
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
        candidate.overridden.as_ref().map(|why| format!("; {why}")).unwrap_or_default(),
    );
}
