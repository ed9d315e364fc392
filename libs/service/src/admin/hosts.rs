//! The host names that the admin listener accepts.
//!
//! A page in an operator's browser can make a name of its own resolve to this listener's address and then read its responses
//! (DNS rebinding). Its requests carry that name. Addresses and `localhost` can't be rebound; a name without a dot is one of a
//! private network (a service of Docker Compose, a host in `/etc/hosts`), which no outsider can register.

use std::net::Ipv6Addr;

use hyper::{Request, header};

/// Whether a request is for an address, a local name, or one of `allowed`. A request without a host comes from no browser.
pub fn is_allowed<B>(request: &Request<B>, allowed: &[String]) -> bool {
    if let Some(authority) = request.uri().authority() {
        return is_own(authority.host(), allowed);
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => true,
        (Some(host), None) => host.to_str().is_ok_and(|host| is_own(without_port(host), allowed)),
        (Some(_), Some(_)) => false,
    }
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.split(':').next().unwrap_or(host)
}

fn is_own(host: &str, allowed: &[String]) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    !host.is_empty()
        && (!host.contains('.')
            || host.ends_with(".localhost")
            || host.parse::<std::net::Ipv4Addr>().is_ok()
            || allowed.iter().map(|name| name.to_ascii_lowercase()).any(|name| {
                match name.strip_prefix("*.") {
                    Some(suffix) => {
                        host.strip_suffix(suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
                    }
                    None => name == host,
                }
            }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed_host(host: &str) -> bool {
        let allowed = ["metrics.example.com".to_owned(), "*.cluster.local".to_owned()];
        let request = Request::builder().uri("/").header("host", host).body(()).unwrap();
        is_allowed(&request, &allowed)
    }

    #[test]
    fn addresses_local_names_and_listed_ones_are_its_own() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9100",
            "[::1]:9100",
            "[2001:db8::1]",
            "localhost:9100",
            "edge-us:9100",
            "a.localhost",
            "metrics.example.com:9100",
            "Metrics.Example.com.",
            "edge.tidegate.svc.cluster.local",
        ] {
            assert!(is_allowed_host(host), "{host}");
        }
        let without = Request::builder().uri("/").body(()).unwrap();
        assert!(is_allowed(&without, &[]));
    }

    #[test]
    fn a_name_that_somebody_could_register_is_not() {
        for host in [
            "evil.test",
            "evil.test:9100",
            "127.0.0.1.evil.test",
            "localhost.evil.test",
            "cluster.local",
            ".cluster.local",
            "xcluster.local",
            "example.com",
            "[evil.test]",
            "[::1",
            "",
            ":80",
        ] {
            assert!(!is_allowed_host(host), "{host}");
        }
        let absolute =
            Request::builder().uri("http://evil.test/").header("host", "localhost").body(()).unwrap();
        assert!(!is_allowed(&absolute, &[]));
        let twice =
            Request::builder().header("host", "localhost").header("host", "localhost").body(()).unwrap();
        assert!(!is_allowed(&twice, &[]));
    }
}
