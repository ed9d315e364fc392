//! Faults of the nearer cluster, and how they were found: by which signal, how soon, and when each edge had moved.

use std::{fmt, time::Duration};

use tidegate_bus::clock;
use tidegate_model::{
    Timestamp,
    observation::Signal,
    routes::{Cause, RouteKey},
    verdict::Verdict,
};

use crate::{
    World,
    ledger::{Change, Ledger},
    plan::{HOME, REGIONS},
    process,
};

/// What happens to the cluster of the first region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// All of its endpoints are killed (SIGKILL).
    Kill,
    /// All of its endpoints are frozen (SIGSTOP).
    Freeze,
    /// All of its endpoints answer 503.
    Answer503,
    /// One of its endpoints is killed.
    Endpoint,
    /// An operator drains it.
    Drain,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Fault; 5] = [Fault::Kill, Fault::Freeze, Fault::Answer503, Fault::Endpoint, Fault::Drain];

    /// What happens, in words.
    pub fn story(self) -> &'static str {
        match self {
            Fault::Kill => "both endpoints of the nearer cluster are killed (SIGKILL)",
            Fault::Freeze => "both endpoints of the nearer cluster freeze (SIGSTOP)",
            Fault::Answer503 => "both endpoints of the nearer cluster answer 503",
            Fault::Endpoint => "one endpoint of the nearer cluster is killed (SIGKILL)",
            Fault::Drain => "an operator drains the nearer cluster",
        }
    }

    /// Whether `change` is what the fault should bring about.
    fn is_found_by(self, change: &Change) -> bool {
        let down = |verdict: Verdict| matches!(verdict, Verdict::Down | Verdict::PathDown);
        match self {
            Fault::Kill | Fault::Freeze | Fault::Answer503 => {
                change.health(HOME.cluster).is_some_and(|health| {
                    down(health.verdict) && health.endpoints.iter().all(|e| down(e.verdict))
                })
            }
            Fault::Endpoint => change
                .health(HOME.cluster)
                .and_then(|health| health.endpoints.first())
                .is_some_and(|endpoint| down(endpoint.verdict)),
            Fault::Drain => {
                change.cause.causes.iter().any(|cause| matches!(cause, Cause::Override(_)))
                    && change.entries.iter().any(|(key, _)| matches!(key, RouteKey::Tiers(_)))
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Kill => "kill",
            Fault::Freeze => "freeze",
            Fault::Answer503 => "503",
            Fault::Endpoint => "endpoint",
            Fault::Drain => "drain",
        })
    }
}

/// How one region found a fault.
#[derive(Debug, Clone)]
pub struct Found {
    /// The region.
    pub region: &'static str,
    /// Its edge.
    pub edge: &'static str,
    /// The signal that brought the verdict about: `suspicion`, `probe`, or `operator`.
    pub signal: &'static str,
    /// The reason that the route-computer gave.
    pub reason: String,
    /// When its route-computer had heard what it decided by.
    pub heard_at: Timestamp,
    /// When its route-computer had decided.
    pub decided_at: Timestamp,
    /// When its edge served by that.
    pub applied_at: Timestamp,
}

/// How a fault was found.
#[derive(Debug, Clone)]
pub struct Detection {
    /// When the fault was made.
    pub fault_at: Timestamp,
    /// When somebody, an edge or a prober, first failed because of it; absent for what an operator does.
    pub first_failure_at: Option<Timestamp>,
    /// By region.
    pub found: Vec<Found>,
}

impl Detection {
    /// From the first failure until the last region had decided.
    pub fn first_failure_to_verdict(&self) -> Option<Duration> {
        let decided = self.found.iter().map(|found| found.decided_at).max()?;
        Some(decided.since(self.first_failure_at?))
    }

    /// How long a region's computation took, from what was heard to the decision; the longest.
    pub fn computation(&self) -> Duration {
        let times = self.found.iter().map(|found| found.decided_at.since(found.heard_at));
        times.max().unwrap_or_default()
    }

    /// From a region's verdict until its edge served by it; the longest.
    pub fn verdict_to_last_edge(&self) -> Duration {
        let times = self.found.iter().map(|found| found.applied_at.since(found.decided_at));
        times.max().unwrap_or_default()
    }

    /// When the last edge served by the verdict.
    pub fn last_edge_at(&self) -> Timestamp {
        self.found.iter().map(|found| found.applied_at).max().unwrap_or(self.fault_at)
    }

    /// From the fault until the last edge served by the verdict.
    pub fn fault_to_last_edge(&self) -> Duration {
        self.last_edge_at().since(self.fault_at)
    }
}

impl World {
    /// Makes a fault, and says when.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn inflict(&mut self, fault: Fault) -> anyhow::Result<Timestamp> {
        let names = HOME.origins();
        let fault_at = match fault {
            Fault::Kill => {
                let fault_at = clock::now();
                for name in &names {
                    self.origin(name).process.send_kill();
                }
                names.iter().for_each(|name| self.origin(name).process.reap());
                fault_at
            }
            Fault::Freeze => {
                let fault_at = clock::now();
                let processes: Vec<_> = names.iter().map(|name| &self.origins[name].process).collect();
                process::signal("STOP", &processes);
                fault_at
            }
            Fault::Answer503 => {
                let fault_at = clock::now();
                for name in &names {
                    self.origins[name].fail().await?;
                }
                fault_at
            }
            Fault::Endpoint => {
                let fault_at = clock::now();
                self.origin(&names[0]).process.kill();
                fault_at
            }
            Fault::Drain => {
                let fault_at = clock::now();
                let reason = ["drain", "cluster", HOME.cluster, "--reason", "drill"];
                let output = self.cli(&reason).await?;
                anyhow::ensure!(
                    output.status.success(),
                    "drain: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                fault_at
            }
        };
        Ok(fault_at)
    }

    /// Takes a fault back.
    ///
    /// # Errors
    /// When it cannot be.
    pub async fn mend(&mut self, fault: Fault) -> anyhow::Result<()> {
        let names = HOME.origins();
        match fault {
            Fault::Kill => {
                for name in &names {
                    self.origin(name).process.restart()?;
                }
            }
            Fault::Freeze => names.iter().for_each(|name| self.origins[name].process.thaw()),
            Fault::Answer503 => {
                for name in &names {
                    self.origins[name].recover().await?;
                }
            }
            Fault::Endpoint => self.origin(&names[0]).process.restart()?,
            Fault::Drain => {
                let output = self.cli(&["undrain", "cluster", HOME.cluster]).await?;
                anyhow::ensure!(
                    output.status.success(),
                    "undrain: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
        Ok(())
    }

    /// Waits until every region has found the fault that was made at `fault_at`, and its edge has moved.
    ///
    /// # Errors
    /// When that has not come about after `limit`.
    pub async fn until_found(
        &self,
        fault: Fault,
        fault_at: Timestamp,
        limit: Duration,
    ) -> anyhow::Result<Detection> {
        let what = format!("every edge has moved because of {fault}");
        self.watch.until(&what, limit, |ledger| found(ledger, fault, fault_at)).await
    }

    fn origin(&mut self, name: &str) -> &mut crate::origin::Origin {
        self.origins.get_mut(name).unwrap_or_else(|| panic!("the plan has an origin {name}"))
    }
}

fn found(ledger: &Ledger, fault: Fault, fault_at: Timestamp) -> Option<Detection> {
    let mut all = Vec::new();
    for region in REGIONS {
        let change = ledger.change_since(region.name, fault_at, |change| fault.is_found_by(change))?;
        let applied_at = ledger.applied_at(region.edge, change.epoch, change.revision)?;
        let (signal, reason) = why(change);
        all.push(Found {
            region: region.name,
            edge: region.edge,
            signal,
            reason,
            heard_at: change.cause.input_at,
            decided_at: change.cause.decided_at,
            applied_at,
        });
    }
    let decided = all.iter().map(|found| found.decided_at).max()?;
    let first_failure_at = match fault {
        Fault::Drain => None,
        _ => first_failure(ledger, fault_at, decided),
    };
    Some(Detection { fault_at, first_failure_at, found: all })
}

fn why(change: &Change) -> (&'static str, String) {
    for cause in &change.cause.causes {
        match cause {
            Cause::Health { cluster, reason, signal, .. } if cluster.as_str() == HOME.cluster => {
                let signal = match signal {
                    Some(Signal::Suspicion { .. }) => "suspicion",
                    Some(Signal::Schedule) => "probe",
                    None => "time",
                };
                return (signal, reason.clone());
            }
            Cause::Override(what) => return ("operator", what.clone()),
            Cause::Health { .. } | Cause::Fleet | Cause::Load | Cause::Time => {}
        }
    }
    ("unknown", String::new())
}

/// The first that anybody saw of the fault, by edges' suspicions and probers' causes.
fn first_failure(ledger: &Ledger, fault_at: Timestamp, until: Timestamp) -> Option<Timestamp> {
    let suspected = ledger
        .suspicions
        .iter()
        .filter(|suspicion| suspicion.cluster.as_str() == HOME.cluster)
        .map(|suspicion| suspicion.first_failure_at);
    let probed = ledger
        .changes
        .iter()
        .filter(|change| change.cause.decided_at >= fault_at)
        .flat_map(|change| &change.cause.causes)
        .filter_map(|cause| match cause {
            Cause::Health { cluster, probed_at, .. } if cluster.as_str() == HOME.cluster => *probed_at,
            _ => None,
        })
        // A probe that was under way when the fault came began before it.
        .map(|probed_at| probed_at.max(fault_at));
    suspected.chain(probed).filter(|at| (fault_at..=until).contains(at)).min()
}
