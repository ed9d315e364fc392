//! Metrics: collected on request, from wherever a service keeps them.
//!
//! A hot path keeps its own cells (per worker, without sharing) and registers a closure that adds them up. The registry
//! is shown as Prometheus text by the admin listener and sent by OTLP where that is on.
//!
//! A metric of OpenTelemetry's semantic conventions has its name from there, with dots (`http.server.request.duration`, a
//! histogram in seconds); Prometheus sees it as `http_server_request_duration_seconds`, as OpenTelemetry advises.

mod cells;
pub(crate) mod otlp;
mod process;
mod text;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

pub use cells::{Counter, Gauge, Histogram};
pub use process::observe_process;
pub(crate) use text::render;

/// The metrics of a process. Clones share them.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Vec<Collector>>>);

type Collector = Arc<dyn Fn(&mut Samples) + Send + Sync>;

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let collectors = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "Registry({collectors} collectors)")
    }
}

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

/// A histogram's state.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramState {
    /// The buckets' upper bounds, ascending; one more bucket has none.
    pub bounds: Arc<[f64]>,
    /// The observations in each bucket (not cumulative): one more than there are bounds.
    pub counts: Vec<u64>,
    /// The sum of all observations.
    pub sum: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Sample {
    Number(f64),
    Histogram(HistogramState),
}

type Labels = Vec<(String, String)>;

#[derive(Debug)]
pub(crate) struct Family {
    pub kind: Kind,
    pub help: String,
    pub samples: BTreeMap<Labels, Sample>,
}

/// The samples that collectors add to. Numbers and histograms of equal names and labels are summed, so that each worker may
/// add its own.
#[derive(Debug, Default)]
pub struct Samples {
    pub(crate) families: BTreeMap<String, Family>,
}

impl Registry {
    /// Adds a collector, which is called at each collection. It must not block.
    pub fn collect(&self, collector: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(collector));
    }

    /// Adds a counter. Its name ends with `_total`.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Counter {
        let (counter, labels) = (Counter::default(), owned(labels));
        let cell = counter.clone();
        self.collect(move |samples| {
            samples.add(name, help, Kind::Counter, labels.clone(), Sample::Number(cell.get() as f64));
        });
        counter
    }

    /// Adds a gauge.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        let (gauge, labels) = (Gauge::default(), owned(labels));
        let cell = gauge.clone();
        self.collect(move |samples| {
            samples.add(name, help, Kind::Gauge, labels.clone(), Sample::Number(cell.get()));
        });
        gauge
    }

    /// Adds a histogram with the upper bounds of its buckets, ascending.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        bounds: &[f64],
    ) -> Histogram {
        let (histogram, labels) = (Histogram::new(bounds), owned(labels));
        let cell = histogram.clone();
        self.collect(move |samples| {
            samples.add(name, help, Kind::Histogram, labels.clone(), Sample::Histogram(cell.state()));
        });
        histogram
    }

    /// All metrics now.
    pub fn samples(&self) -> Samples {
        let collectors = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut samples = Samples::default();
        collectors.iter().for_each(|collect| collect(&mut samples));
        samples
    }

    /// All metrics now, as Prometheus text.
    pub fn to_text(&self) -> String {
        render(&self.samples())
    }
}

impl Samples {
    /// Adds a counter's value. Its name ends with `_total`.
    pub fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.add(name, help, Kind::Counter, owned(labels), Sample::Number(value));
    }

    /// Adds a gauge's value.
    pub fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.add(name, help, Kind::Gauge, owned(labels), Sample::Number(value));
    }

    /// Adds a histogram's state.
    pub fn histogram(&mut self, name: &str, help: &str, labels: &[(&str, &str)], state: HistogramState) {
        self.add(name, help, Kind::Histogram, owned(labels), Sample::Histogram(state));
    }

    fn add(&mut self, name: &str, help: &str, kind: Kind, labels: Labels, sample: Sample) {
        debug_assert!(is_name(name), "{name:?} is not a metric's name");
        let family = self.families.entry(name.to_owned()).or_insert_with(|| Family {
            kind,
            help: help.to_owned(),
            samples: BTreeMap::new(),
        });
        debug_assert_eq!(family.kind, kind, "{name} has two kinds");
        if family.kind != kind {
            return;
        }
        match (family.samples.get_mut(&labels), sample) {
            (None, sample) => _ = family.samples.insert(labels, sample),
            (Some(Sample::Number(sum)), Sample::Number(value)) => *sum += value,
            (Some(Sample::Histogram(sum)), Sample::Histogram(state)) if sum.bounds == state.bounds => {
                sum.sum += state.sum;
                sum.counts.iter_mut().zip(state.counts).for_each(|(sum, count)| *sum += count);
            }
            (Some(_), _) => debug_assert!(false, "{name} has two sets of buckets"),
        }
    }
}

fn owned(labels: &[(&str, &str)]) -> Labels {
    let mut labels: Labels =
        labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    labels.sort_unstable();
    labels
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = |b: u8| b.is_ascii_alphabetic() || b == b'_' || b == b':';
    bytes.next().is_some_and(first) && bytes.all(|b| first(b) || b == b'.' || b.is_ascii_digit())
}
