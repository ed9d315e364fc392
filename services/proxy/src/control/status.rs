//! The status of the route table: `/routes` on the admin listener, readiness and metrics of the table.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tidegate_bus::clock;
use tidegate_model::{
    ListenerName, Timestamp,
    report::Applied,
    routes::{RouteEntry, RouteKey, Tier},
};

use crate::edge_identity::EdgeIdentity;

/// The status of the route table. Clones share it.
#[derive(Clone)]
pub struct TableStatus(Arc<Inner>);

struct Inner {
    edge: Arc<EdgeIdentity>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    applied: Option<Applied>,
    entries: BTreeMap<RouteKey, Arc<RouteEntry>>,
    problems: BTreeMap<ListenerName, String>,
    certificate_problems: BTreeMap<ListenerName, String>,
    heard_at: Option<Timestamp>,
    is_current: bool,
    disk_age: Option<Duration>,
}

impl TableStatus {
    /// A status without a table.
    pub fn new(edge: Arc<EdgeIdentity>) -> TableStatus {
        TableStatus(Arc::new(Inner { edge, state: Mutex::default() }))
    }

    /// Sets the table, its position and the problems of listeners.
    pub fn set(
        &self,
        applied: &Applied,
        entries: &BTreeMap<RouteKey, Arc<RouteEntry>>,
        problems: &BTreeMap<ListenerName, String>,
    ) {
        let mut state = self.lock();
        if state.applied.as_ref().map(|a| (a.epoch, a.revision)) != Some((applied.epoch, applied.revision)) {
            state.entries.clone_from(entries);
        }
        state.applied = Some(applied.clone());
        state.problems.clone_from(problems);
    }

    /// Sets why new certificates of listeners are not in use.
    pub fn set_certificate_problems(&self, problems: BTreeMap<ListenerName, String>) {
        self.lock().certificate_problems = problems;
    }

    /// Records when the table's owner was heard, and whether the edge has its latest table.
    pub fn record_heard(&self, at: Timestamp, is_current: bool) {
        let mut state = self.lock();
        state.heard_at = Some(at);
        state.is_current = is_current;
    }

    /// Records that the table was loaded from disk, `age` old.
    pub fn record_disk_age(&self, age: Duration) {
        self.lock().disk_age = Some(age);
    }

    /// When the table's owner was last heard.
    pub fn heard_at(&self) -> Option<Timestamp> {
        self.lock().heard_at
    }

    /// A warning for operators while the edge is behind.
    pub fn behind(&self) -> Option<String> {
        let applied = self.lock().applied.clone()?;
        let since = applied.behind_since?;
        Some(format!(
            "behind for {} s: still serving epoch {}, revision {}. Refused since the start: {} messages of older or implausible \
             epochs (`tidegate edge reset {}` clears its fence), {} without a trusted signature (proxy.signing_keys, or the \
             region's signing_keys in the fleet)",
            clock::now().since(since).as_secs(),
            applied.epoch,
            applied.revision,
            applied.refused_old_epochs,
            applied.edge,
            applied.refused_unsigned,
        ))
    }

    /// The time since the table's owner was last heard; nothing before that.
    pub fn silence(&self) -> Option<Duration> {
        self.lock().heard_at.map(|at| clock::now().since(at))
    }

    /// The last applied position.
    pub fn applied(&self) -> Option<Applied> {
        self.lock().applied.clone()
    }

    /// Whether there is a table, from the bus or disk.
    pub fn has_routes(&self) -> bool {
        !self.lock().entries.is_empty()
    }

    /// Whether there are routes, and this edge is in them.
    ///
    /// # Errors
    /// What is missing.
    pub fn readiness(&self) -> Result<(), String> {
        let state = self.lock();
        if state.entries.is_empty() {
            return Err(format!("no routes yet: no route-computer of {} was heard", self.0.edge.region));
        }
        if !state.entries.contains_key(&RouteKey::Edge(self.0.edge.name.clone())) {
            return Err(format!("the fleet has no edge {} in {}", self.0.edge.name, self.0.edge.region));
        }
        Ok(())
    }

    /// Whether all listeners are open with their certificates.
    ///
    /// # Errors
    /// The problems of those that are not.
    pub fn listener_problems(&self) -> Result<(), String> {
        let state = self.lock();
        let problems =
            state.problems.iter().map(|(listener, problem)| format!("listener {listener}: {problem}"));
        joined(&problems.collect::<Vec<_>>()).map_or(Ok(()), Err)
    }

    /// A warning for operators while new certificates of listeners are not in use.
    pub fn certificate_warning(&self) -> Option<String> {
        let state = self.lock();
        let problems = state.certificate_problems.iter().map(|(listener, problem)| {
            format!("listener {listener}: new certificates are not in use, the old ones are: {problem}")
        });
        joined(&problems.collect::<Vec<_>>())
    }

    /// Whether the edge drains.
    pub fn is_draining(&self) -> bool {
        self.lock().applied.as_ref().is_some_and(|applied| applied.draining)
    }

    /// The `/routes` page.
    pub fn page(&self) -> Value {
        let state = self.lock();
        let mut services = BTreeMap::new();
        let mut clusters: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (key, entry) in &state.entries {
            match (key, entry.as_ref()) {
                (RouteKey::Tiers(name), RouteEntry::Tiers(tiers)) => {
                    let actions: Vec<Value> = tiers
                        .actions
                        .iter()
                        .map(|action| {
                            json!({
                                "tiers": action.tiers.iter().map(tier).collect::<Vec<_>>(),
                                "shed_permille": action.shed_permille,
                                "fail_open": action.fail_open,
                                "reason": action.reason,
                            })
                        })
                        .collect();
                    services.insert(name.to_string(), actions);
                }
                (RouteKey::Health(name, _), RouteEntry::Health(health)) => {
                    let endpoints: Vec<Value> = health
                        .endpoints
                        .iter()
                        .map(|endpoint| {
                            json!({ "address": endpoint.address.to_string(), "verdict": endpoint.verdict.to_string() })
                        })
                        .collect();
                    clusters.entry(name.to_string()).or_default().push(json!({
                        "verdict": health.verdict.to_string(),
                        "reason": health.reason,
                        "endpoints": endpoints,
                    }));
                }
                _ => {}
            }
        }
        let now = clock::now();
        json!({
            "edge": self.0.edge.name,
            "region": self.0.edge.region,
            "epoch": state.applied.as_ref().map(|applied| applied.epoch),
            "revision": state.applied.as_ref().map(|applied| applied.revision),
            "owner_heard_ms_ago": state.heard_at.map(|at| now.since(at).as_millis() as u64),
            "is_owners_latest": state.is_current,
            "from_disk_s_old": state.disk_age.filter(|_| state.heard_at.is_none()).map(|age| age.as_secs()),
            "refused_unsigned": state.applied.as_ref().map(|applied| applied.refused_unsigned),
            "behind_since_us": state.applied.as_ref().and_then(|applied| applied.behind_since).map(|at| at.0),
            "refused_old_epochs": state.applied.as_ref().map(|applied| applied.refused_old_epochs),
            "draining": state.applied.as_ref().map(|applied| applied.draining),
            "listener_problems": state.problems,
            "services": services,
            "clusters": clusters,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Several problems as one text; nothing if there are none.
pub fn joined(problems: &[String]) -> Option<String> {
    (!problems.is_empty()).then(|| problems.join("; "))
}

fn tier(tier: &Tier) -> Value {
    tier.shares.iter().map(|(cluster, share)| (cluster.to_string(), json!(share))).collect()
}
