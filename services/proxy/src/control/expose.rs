//! Metrics, readiness and pages of a proxy.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_bus::{Bus, clock};
use tidegate_service::{
    Context,
    admin::Reply,
    metrics::{HistogramState, Samples},
};

use super::page::Shown;
use crate::{
    metrics::{
        ClusterCounters, DURATION_BOUNDS, DurationSums, Metrics, RefusalReason, RequestKind, ServiceCounters,
        WorkerCounters,
    },
    observe::access,
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
        "Idle connections of clients that were told to end near the limit on files.",
        |w| w.evicted_idle.get(),
    ),
    (
        "tidegate_proxy_connections_evicted_slow_total",
        "Connections of slow clients ended near the limit on files, where none was idle.",
        |w| w.evicted_slow.get(),
    ),
    (
        "tidegate_proxy_connections_evicted_memory_total",
        "Connections of clients ended because most memory was held for them when it ran short.",
        |w| w.evicted_memory.get(),
    ),
    (
        "tidegate_proxy_client_tasks_queued_total",
        "Times that work for a client waited for clients of networks that had used less of a busy worker's time.",
        |w| w.queued.get(),
    ),
    (
        "tidegate_proxy_http2_floods_total",
        "HTTP/2 connections ended because of too many control frames.",
        |w| w.flooded.get(),
    ),
    (
        "tidegate_proxy_http2_heads_over_budget_total",
        "HTTP/2 streams refused because the request heads of their connection took too much memory.",
        |w| w.heads_over_budget.get(),
    ),
    (
        "tidegate_proxy_fields_dropped_total",
        "Header fields of request heads left out because their names have underscores.",
        |w| w.dropped_fields.get(),
    ),
    (
        "tidegate_proxy_requests_misdirected_total",
        "Requests for a host that has another certificate than the one of their connection (421).",
        |w| w.misdirected.get(),
    ),
    ("tidegate_proxy_requests_unrouted_total", "Requests for a host that no service has.", |w| {
        w.unrouted.get()
    }),
    (
        "tidegate_proxy_clients_too_slow_total",
        "Clients that took too long over a head or handshake, or over a body when their place was needed.",
        |w| w.too_slow.get(),
    ),
    ("tidegate_proxy_tls_handshakes_failed_total", "TLS handshakes that failed.", |w| w.tls_failures.get()),
    (
        "tidegate_proxy_connects_impossible_total",
        "Connections to endpoints that could not be made because this machine lacks files or ports.",
        |w| w.cannot_connect.get(),
    ),
    ("tidegate_proxy_tunnels_total", "Connections that were upgraded.", |w| w.tunnels.get()),
];

const SERVICES: [(&str, &str, Read<ServiceCounters>); 10] = [
    ("tidegate_service_requests_total", "Requests routed to the service.", |s| s.requests.get()),
    ("tidegate_service_retries_total", "Further tries after a failed one.", |s| s.retries.get()),
    ("tidegate_service_hedges_total", "Second tries beside one without an answer.", |s| s.hedges.get()),
    ("tidegate_service_hedges_won_total", "Hedges that answered first.", |s| s.hedges_won.get()),
    ("tidegate_service_budget_exhausted_total", "Retries that the budget did not allow.", |s| {
        s.budget_exhausted.get()
    }),
    ("tidegate_service_shed_total", "Requests refused because nobody has room.", |s| s.shed.get()),
    ("tidegate_service_no_endpoint_total", "Requests that no endpoint could take.", |s| s.no_endpoint.get()),
    ("tidegate_service_failed_over_total", "Requests answered by a lower tier than the first.", |s| {
        s.failed_over.get()
    }),
    ("tidegate_service_broken_off_total", "Answers that an endpoint broke off or fell silent in.", |s| {
        s.broken_off.get()
    }),
    ("tidegate_service_client_gone_total", "Requests whose client went away.", |s| s.client_gone.get()),
];

const CLUSTERS: [(&str, &str, Read<ClusterCounters>); 6] = [
    ("tidegate_cluster_attempts_total", "Attempts of requests at the cluster.", |c| c.attempts.get()),
    ("tidegate_cluster_failures_total", "Attempts that failed.", |c| c.failures.get()),
    ("tidegate_cluster_connects_total", "Connections made to the cluster.", |c| c.connects.get()),
    ("tidegate_cluster_ejections_total", "Endpoints ejected for failing requests.", |c| c.ejections.get()),
    (
        "tidegate_cluster_excess_bytes_total",
        "Connections closed because the endpoint sent bytes that belong to no request.",
        |c| c.excess.get(),
    ),
    (
        "tidegate_cluster_at_limit_total",
        "Picks that passed the cluster over because it had as many requests as it may (max_requests).",
        |c| c.at_limit.get(),
    ),
];

const GAUGES: [(&str, &str, Read<ClusterCounters>); 4] = [
    ("tidegate_cluster_requests_active", "Requests under way at the cluster.", |c| c.gauges.active.get()),
    (
        "tidegate_cluster_requests_waiting",
        "Requests at the cluster that wait for their clients, which are not under way for max_requests.",
        |c| c.gauges.waiting.get(),
    ),
    ("tidegate_cluster_connections_idle", "HTTP/1.1 connections to the cluster that wait for work.", |c| {
        c.gauges.idle.get()
    }),
    ("tidegate_cluster_connections_http2", "HTTP/2 connections to the cluster.", |c| c.gauges.http2.get()),
];

/// Adds the proxy's metrics, readiness checks and pages.
pub fn expose(
    context: &Context,
    bus: &Bus,
    metrics: &Arc<Metrics>,
    shown: &Shown,
    access: Option<&Arc<access::Shared>>,
) {
    tidegate_service::bus::observe(&context.registry, bus);
    let readiness = shown.clone();
    let bus_is_there = tidegate_service::bus::check(bus);
    context.admin.check("routes", move || {
        // With routes an edge serves without the bus; without them it is why there are none.
        if !readiness.has_routes() {
            bus_is_there().map_err(|why| format!("no routes yet: {why}"))?;
        }
        readiness.readiness()
    });
    let behind = shown.clone();
    context.admin.warn("routes_behind", move || behind.behind());
    let page = shown.clone();
    context.admin.route("/routes", move |_| Reply::json(&page.page()));
    if let Some(access) = access {
        // Weakly, so that the writer ends with the workers.
        let access = Arc::downgrade(access);
        context.registry.collect(move |samples| {
            let (name, help) =
                ("tidegate_access_log_dropped_total", "Lines that the access log's writer had no room for.");
            samples.counter(name, help, &[], access.upgrade().map_or(0, |shared| shared.dropped()) as f64);
        });
    }
    let (metrics, shown) = (metrics.clone(), shown.clone());
    context.registry.collect(move |samples| {
        collect(samples, &metrics);
        collect_table(samples, &shown);
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
    let (name, help) = ("tidegate_service_responses_total", "Answers, by the first digit of their status.");
    for (place, class) in CLASSES.into_iter().enumerate() {
        for (service, count) in metrics.sum_services(|s| s.statuses[place].get()) {
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
            // A class that never came is no series.
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
        let (name, help) =
            ("tidegate_cluster_first_byte_seconds", "From the beginning of a try to the head of its answer.");
        samples.histogram(name, help, &[("cluster", cluster.as_str())], state_of(&sums));
    }
}

/// Durations by OpenTelemetry's conventions, whoever answered.
fn collect_requests(samples: &mut Samples, metrics: &Metrics) {
    let mut add = |own: &[(&str, &str)], kinds: BTreeMap<RequestKind, DurationSums>| {
        for (kind, sums) in kinds {
            kind.attributes(|attributes| {
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

fn collect_table(samples: &mut Samples, shown: &Shown) {
    if let Some(silence) = shown.silence() {
        let (name, help) =
            ("tidegate_routes_owner_silent_seconds", "Since the table's owner was last heard.");
        samples.gauge(name, help, &[], silence.as_secs_f64());
    }
    if let Some(applied) = shown.applied() {
        samples.gauge("tidegate_routes_epoch", "The epoch of the table served.", &[], applied.epoch.0 as f64);
        samples.gauge(
            "tidegate_routes_revision",
            "The revision of the table served.",
            &[],
            applied.revision.0 as f64,
        );
        let (name, help) = (
            "tidegate_routes_refused_total",
            "Messages refused because their epoch was older or is implausible.",
        );
        samples.counter(name, help, &[], applied.refused_old_epochs as f64);
        let (name, help) = (
            "tidegate_routes_unsigned_total",
            "Messages refused because no key that the fleet names signed them.",
        );
        samples.counter(name, help, &[], applied.refused_unsigned as f64);
        let behind = applied.behind_since.map_or(0.0, |since| clock::now().since(since).as_secs_f64());
        let (name, help) = (
            "tidegate_routes_behind_seconds",
            "Seconds since this edge last had its region's latest table, while other messages about it arrive; 0 where it has it.",
        );
        samples.gauge(name, help, &[], behind);
    }
}
