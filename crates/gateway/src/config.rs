//! What the gateway can be told; the binary fills it from the configuration file.

use std::path::PathBuf;
use std::time::Duration;

/// Limits, names and rules of one gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// True closes anonymous access: every route but the probes needs a key.
    pub require_authentication: bool,
    /// True permits a listener that others can reach without TLS or without authentication.
    pub allow_insecure: bool,
    /// True answers `/metrics` and `GET status` without a key.
    pub public_metrics: bool,
    /// False: `/metrics` answers 404.
    pub export_metrics: bool,
    /// False: the routes of `inference/*` are not mounted and answer 404 (`inference.integration.gateway_integration`).
    pub mount_inference: bool,
    /// Host names, besides loopback and IP addresses, under which this gateway answers.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may call this gateway, e.g. `https://dash.example`; none by default.
    pub cors_origins: Vec<String>,
    /// Longest JSON body, in bytes.
    pub max_body_bytes: usize,
    /// Longest model bundle, in bytes.
    pub max_model_bytes: u64,
    /// Longest time for a request's headers, also between two requests of one connection.
    pub header_timeout: Duration,
    /// Most connections at once; beyond, new ones wait in the kernel's queue.
    pub max_connections: usize,
    /// Most requests in work at once; beyond = 429. Event streams count while they are open.
    pub max_concurrent_requests: usize,
    /// Requests a second of one key (or one anonymous address), averaged; 0 = no limit.
    pub rate_limit_per_second: u32,
    /// How many requests may come at once before the average counts, at least 1.
    pub rate_limit_burst: u32,
    /// How long an answer is kept for its Idempotency-Key.
    pub idempotency_retention: Duration,
    /// Most answers kept; the oldest go first.
    pub idempotency_entries_max: usize,
    /// Longest wait that `?wait=` may ask for.
    pub wait_max: Duration,
    /// Pause between two signs of life on an event stream.
    pub sse_heartbeat: Duration,
    /// Longest time that open requests get to finish when the gateway stops.
    pub drain: Duration,
    /// Certificate and key of the listener, PEM.
    pub tls: Option<TlsFiles>,
}

/// Where a listener's certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, leaf first, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM (PKCS#8, SEC1 or PKCS#1).
    pub key: PathBuf,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            require_authentication: false,
            allow_insecure: false,
            public_metrics: false,
            export_metrics: true,
            mount_inference: true,
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            max_body_bytes: 8 << 20,
            max_model_bytes: 1 << 30,
            header_timeout: Duration::from_secs(10),
            max_connections: 1024,
            max_concurrent_requests: 1024,
            rate_limit_per_second: 0,
            rate_limit_burst: 200,
            idempotency_retention: Duration::from_secs(24 * 3600),
            idempotency_entries_max: 10_000,
            wait_max: Duration::from_secs(60),
            sse_heartbeat: Duration::from_secs(15),
            drain: Duration::from_secs(25),
            tls: None,
        }
    }
}
