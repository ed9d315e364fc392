//! Local replies where no endpoint's response can be relayed.

use rand::RngExt as _;
use tidegate_http1::{Framing, Method};
use tidegate_model::observation::Failure;

use super::{
    attempts::RequestFailure, local_reply::LocalReply, max_forwards, request_context::RequestContext,
};
use crate::{metrics::RefusalReason, wire::BodyError};

impl RequestContext<'_> {
    /// Refuses a request whose method or size is not allowed, or whose service is over capacity. Counts and returns the
    /// local reply.
    pub fn refuse_request(&self) -> Option<LocalReply> {
        if matches!(self.request.method, Method::Connect) {
            return Some(
                LocalReply::new(405, "CONNECT is not supported").with_field("allow", max_forwards::ALLOWED),
            );
        }
        match max_forwards::local_reply(self.request) {
            Ok(None) => {}
            Ok(Some(reply)) => return Some(reply),
            Err(error) => {
                self.worker.counters.refused.count(error);
                return Some(LocalReply::new(error.status(), error.to_string()));
            }
        }
        if let (Framing::Length(length), Some(most)) = (self.framing, self.service.max_request_body)
            && length > most
        {
            return Some(too_large(most));
        }
        let shed = self.action.shed_permille;
        if shed > 0 && self.worker.random.borrow_mut().random_range(0..1000) < shed {
            self.service.counters.shed.add(1);
            return Some(LocalReply::new(503, "over capacity, retry later").with_field("retry-after", "1"));
        }
        None
    }

    /// The local reply when no endpoint responded; nothing if the client has gone.
    pub fn reply_to(&self, failure: RequestFailure) -> Option<LocalReply> {
        Some(match failure {
            RequestFailure::NoEndpoint => {
                self.service.counters.no_endpoint.add(1);
                LocalReply::new(503, "no cluster can take this request now").with_field("retry-after", "1")
            }
            RequestFailure::NoConnection => LocalReply::new(503, "this edge has no upstream connection left")
                .with_field("retry-after", "1"),
            RequestFailure::Failed(Failure::NoResponse | Failure::ConnectTimeout) => {
                LocalReply::new(504, "no response from the cluster")
            }
            RequestFailure::Failed(failure) => LocalReply::new(502, format!("the cluster failed: {failure}")),
            RequestFailure::SlowClient => LocalReply::new(408, "the request's body took too long"),
            RequestFailure::Deadline => LocalReply::new(504, "no response within the service's timeout"),
            RequestFailure::Unrepresentable => {
                self.worker.counters.refused.count(RefusalReason::Target);
                LocalReply::new(400, "malformed request target or host")
            }
            RequestFailure::Client(BodyError::TooLarge) => {
                too_large(self.service.max_request_body.unwrap_or(0))
            }
            RequestFailure::Client(BodyError::Malformed(error)) => {
                self.worker.counters.refused.count(RefusalReason::Body);
                LocalReply::new(400, error.to_string())
            }
            RequestFailure::Client(BodyError::Io(_) | BodyError::Http2(_)) => {
                self.service.counters.client_gone.add(1);
                return None;
            }
        })
    }
}

fn too_large(most: u64) -> LocalReply {
    LocalReply::new(413, format!("the request's body is larger than {most} bytes"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn troubleshooting_quotes_the_local_replies_as_they_are() {
        let page = include_str!("../../../../docs/troubleshooting.md");
        let sources = [include_str!("refusals.rs"), include_str!("request.rs")].concat();
        let quotes = page.lines().filter_map(|line| {
            let (status, rest) = line.strip_prefix("| ")?.split_once(" `")?;
            status.parse::<u16>().ok()?;
            rest.split_once('`').map(|(quote, _)| quote)
        });
        let unknown: Vec<&str> =
            quotes.clone().filter(|quote| !sources.contains(&format!("\"{quote}"))).collect();
        assert!(quotes.count() > 5 && unknown.is_empty(), "{unknown:?}");
    }
}
