//! Route matching.

use tidegate_http1::Request;
use tidegate_model::fleet::RouteMatch;

/// Whether a request satisfies all conditions of `route`.
pub fn matches(route: &RouteMatch, request: &Request) -> bool {
    let path = request.target.split('?').next().unwrap_or_default();
    route.path.as_ref().is_none_or(|exact| exact == path)
        && route.path_prefix.as_ref().is_none_or(|prefix| is_at_or_below(path, prefix))
        && (route.methods.is_empty() || route.methods.iter().any(|method| method == request.method.as_str()))
        && route.headers.iter().all(|(name, value)| header_is(request, name, value))
}

fn header_is(request: &Request, name: &str, value: &str) -> bool {
    if name == "host" {
        return request.host == value;
    }
    request.fields.get_all(name.as_bytes()).any(|found| found == value.as_bytes())
}

/// Whether `path` is `prefix` or below it, by whole segments: `/api` matches `/api` and `/api/x`, not `/apix`.
fn is_at_or_below(path: &str, prefix: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_whole_segments() {
        for (path, prefix, holds) in [
            ("/api", "/api", true),
            ("/api/x", "/api", true),
            ("/apix", "/api", false),
            ("/anything", "/", true),
            ("/api/x", "/api/", true),
            ("/api", "/api/", false),
        ] {
            assert_eq!(is_at_or_below(path, prefix), holds, "{path} below {prefix}");
        }
    }

    #[test]
    fn all_that_a_route_asks_for_must_hold() {
        let mut request = Request { target: "/api?x=/y".into(), ..Request::default() };
        request.fields.push(b"x-canary", b"1");
        let mut route = RouteMatch { path: Some("/api".into()), ..RouteMatch::default() };
        assert!(matches(&route, &request));
        route.headers.insert("x-canary".into(), "1".into());
        assert!(matches(&route, &request));
        route.methods.push("POST".into());
        assert!(!matches(&route, &request));
    }
}
