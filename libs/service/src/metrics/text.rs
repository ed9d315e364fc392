//! Prometheus' text format, version 0.0.4.

use std::{borrow::Cow, fmt::Write};

use super::{HistogramState, Kind, Sample, Samples};

/// The metrics as text.
pub(crate) fn render(samples: &Samples) -> String {
    let mut text = String::with_capacity(16 * 1024);
    for (name, family) in &samples.families {
        let name = &*told(name);
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = family.help.replace('\\', r"\\").replace('\n', r"\n");
        // Writing to a String can't fail.
        _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, sample) in &family.samples {
            match sample {
                Sample::Number(value) => line(&mut text, name, "", labels, None, *value),
                Sample::Histogram(state) => histogram(&mut text, name, labels, state),
            }
        }
    }
    text
}

/// A metric's name as Prometheus takes it: those with dots are OpenTelemetry's, and all in seconds.
fn told(name: &str) -> Cow<'_, str> {
    if name.contains('.') { format!("{}_seconds", name.replace('.', "_")).into() } else { name.into() }
}

fn histogram(text: &mut String, name: &str, labels: &[(String, String)], state: &HistogramState) {
    let mut sum = 0;
    let bounds = state.bounds.iter().map(|bound| number(*bound)).chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(&state.counts) {
        sum += count;
        line(text, name, "_bucket", labels, Some(&bound), sum as f64);
    }
    line(text, name, "_sum", labels, None, state.sum);
    line(text, name, "_count", labels, None, sum as f64);
}

fn line(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &[(String, String)],
    le: Option<&str>,
    value: f64,
) {
    text.push_str(name);
    text.push_str(suffix);
    let le = le.map(|le| ("le", le));
    let labels = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(le);
    let mut open = '{';
    for (label, value) in labels {
        let label =
            if label.contains('.') { Cow::Owned(label.replace('.', "_")) } else { Cow::Borrowed(label) };
        let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        _ = write!(text, "{open}{label}=\"{value}\"");
        open = ',';
    }
    if open == ',' {
        text.push('}');
    }
    _ = writeln!(text, " {}", number(value));
}

fn number(value: f64) -> String {
    if value == f64::INFINITY {
        "+Inf".to_owned()
    } else if value == f64::NEG_INFINITY {
        "-Inf".to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use crate::Registry;

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        let registry = Registry::default();
        registry.counter("a_total", "With \\ and\nlines.", &[("path", "\"x\"\n")]).add(3);
        registry.gauge("b", "A gauge.", &[]).set(-0.5);
        let histogram = registry.histogram("c_seconds", "A histogram.", &[("k", "v")], &[0.1, 1.0]);
        [0.05, 0.1, 0.5, 7.0].into_iter().for_each(|value| histogram.observe(value));

        let expected = r#"# HELP a_total With \\ and\nlines.
# TYPE a_total counter
a_total{path="\"x\"\n"} 3
# HELP b A gauge.
# TYPE b gauge
b -0.5
# HELP c_seconds A histogram.
# TYPE c_seconds histogram
c_seconds_bucket{k="v",le="0.1"} 2
c_seconds_bucket{k="v",le="1"} 3
c_seconds_bucket{k="v",le="+Inf"} 4
c_seconds_sum{k="v"} 7.65
c_seconds_count{k="v"} 4
"#;
        assert_eq!(registry.to_text(), expected);
    }

    #[test]
    fn names_of_the_conventions_are_written_as_prometheus_takes_them() {
        let registry = Registry::default();
        registry.histogram("http.x.duration", "H.", &[("http.route", "/")], &[1.0]).observe(0.5);
        assert!(registry.to_text().contains("http_x_duration_seconds_count{http_route=\"/\"} 1\n"));
    }

    #[test]
    fn what_workers_count_apart_is_added_up() {
        let registry = Registry::default();
        for count in [2.0, 3.0] {
            registry.collect(move |samples| samples.counter("a_total", "A.", &[("x", "y")], count));
        }
        assert!(registry.to_text().contains("a_total{x=\"y\"} 5\n"));
    }
}
