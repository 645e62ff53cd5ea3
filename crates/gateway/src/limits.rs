//! How much at once, and how often: 429 with `Retry-After` instead of a queue that grows.
//!
//! Two rates, each a virtual-scheduling leaky bucket (ITU-T I.371, "GCRA") of one number per caller, by the house's clock, so
//! that tests need no waiting: requests of a caller, if so configured, and wrong API keys of a host, always. Promise: a
//! request with a valid key is never held back by wrong ones, and memory is bounded whoever calls. Must not know: which
//! route is asked.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use aivillage_base::ErrorKind;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::app::App;
use crate::auth::{Principal, peer_ip};
use crate::problem::Problem;

/// Callers remembered at once; beyond, those whose bucket is full again are forgotten first.
const CALLERS_MAX: usize = 10_000;
/// Wrong keys that a host may send at once: a person who pastes the wrong line, or a script that does so in a small pool.
const WRONG_KEYS_BURST: u32 = 20;
/// Wrong keys a second of one host after that.
const WRONG_KEYS_PER_SECOND: u32 = 1;

/// The limits of one gateway.
#[derive(Debug)]
pub(crate) struct Limits {
    slots: Arc<Semaphore>,
    rate: Option<Rate>,
    wrong_keys: Rate,
}

impl Limits {
    /// At most `concurrent` requests at once and `per_second` of one caller (0 = any number).
    pub(crate) fn new(concurrent: usize, per_second: u32, burst: u32) -> Self {
        let rate = (per_second > 0).then(|| Rate::new(per_second, burst));
        let wrong_keys = Rate::new(WRONG_KEYS_PER_SECOND, WRONG_KEYS_BURST);
        Self { slots: Arc::new(Semaphore::new(concurrent)), rate, wrong_keys }
    }
}

/// A leaky bucket per caller.
#[derive(Debug)]
struct Rate {
    /// Microseconds that one request takes of the average.
    interval_us: u64,
    /// How far ahead of the average a caller may be, in microseconds.
    tolerance_us: u64,
    /// When the caller's next request would be on the average.
    due: Mutex<HashMap<String, u64>>,
}

impl Rate {
    fn new(per_second: u32, burst: u32) -> Self {
        let interval_us = 1_000_000 / u64::from(per_second.max(1));
        let tolerance_us = interval_us * u64::from(burst.max(1) - 1);
        Self { interval_us, tolerance_us, due: Mutex::new(HashMap::new()) }
    }

    /// Takes one request of `caller` at `now_us`; Err = microseconds until the next one may come.
    fn take(&self, caller: &str, now_us: u64) -> Result<(), u64> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if due.len() >= CALLERS_MAX && !due.contains_key(caller) {
            due.retain(|_, due| *due > now_us);
            if due.len() >= CALLERS_MAX {
                // All of them are busy: forgetting them is better than refusing everybody new.
                due.clear();
            }
        }
        let next = due.get(caller).copied().unwrap_or(0).max(now_us);
        if next > now_us + self.tolerance_us {
            return Err(next - now_us - self.tolerance_us);
        }
        due.insert(caller.to_owned(), next + self.interval_us);
        Ok(())
    }
}

/// Middleware: takes a slot and a share of the caller's rate.
pub(crate) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        // A gateway under load is alive: probes must not be told 429.
        return next.run(request).await;
    }
    if let Err(problem) = charge(&app, &request) {
        return problem.into_response();
    }
    let Ok(slot) = Arc::clone(&app.limits.slots).try_acquire_owned() else {
        return Problem::new(
            ErrorKind::Overloaded,
            "the gateway has as many requests in work as it takes: come back in a moment",
        )
        .into_response();
    };
    next.run(request).await.map(|body| Body::new(HeldBody { body, _slot: slot }))
}

/// Takes one request of its caller's rate; a caller without a key is its address.
///
/// # Errors
/// 429 with the time to wait.
fn charge(app: &App, request: &Request) -> Result<(), Problem> {
    let Some(rate) = &app.limits.rate else { return Ok(()) };
    let caller = match request.extensions().get::<Principal>() {
        Some(principal) if principal.id != "anonymous" => principal.id.clone(),
        Some(_) | None => peer_ip(request).map_or_else(String::new, |ip| ip.to_string()),
    };
    take(rate, &caller, app, "more requests than one caller may send: slow down")
}

/// Takes one wrong key of the request's host.
///
/// # Errors
/// 429 with the time to wait.
pub(crate) fn charge_wrong_key(app: &App, request: &Request) -> Result<(), Problem> {
    let host = peer_ip(request).map_or_else(String::new, host);
    let text = "too many wrong API keys from this address: check the key, and wait before the next try";
    take(&app.limits.wrong_keys, &host, app, text)
}

fn take(rate: &Rate, caller: &str, app: &App, text: &str) -> Result<(), Problem> {
    rate.take(caller, app.clock.now().monotonic_ms * 1000)
        .map_err(|wait_us| Problem::new(ErrorKind::Overloaded, text).retry_after(wait_us.div_ceil(1_000_000).max(1)))
}

/// What counts as one host: an IPv4 address, or an IPv6 network of 64 bits, all of whose addresses one machine may use.
fn host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).to_string(),
    }
}

/// A body that keeps its request's slot until it is sent: an open event stream still counts.
struct HeldBody {
    body: Body,
    _slot: OwnedSemaphorePermit,
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_average_counts() {
        let rate = Rate::new(10, 3);
        let results: Vec<_> = (0..4).map(|_| rate.take("a", 5_000_000).is_ok()).collect();
        assert_eq!(results, [true, true, true, false]);
        assert!(rate.take("b", 5_000_000).is_ok(), "another caller is not affected");
        let wait = rate.take("a", 5_000_000).unwrap_err();
        assert_eq!(wait, 100_000);
        assert!(rate.take("a", 5_000_000 + wait).is_ok());
        assert!(rate.take("a", 5_000_000 + wait).is_err());
    }

    #[test]
    fn all_addresses_of_an_ipv6_network_are_one_host() {
        let of = |text: &str| host(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    proptest! {
        #[test]
        fn no_more_than_the_burst_and_the_average_pass(gaps in proptest::collection::vec(0u64..3_000_000, 1..200)) {
            let rate = Rate::new(WRONG_KEYS_PER_SECOND, WRONG_KEYS_BURST);
            let (mut now_us, mut passed) = (7_000_000, 0);
            for gap in gaps {
                now_us += gap;
                match rate.take("a", now_us) {
                    Ok(()) => passed += 1,
                    Err(wait_us) => prop_assert!((1..=1_000_000).contains(&wait_us), "{wait_us}"),
                }
                let due = u64::from(WRONG_KEYS_BURST) + (now_us - 7_000_000) / 1_000_000;
                prop_assert!(passed <= due, "{passed} of {due}");
            }
        }
    }

    #[test]
    fn memory_stays_bounded_whoever_calls() {
        let rate = Rate::new(1, 1);
        for i in 0..(CALLERS_MAX * 2 + 5) {
            rate.take(&i.to_string(), 1).unwrap();
        }
        assert!(rate.due.lock().unwrap().len() <= CALLERS_MAX);
    }
}
