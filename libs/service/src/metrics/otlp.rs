//! The metrics as OTLP. The SDK has no instrument for a histogram that is collected elsewhere, so the protocol's messages are
//! built here from the registry.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1::Resource,
};

use super::{Family, HistogramState, Kind, Sample, Samples};

/// The process that the metrics come from: attributes of the resource, and when counting started.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub attributes: Vec<(String, String)>,
    pub started: SystemTime,
}

/// The export request of `samples`.
pub(crate) fn request(source: &Source, samples: &Samples) -> ExportMetricsServiceRequest {
    let times = (nanos(source.started), nanos(SystemTime::now()));
    let metrics = samples.families.iter().map(|(name, family)| metric(name, family, times)).collect();
    let scope = InstrumentationScope { name: "tidegate".to_owned(), ..Default::default() };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..Default::default() }];
    let resource = Resource { attributes: attributes(&source.attributes), ..Default::default() };
    let resource_metrics =
        vec![ResourceMetrics { resource: Some(resource), scope_metrics, ..Default::default() }];
    ExportMetricsServiceRequest { resource_metrics }
}

fn metric(name: &str, family: &Family, times: (u64, u64)) -> Metric {
    let temporality = AggregationTemporality::Cumulative as i32;
    let numbers = || {
        let number = |(labels, sample): (&Vec<(String, String)>, &Sample)| match sample {
            Sample::Number(value) => Some(number(labels, *value, times)),
            Sample::Histogram(_) => None,
        };
        family.samples.iter().filter_map(number).collect()
    };
    let data = match family.kind {
        Kind::Counter => metric::Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality: temporality,
            is_monotonic: true,
        }),
        Kind::Gauge => metric::Data::Gauge(Gauge { data_points: numbers() }),
        Kind::Histogram => {
            let points = family.samples.iter().filter_map(|(labels, sample)| match sample {
                Sample::Histogram(state) => Some(histogram(labels, state, times)),
                Sample::Number(_) => None,
            });
            metric::Data::Histogram(Histogram {
                data_points: points.collect(),
                aggregation_temporality: temporality,
            })
        }
    };
    let unit = if name.contains('.') || name.ends_with("_seconds") { "s" } else { "" };
    Metric {
        name: name.to_owned(),
        unit: unit.to_owned(),
        description: family.help.clone(),
        data: Some(data),
        ..Default::default()
    }
}

fn number(labels: &[(String, String)], value: f64, (start, now): (u64, u64)) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..Default::default()
    }
}

fn histogram(
    labels: &[(String, String)],
    state: &HistogramState,
    (start, now): (u64, u64),
) -> HistogramDataPoint {
    HistogramDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count: state.counts.iter().sum(),
        sum: Some(state.sum),
        bucket_counts: state.counts.clone(),
        explicit_bounds: state.bounds.to_vec(),
        ..Default::default()
    }
}

/// The labels that are numbers in the semantic conventions; all labels of Prometheus are strings.
const NUMBERS: [&str; 1] = ["http.response.status_code"];

fn attributes(pairs: &[(String, String)]) -> Vec<KeyValue> {
    let attribute = |(key, value): &(String, String)| {
        let number = if NUMBERS.contains(&key.as_str()) { value.parse().ok() } else { None };
        let value =
            number.map_or_else(|| any_value::Value::StringValue(value.clone()), any_value::Value::IntValue);
        KeyValue { key: key.clone(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
    };
    pairs.iter().map(attribute).collect()
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_number_and_what_else_looks_like_one_is_not() {
        let pairs = [("http.response.status_code", "503"), ("error.type", "503")];
        let values = attributes(&pairs.map(|(key, value)| (key.to_owned(), value.to_owned())))
            .into_iter()
            .map(|attribute| attribute.value.and_then(|value| value.value))
            .collect::<Vec<_>>();
        let expected = [any_value::Value::IntValue(503), any_value::Value::StringValue("503".to_owned())];
        assert_eq!(values, expected.map(Some));
    }
}
