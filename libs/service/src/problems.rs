//! Watches what is wrong with a service: logs it, and shows it by metrics.

use std::{collections::BTreeMap, time::Duration};

use tidegate_bus::{
    claims::Problem,
    clock,
    limit::{ProblemLog, ProblemNotice},
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{Admin, Registry};

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a problem has to last before it is logged or reported as an event: at a start everything is missing for a moment.
pub const DELAY: Duration = Duration::from_secs(2);

/// Adds metrics for what is wrong with the service.
pub fn observe(registry: &Registry, admin: &Admin) {
    let admin = admin.clone();
    registry.collect(move |samples| {
        let problems = admin.problems(clock::now());
        let ready = f64::from(u8::from(!problems.iter().any(|problem| problem.is_blocking)));
        let help = "Whether the service has no problem that makes it not ready.";
        samples.gauge("tidegate_healthy", help, &[], ready);
        let help =
            "Whether the service has a problem, by check: it is not ready, or something is not in force.";
        for check in admin.check_names() {
            let is_problem = problems.iter().any(|problem| problem.check == check);
            samples.gauge("tidegate_problem", help, &[("check", &check)], f64::from(u8::from(is_problem)));
        }
    });
}

/// Logs problems that last: at first, at growing intervals, and when they are over. Until `stop`.
pub async fn log(admin: Admin, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut logs: BTreeMap<String, ProblemLog> = BTreeMap::new();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let problems = lasting(&admin);
        for (check, log) in &mut logs {
            if !problems.iter().any(|problem| problem.check == *check)
                && let Some(ProblemNotice::Over(lasted)) = log.record(None, Instant::now())
            {
                tracing::info!(check, ?lasted, "the problem is over");
            }
        }
        logs.retain(|check, _| problems.iter().any(|problem| problem.check == *check));
        for Problem { check, reason, is_blocking, .. } in &problems {
            // Reasons hold times and counts that change: a problem is the same as long as its check fails.
            match logs.entry(check.clone()).or_default().record(Some(check), Instant::now()) {
                Some(ProblemNotice::Began) if *is_blocking => tracing::warn!(check, "not ready: {reason}"),
                Some(ProblemNotice::Began) => tracing::warn!(check, "{reason}"),
                Some(ProblemNotice::Lasts(lasts)) => tracing::warn!(check, ?lasts, "still: {reason}"),
                Some(ProblemNotice::Over(_)) | None => {}
            }
        }
    }
}

/// The problems that have lasted for [`DELAY`].
pub fn lasting(admin: &Admin) -> Vec<Problem> {
    let now = clock::now();
    let mut problems = admin.problems(now);
    problems.retain(|problem| now.since(problem.since) >= DELAY);
    problems
}

/// Calls `report` when a problem begins and when it is over, until `stop`: with true when it begins.
pub async fn follow<F: Future<Output = ()>>(
    admin: Admin,
    stop: CancellationToken,
    report: impl Fn(Problem, bool) -> F,
) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: Vec<Problem> = Vec::new();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let now = lasting(&admin);
        let is_in =
            |problem: &Problem, list: &[Problem]| list.iter().any(|other| other.check == problem.check);
        for over in known.iter().filter(|problem| !is_in(problem, &now)) {
            report(over.clone(), false).await;
        }
        for began in now.iter().filter(|problem| !is_in(problem, &known)) {
            report(began.clone(), true).await;
        }
        known = now;
    }
}
