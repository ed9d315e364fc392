//! The index from hosts to services.

use std::{borrow::Cow, collections::HashMap};

use tidegate_http1::without_port;
use tidegate_model::{ServiceName, fleet::HostPattern};

/// Hosts and their services. Exact names take precedence over wildcards, longer wildcards over shorter ones.
#[derive(Default)]
pub struct HostIndex {
    exact: HashMap<String, ServiceName>,
    below: HashMap<String, ServiceName>,
    any: Option<ServiceName>,
}

impl HostIndex {
    /// Sets the host patterns of `service`.
    pub fn set(&mut self, service: &ServiceName, patterns: &[HostPattern]) {
        self.exact.retain(|_, owner| owner != service);
        self.below.retain(|_, owner| owner != service);
        self.any.take_if(|owner| owner == service);
        for pattern in patterns {
            match pattern {
                HostPattern::Exact(host) => {
                    self.exact.insert(host.clone(), service.clone());
                }
                HostPattern::Below(suffix) => {
                    self.below.insert(suffix.clone(), service.clone());
                }
                HostPattern::Any => self.any = Some(service.clone()),
            }
        }
    }

    /// The service for `host`, which may include a port.
    pub fn service_for(&self, host: &str) -> Option<&ServiceName> {
        let host = without_port(host);
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        if let Some(service) = self.exact.get(host.as_ref()) {
            return Some(service);
        }
        if !self.below.is_empty() {
            let mut rest = host.as_ref();
            while let Some((_, suffix)) = rest.split_once('.') {
                if let Some(service) = self.below.get(suffix) {
                    return Some(service);
                }
                rest = suffix;
            }
        }
        self.any.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_pattern_wins() {
        let mut hosts = HostIndex::default();
        for (pattern, service) in [
            ("*", "any"),
            ("*.example.com", "wide"),
            ("*.b.example.com", "narrow"),
            ("a.example.com", "exact"),
        ] {
            hosts.set(&service.parse().unwrap(), &[pattern.parse().unwrap()]);
        }
        for (host, service) in [
            ("a.example.com", "exact"),
            ("A.Example.com:8080", "exact"),
            ("a.example.com.", "exact"),
            ("x.example.com", "wide"),
            ("x.y.b.example.com", "narrow"),
            ("example.com", "any"),
            ("[::1]:80", "any"),
        ] {
            assert_eq!(hosts.service_for(host).unwrap().as_str(), service, "{host}");
        }
        hosts.set(&"any".parse().unwrap(), &[]);
        assert_eq!(hosts.service_for("other.org"), None);
    }
}
