//! Reads the metrics that a process shows.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::Context as _;

use crate::client;

/// What a process showed at one moment.
#[derive(Debug, Clone, Default)]
pub struct Metrics(String);

impl Metrics {
    /// Reads them from an admin listener.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn read(admin: SocketAddr) -> anyhow::Result<Metrics> {
        let answer = client::get(admin, "admin", "/metrics").await?;
        anyhow::ensure!(answer.status().is_success(), "/metrics answered {}", answer.status());
        let text = String::from_utf8(answer.into_body().into()).context("metrics are text")?;
        Ok(Metrics(text))
    }

    /// The sum of all samples of `name` whose labels contain all of `labels` (`cluster="a"`); 0 when there are none.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.0
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The names of all metrics, each without what its series add to it (`_bucket`, `_sum`, `_count`).
    pub fn names(&self) -> BTreeSet<&str> {
        let typed = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        typed.filter_map(|rest| rest.split(' ').next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_label() {
        let metrics = Metrics("a_total{c=\"x\"} 1\na_total{c=\"y\"} 2\na_total_more 8\nb 4\n".to_owned());
        assert_eq!(metrics.sum("a_total", &[]), 3.0);
        assert_eq!(metrics.sum("a_total", &["c=\"y\""]), 2.0);
        assert_eq!(metrics.sum("b", &[]), 4.0);
        assert_eq!(metrics.sum("none", &[]), 0.0);
    }
}
