//! Figures of the HTTP server: how many requests, of which route and outcome, and how long they took.
//!
//! Labels come from closed sets: the router's own path templates, the methods it knows, five status classes.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use crate::app::App;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    route: String,
    method: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

/// The server's families.
#[derive(Debug, Clone)]
pub(crate) struct HttpMetrics {
    requests: Family<Outcome, Counter>,
    seconds: Family<Route, Histogram>,
    in_flight: Gauge,
}

/// Half a millisecond to half a minute: a status answer to a long wait.
fn latency() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0])
}

impl HttpMetrics {
    /// Registers the families.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(latency),
            in_flight: Gauge::default(),
        };
        registry.register(
            "aivillage_http_requests",
            "HTTP requests by route template, method and status class",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "aivillage_http_request",
            "Time from request head to answer head, by route template",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register(
            "aivillage_http_requests_in_flight",
            "HTTP requests whose answer has not begun",
            metrics.in_flight.clone(),
        );
        metrics
    }
}

fn method_label(method: &Method) -> &'static str {
    [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS]
        .iter()
        .zip(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
        .find(|(known, _)| *known == method)
        .map_or("other", |(_, label)| label)
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// Counts one up for as long as it lives, also when a request is dropped half way.
struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Middleware: counts and times.
pub(crate) async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let method = method_label(request.method());
    let metrics = &app.metrics;
    metrics.in_flight.inc();
    let in_flight = InFlight(metrics.in_flight.clone());
    let started = Instant::now();
    let response = next.run(request).await;
    drop(in_flight);
    let status = class(response.status());
    metrics.requests.get_or_create(&Outcome { route: route.clone(), method, status }).inc();
    metrics.seconds.get_or_create(&Route { route }).observe(started.elapsed().as_secs_f64());
    response
}
