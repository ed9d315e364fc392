//! What became of requests.

use std::{collections::BTreeMap, time::Duration};

use tidegate_model::Timestamp;

/// A request's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// May be repeated.
    Get,
    /// May not.
    Post,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// By an answer.
    Answered {
        /// Its status.
        status: u16,
        /// Who answered, where it was an origin.
        origin: Option<String>,
    },
    /// Without one, and why.
    Broken(String),
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its method.
    pub method: Method,
    /// When it was due.
    pub due_at: Timestamp,
    /// From then to the end of its answer.
    pub latency: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// The id that the edge gave it, where it was answered.
    pub id: Option<String>,
}

impl Record {
    /// Whether it got a 2xx.
    pub fn is_answered(&self) -> bool {
        matches!(self.outcome, Outcome::Answered { status: 200..=299, .. })
    }

    /// When its answer ended.
    pub fn ended_at(&self) -> Timestamp {
        self.due_at.plus(self.latency)
    }

    /// Which origin answered.
    pub fn origin(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Answered { origin, .. } => origin.as_deref(),
            Outcome::Broken(_) => None,
        }
    }
}

/// Many requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// All of them.
    pub requests: usize,
    /// GETs without a 2xx.
    pub failed_get: usize,
    /// POSTs without a 2xx.
    pub failed_post: usize,
    /// GETs that took longer than half a second.
    pub slow_get: usize,
    /// The slowest GET.
    pub worst_get: Duration,
    /// 2xx answers by origin.
    pub answers: BTreeMap<String, usize>,
    /// How GETs failed, with how many did so.
    pub get_failures: BTreeMap<String, usize>,
}

/// A GET that takes longer is slow.
pub const SLOW: Duration = Duration::from_millis(500);

impl Summary {
    /// What became of these requests.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Summary {
        let mut summary = Summary::default();
        for record in records {
            summary.requests += 1;
            let answered = record.is_answered();
            if let (true, Some(origin)) = (answered, record.origin()) {
                *summary.answers.entry(origin.to_owned()).or_default() += 1;
            }
            match record.method {
                Method::Get => {
                    summary.failed_get += usize::from(!answered);
                    summary.slow_get += usize::from(record.latency > SLOW);
                    summary.worst_get = summary.worst_get.max(record.latency);
                    if !answered {
                        *summary.get_failures.entry(format!("{:?}", record.outcome)).or_default() += 1;
                    }
                }
                Method::Post => summary.failed_post += usize::from(!answered),
            }
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(method: Method, latency_ms: u64, status: u16) -> Record {
        let outcome = Outcome::Answered { status, origin: Some("a".to_owned()) };
        Record { method, due_at: Timestamp(1), latency: Duration::from_millis(latency_ms), outcome, id: None }
    }

    #[test]
    fn only_a_2xx_is_an_answer_and_only_gets_are_slow() {
        let records = [
            record(Method::Get, 3, 200),
            record(Method::Get, 501, 204),
            record(Method::Get, 7, 503),
            record(Method::Post, 900, 200),
            record(Method::Post, 9, 500),
            Record { outcome: Outcome::Broken("reset".to_owned()), ..record(Method::Get, 1, 0) },
        ];
        let summary = Summary::of(&records);
        assert_eq!((summary.requests, summary.failed_get, summary.failed_post), (6, 2, 1));
        assert_eq!((summary.slow_get, summary.worst_get), (1, Duration::from_millis(501)));
        assert_eq!(summary.answers["a"], 3);
    }
}
