//! The proxy's metrics, readiness checks and admin pages.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_bus::{Bus, clock};
use tidegate_service::{
    Context,
    admin::Reply,
    metrics::{HistogramState, Samples},
};

use super::status::{TableStatus, joined};
use crate::{
    edge_identity::EdgeIdentity,
    metrics::{
        ClusterCounters, DURATION_BOUNDS, DurationSums, Metrics, RefusalReason, RequestKind, ServiceCounters,
        WorkerCounters,
    },
    observe::access,
    tls::UpstreamTlsConfigs,
};

type Read<C> = fn(&C) -> u64;

/// Statuses by their first digit.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

const WORKERS: [(&str, &str, Read<WorkerCounters>); 15] = [
    ("tidegate_proxy_connections_accepted_total", "Connections accepted.", |w| w.accepted.get()),
    ("tidegate_proxy_connections_over_limit_total", "Connections refused because a listener is full.", |w| {
        w.over_limit.get()
    }),
    (
        "tidegate_proxy_connections_evicted_idle_total",
        "Idle client connections evicted near the limit on file descriptors.",
        |w| w.evicted_idle.get(),
    ),
    (
        "tidegate_proxy_connections_evicted_slow_total",
        "Connections of slow clients evicted near the limit on file descriptors, when none was idle.",
        |w| w.evicted_slow.get(),
    ),
    (
        "tidegate_proxy_connections_evicted_memory_total",
        "Client connections with the largest buffers, evicted when memory ran short.",
        |w| w.evicted_memory.get(),
    ),
    (
        "tidegate_proxy_client_tasks_queued_total",
        "Times that a client task was queued behind those of networks that had used less of a busy worker's time.",
        |w| w.queued.get(),
    ),
    (
        "tidegate_proxy_http2_floods_total",
        "HTTP/2 connections closed because of too many control frames.",
        |w| w.flooded.get(),
    ),
    (
        "tidegate_proxy_http2_heads_over_budget_total",
        "HTTP/2 streams refused because the request heads of their connection took too much memory.",
        |w| w.heads_over_budget.get(),
    ),
    (
        "tidegate_proxy_fields_dropped_total",
        "Header fields dropped from request heads because their names have underscores.",
        |w| w.dropped_fields.get(),
    ),
    (
        "tidegate_proxy_requests_misdirected_total",
        "Requests for a host that the connection's certificate is not valid for (421).",
        |w| w.misdirected.get(),
    ),
    ("tidegate_proxy_requests_unrouted_total", "Requests whose host belongs to no service.", |w| {
        w.unrouted.get()
    }),
    (
        "tidegate_proxy_clients_too_slow_total",
        "Clients that were too slow with a head or handshake, or were evicted while they were slow with a body.",
        |w| w.too_slow.get(),
    ),
    ("tidegate_proxy_tls_handshakes_failed_total", "TLS handshakes that failed.", |w| w.tls_failures.get()),
    (
        "tidegate_proxy_connects_impossible_total",
        "Upstream connections that failed because this machine lacks file descriptors or ports.",
        |w| w.cannot_connect.get(),
    ),
    ("tidegate_proxy_tunnels_total", "Connections that were upgraded.", |w| w.tunnels.get()),
];

const SERVICES: [(&str, &str, Read<ServiceCounters>); 10] = [
    ("tidegate_service_requests_total", "Requests routed to the service.", |s| s.requests.get()),
    ("tidegate_service_retries_total", "Further attempts after a failed one.", |s| s.retries.get()),
    ("tidegate_service_hedges_total", "Second attempts in parallel to one without a response.", |s| {
        s.hedges.get()
    }),
    ("tidegate_service_hedges_won_total", "Hedges that responded first.", |s| s.hedges_won.get()),
    ("tidegate_service_budget_exhausted_total", "Retries that the budget did not allow.", |s| {
        s.budget_exhausted.get()
    }),
    ("tidegate_service_shed_total", "Requests shed because all clusters are over capacity.", |s| {
        s.shed.get()
    }),
    ("tidegate_service_no_endpoint_total", "Requests that no endpoint could take.", |s| s.no_endpoint.get()),
    ("tidegate_service_failed_over_total", "Requests served by a lower tier than the first.", |s| {
        s.failed_over.get()
    }),
    (
        "tidegate_service_broken_off_total",
        "Responses that an endpoint broke off, or that reached the idle timeout.",
        |s| s.broken_off.get(),
    ),
    ("tidegate_service_client_gone_total", "Requests whose client disconnected.", |s| s.client_gone.get()),
];

const CLUSTERS: [(&str, &str, Read<ClusterCounters>); 6] = [
    ("tidegate_cluster_attempts_total", "Attempts of requests at the cluster.", |c| c.attempts.get()),
    ("tidegate_cluster_failures_total", "Attempts that failed.", |c| c.failures.get()),
    ("tidegate_cluster_connects_total", "Connections opened to the cluster.", |c| c.connects.get()),
    ("tidegate_cluster_ejections_total", "Endpoints ejected for failing requests.", |c| c.ejections.get()),
    (
        "tidegate_cluster_excess_bytes_total",
        "Connections closed because the endpoint sent bytes that belong to no request.",
        |c| c.excess.get(),
    ),
    ("tidegate_cluster_at_limit_total", "Picks that skipped the cluster because of its max_requests.", |c| {
        c.at_limit.get()
    }),
];

const GAUGES: [(&str, &str, Read<ClusterCounters>); 4] = [
    ("tidegate_cluster_requests_active", "Requests in flight at the cluster.", |c| c.gauges.active.get()),
    (
        "tidegate_cluster_requests_waiting",
        "Requests at the cluster that wait for their clients and do not count against max_requests.",
        |c| c.gauges.waiting.get(),
    ),
    ("tidegate_cluster_connections_idle", "Idle HTTP/1.1 connections to the cluster.", |c| {
        c.gauges.idle.get()
    }),
    ("tidegate_cluster_connections_http2", "HTTP/2 connections to the cluster.", |c| c.gauges.http2.get()),
];

/// Adds the proxy's metrics, readiness checks and pages.
pub fn register(
    context: &Context,
    bus: &Bus,
    metrics: &Arc<Metrics>,
    status: &TableStatus,
    tls: &Arc<UpstreamTlsConfigs>,
    edge: &EdgeIdentity,
    access: Option<&Arc<access::AccessLogHandle>>,
) {
    let labels = [("edge", edge.name.as_str()), ("region", edge.region.as_str())];
    let help = "The edge that this process is; join it to other metrics by `instance`.";
    context.registry.gauge("tidegate_edge_info", help, &labels).set(1.0);
    let readiness = status.clone();
    let bus_is_there = tidegate_service::bus::check(bus);
    context.admin.check("routes", move || {
        // With routes an edge serves without the bus; without routes the bus is the reason.
        if !readiness.has_routes() {
            bus_is_there().map_err(|why| format!("no routes yet: {why}"))?;
        }
        readiness.readiness()
    });
    let listeners = status.clone();
    context.admin.check("listeners", move || listeners.listener_problems());
    let certificates = status.clone();
    context.admin.warn("certificates", move || certificates.certificate_warning());
    let tls = tls.clone();
    context.admin.warn("upstream_tls", move || joined(&tls.problems()));
    let draining = status.clone();
    context.admin.intend("draining", move || draining.is_draining().then(|| "draining".to_owned()));
    let behind = status.clone();
    context.admin.warn("routes_behind", move || behind.behind());
    let page = status.clone();
    context.admin.route("/routes", move |_| Reply::json(&page.page()));
    if let Some(access) = access {
        // A weak reference, so that the writer ends with the workers.
        let access = Arc::downgrade(access);
        context.registry.collect(move |samples| {
            let (name, help) = (
                "tidegate_access_log_dropped_total",
                "Lines dropped because the access log's writer was too slow.",
            );
            samples.counter(name, help, &[], access.upgrade().map_or(0, |shared| shared.dropped()) as f64);
        });
    }
    let (metrics, status) = (metrics.clone(), status.clone());
    context.registry.collect(move |samples| {
        collect(samples, &metrics);
        collect_table(samples, &status);
    });
}

fn collect(samples: &mut Samples, metrics: &Metrics) {
    let open = metrics.sum_workers(|worker| worker.open.get()) as f64;
    samples.gauge("tidegate_proxy_connections_open", "Connections of clients that are open.", &[], open);
    for (name, help, read) in WORKERS {
        samples.counter(name, help, &[], metrics.sum_workers(read) as f64);
    }
    let (name, help) =
        ("tidegate_proxy_requests_refused_total", "Requests refused as malformed or ambiguous, by reason.");
    for reason in RefusalReason::ALL {
        let count = metrics.sum_workers(|worker| worker.refused.of(reason).get());
        samples.counter(name, help, &[("reason", reason.label())], count as f64);
    }
    for (name, help, read) in SERVICES {
        for (service, count) in metrics.sum_services(read) {
            samples.counter(name, help, &[("service", service.as_str())], count as f64);
        }
    }
    for (name, help, read) in CLUSTERS {
        for (cluster, count) in metrics.sum_clusters(read) {
            samples.counter(name, help, &[("cluster", cluster.as_str())], count as f64);
        }
    }
    for (name, help, read) in GAUGES {
        for (cluster, count) in metrics.sum_clusters(read) {
            samples.gauge(name, help, &[("cluster", cluster.as_str())], count as f64);
        }
    }
    let (name, help) = ("tidegate_service_responses_total", "Responses by the first digit of their status.");
    for (index, class) in CLASSES.into_iter().enumerate() {
        for (service, count) in metrics.sum_services(|s| s.statuses[index].get()) {
            samples.counter(name, help, &[("service", service.as_str()), ("status", class)], count as f64);
        }
    }
    collect_durations(samples, metrics);
    collect_requests(samples, metrics);
}

fn collect_durations(samples: &mut Samples, metrics: &Metrics) {
    for (service, sums) in metrics.sum_service_durations() {
        samples.histogram(
            "tidegate_service_request_duration_seconds",
            "From a request's head to the end of its answer.",
            &[("service", service.as_str())],
            state_of(&sums),
        );
    }
    for ((service, cluster, tier), classes) in metrics.sum_serving() {
        let tier = tier.to_string();
        for (sums, class) in classes.iter().zip(CLASSES) {
            // A class that never occurred has no series.
            if sums.counts.iter().any(|count| *count > 0) {
                let labels = [
                    ("service", service.as_str()),
                    ("cluster", cluster.as_str()),
                    ("tier", tier.as_str()),
                    ("status", class),
                ];
                let (name, help) = (
                    "tidegate_served_request_duration_seconds",
                    "From a request's head to the end of its answer, by where it was served.",
                );
                samples.histogram(name, help, &labels, state_of(sums));
            }
        }
    }
    for (cluster, sums) in metrics.sum_cluster_durations() {
        let (name, help) = (
            "tidegate_cluster_first_byte_seconds",
            "From the beginning of an attempt to the head of its response.",
        );
        samples.histogram(name, help, &[("cluster", cluster.as_str())], state_of(&sums));
    }
}

/// Durations by OpenTelemetry's conventions, for local replies as well.
fn collect_requests(samples: &mut Samples, metrics: &Metrics) {
    let mut add = |own: &[(&str, &str)], kinds: BTreeMap<RequestKind, DurationSums>| {
        for (kind, sums) in kinds {
            kind.with_attributes(|attributes| {
                samples.histogram(
                    "http.server.request.duration",
                    "From a request's head to the end of its answer.",
                    &[attributes, own].concat(),
                    state_of(&sums),
                );
            });
        }
    };
    add(&[], metrics.sum_unrouted());
    for ((service, route), kinds) in metrics.sum_requests() {
        let service = ("tidegate.service", service.as_str());
        match &route {
            Some(route) => add(&[service, ("http.route", route)], kinds),
            None => add(&[service], kinds),
        }
    }
}

fn state_of(sums: &DurationSums) -> HistogramState {
    HistogramState { bounds: DURATION_BOUNDS.into(), counts: sums.counts.into(), sum: sums.sum }
}

fn collect_table(samples: &mut Samples, status: &TableStatus) {
    if let Some(silence) = status.silence() {
        let (name, help) =
            ("tidegate_routes_owner_silent_seconds", "Seconds since the table's owner was last heard.");
        samples.gauge(name, help, &[], silence.as_secs_f64());
    }
    if let Some(applied) = status.applied() {
        samples.gauge("tidegate_routes_epoch", "The epoch of the table served.", &[], applied.epoch.0 as f64);
        samples.gauge(
            "tidegate_routes_revision",
            "The revision of the table served.",
            &[],
            applied.revision.0 as f64,
        );
        let (name, help) = (
            "tidegate_routes_refused_total",
            "Messages refused because their epoch was older or implausible.",
        );
        samples.counter(name, help, &[], applied.refused_old_epochs as f64);
        let (name, help) = (
            "tidegate_routes_unsigned_total",
            "Messages refused because none of the fleet's keys signed them.",
        );
        samples.counter(name, help, &[], applied.refused_unsigned as f64);
        let behind = applied.behind_since.map_or(0.0, |since| clock::now().since(since).as_secs_f64());
        let (name, help) = (
            "tidegate_routes_behind_seconds",
            "Seconds since this edge last had its region's latest table, while messages about it arrive; 0 if it has it.",
        );
        samples.gauge(name, help, &[], behind);
    }
}
