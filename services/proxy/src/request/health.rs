//! Health requests of external load balancers: whether this edge serves a service, and from where.

use tidegate_model::{fleet::HealthEndpoints, verdict::Verdict};

use super::local_reply::LocalReply;
use crate::worker_context::WorkerContext;

const PREFIX: &str = "/.well-known/tidegate/health";

/// The local reply if `target` is a health request.
///
/// `/.well-known/tidegate/health/<service>?scope=local` is 200 only while a cluster of the edge's own region serves the
/// service (a drained cluster does not); `?scope=any`, the default, while any cluster does. Without a service it
/// concerns the edge itself: 503 while it drains or has no routes.
///
/// Any client may send it, so an unknown service gets the same response as an unavailable one, which hides names.
/// `endpoints` is the listener's setting; disabled paths get 404 and are never forwarded.
pub fn local_reply(worker: &WorkerContext, endpoints: HealthEndpoints, target: &str) -> Option<LocalReply> {
    let rest = target.strip_prefix(PREFIX)?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !(path.is_empty() || path.starts_with('/')) {
        return None;
    }
    let service = path.trim_start_matches('/');
    match endpoints {
        HealthEndpoints::On => {}
        HealthEndpoints::Edge if service.is_empty() => {}
        HealthEndpoints::Edge | HealthEndpoints::Off => {
            return Some(LocalReply::new(404, "not found"));
        }
    }
    if worker.is_draining() {
        return Some(LocalReply::new(503, "draining"));
    }
    let table = worker.table.borrow();
    if service.is_empty() {
        return Some(if table.is_empty() {
            LocalReply::new(503, "no routes yet")
        } else {
            LocalReply::new(200, "ok")
        });
    }
    let local = match query {
        "" | "scope=any" => false,
        "scope=local" => true,
        _ => return Some(LocalReply::new(400, "scope is local or any")),
    };
    let serves = table.service(service).is_some_and(|service| {
        let action = &service.actions[0];
        // Later tiers are for when the first fails, and include drained clusters: they don't serve now.
        let tiers = if local { &action.tiers[..action.tiers.len().min(1)] } else { &action.tiers[..] };
        tiers.iter().flat_map(|tier| &tier.weighted_clusters).any(|weighted| {
            (!local || weighted.cluster.region == worker.edge.region)
                && !action.fail_open
                && weighted
                    .endpoints
                    .iter()
                    .any(|candidate| matches!(candidate.verdict, Verdict::Up | Verdict::Unknown))
        })
    });
    Some(if serves {
        LocalReply::new(200, "ok")
    } else if local {
        LocalReply::new(503, "no cluster of this region serves it")
    } else {
        LocalReply::new(503, "no cluster serves it")
    })
}
