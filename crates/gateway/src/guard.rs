//! Against DNS rebinding: a web page must not reach the gateway through a name it controls.
//!
//! A page on `evil.example` can make that name point to 127.0.0.1; its requests then carry `Host: evil.example`. So the
//! gateway answers only under names that nobody else can point: loopback names, IP addresses, and names the operator
//! listed. A request that says it comes from a page (`Origin`) is served only if the page is the gateway's own or listed.

use std::net::IpAddr;
use std::sync::Arc;

use aivillage_base::ErrorKind;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{HOST, ORIGIN};

use crate::app::App;
use crate::config::GatewayConfig;
use crate::problem::Problem;

/// The host of `host[:port]`, lower case, without brackets and final dot.
fn host_name(authority: &str) -> Option<String> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    (!host.is_empty()).then(|| host.to_ascii_lowercase())
}

fn is_ours(host: &str, config: &GatewayConfig) -> bool {
    host == "localhost"
        || host.parse::<IpAddr>().is_ok()
        || config.allowed_hosts.iter().any(|allowed| host_name(allowed).is_some_and(|allowed| allowed == host))
}

fn check(request: &Request, config: &GatewayConfig) -> Result<(), Problem> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = hosts.next().and_then(|v| v.to_str().ok());
    if hosts.next().is_some() {
        // RFC 9112, section 3.2: whoever stands between may have believed the other one.
        return Err(Problem::new(ErrorKind::Invalid, "the request has more than one Host header"));
    }
    // HTTP/2 carries the host as :authority, which hyper puts into the URI.
    let authority = request.uri().authority().map(http::uri::Authority::as_str).or(header);
    let Some(authority) = authority else {
        return Err(Problem::new(ErrorKind::Invalid, "the request has no readable Host header"));
    };
    let host = host_name(authority).filter(|host| is_ours(host, config)).ok_or_else(|| {
        Problem::misdirected(
            "the Host header names no host of this gateway: use its address, or list the name in `gateway.allowed_hosts`",
        )
    })?;
    let Some(origin) = request.headers().get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("");
    let listed = config.cors_origins.iter().any(|o| o.trim_end_matches('/').eq_ignore_ascii_case(origin));
    let own = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"))
        .is_some_and(|page| page.eq_ignore_ascii_case(authority) && host_name(page).as_deref() == Some(&host));
    if listed || own {
        return Ok(());
    }
    Err(Problem::new(
        ErrorKind::Forbidden,
        "pages of this origin may not call the gateway: list it in `gateway.cors_origins`",
    ))
}

/// Middleware: refuses requests under foreign names (421) and from foreign pages (403).
pub(crate) async fn check_names(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match check(&request, &app.config) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, origin: Option<&str>) -> u16 {
        let config = GatewayConfig {
            allowed_hosts: vec!["village.example".into()],
            cors_origins: vec!["https://dash.example".into()],
            ..GatewayConfig::default()
        };
        let mut request = http::Request::builder().uri("/").header(HOST, host);
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        super::check(&request, &config).map_or_else(|p| p.status().as_u16(), |()| 200)
    }

    #[test]
    fn own_names_and_addresses_are_served() {
        for host in [
            "localhost:8000",
            "LOCALHOST",
            "127.0.0.1:1",
            "[::1]:8000",
            "192.168.0.7:8000",
            "village.example",
            "village.example.:80",
        ] {
            assert_eq!(check(host, None), 200, "{host}");
        }
    }

    #[test]
    fn foreign_names_are_not() {
        for host in ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b"]
        {
            assert_ne!(check(host, None), 200, "{host}");
        }
    }

    #[test]
    fn two_hosts_are_none() {
        let request = http::Request::builder().uri("/").header(HOST, "localhost").header(HOST, "evil.example");
        let request = request.body(axum::body::Body::empty()).unwrap();
        assert_eq!(super::check(&request, &GatewayConfig::default()).unwrap_err().status(), 400);
    }

    #[test]
    fn pages_need_to_be_our_own_or_listed() {
        assert_eq!(check("127.0.0.1:8000", Some("http://127.0.0.1:8000")), 200);
        assert_eq!(check("127.0.0.1:8000", Some("https://dash.example")), 200);
        for origin in ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8000", ""] {
            assert_eq!(check("127.0.0.1:8000", Some(origin)), 403, "{origin}");
        }
    }
}
