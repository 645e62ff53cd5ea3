//! Places for connections that have shown no certificate: so many in all, so many of one host.
//!
//! Promise: no host takes all places, a place is free again when its visit ends, and what is remembered is no more than
//! the hosts that hold one. Must not know: TLS, routes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places of one host: a quarter of the default pool. A node is a stranger only until its handshake is over, some
/// milliseconds, so many nodes behind one address (a classroom, NAT) pass through these one after the other; the client's
/// jittered back-off spreads those that come at the same moment. A host that keeps its places leaves three quarters.
pub(super) const HOST_MAX: usize = 16;

/// The pool of places.
#[derive(Debug)]
pub(super) struct Strangers {
    places: Arc<Semaphore>,
    hosts: Arc<Hosts>,
}

#[derive(Debug, Default)]
struct Hosts {
    visits: Mutex<HashMap<IpAddr, usize>>,
}

impl Hosts {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place for whoever comes next.
#[derive(Debug)]
pub(super) struct Place {
    permit: OwnedSemaphorePermit,
    hosts: Arc<Hosts>,
}

/// A place that a host holds until this is dropped.
#[derive(Debug)]
pub(super) struct Visit {
    _permit: OwnedSemaphorePermit,
    hosts: Arc<Hosts>,
    host: IpAddr,
}

impl Strangers {
    /// `places` in all.
    pub(super) fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), hosts: Arc::default() }
    }

    /// Waits for a free place.
    pub(super) async fn place(&self) -> Place {
        let permit = self.places.clone().acquire_owned().await.expect("invariant: the semaphore is never closed");
        Place { permit, hosts: self.hosts.clone() }
    }
}

impl Place {
    /// Gives the place to a connection from `address`; the place comes back if its host holds [`HOST_MAX`] already.
    pub(super) fn take(self, address: IpAddr) -> Result<Visit, Self> {
        let host = host(address);
        {
            let mut visits = self.hosts.lock();
            let held = visits.entry(host).or_default();
            if *held >= HOST_MAX {
                drop(visits);
                return Err(self);
            }
            *held += 1;
        }
        Ok(Visit { _permit: self.permit, hosts: self.hosts, host })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut visits = self.hosts.lock();
        if let Some(held) = visits.get_mut(&self.host) {
            *held -= 1;
            if *held == 0 {
                visits.remove(&self.host);
            }
        }
    }
}

/// What counts as one host: an IPv4 address, or the 64 bits of an IPv6 network, because one machine may use all
/// addresses of such a network (RFC 4291, section 2.5.4; RFC 8981).
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(host: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, host])
    }

    #[test]
    fn one_ipv6_network_is_one_host_and_a_mapped_address_is_its_ipv4_one() {
        let at = |text: &str| host(text.parse().unwrap());
        assert_eq!(at("2001:db8:1:2:3:4:5:6"), at("2001:db8:1:2:ffff::1"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    proptest! {
        #[test]
        fn a_host_never_holds_more_than_its_share_and_nothing_is_left_behind(
            steps in proptest::collection::vec((0u8..3, any::<bool>()), 1..200),
        ) {
            let strangers = Strangers::new(1_000);
            let mut held: HashMap<u8, Vec<Visit>> = HashMap::new();
            for (host, comes) in steps {
                let visits = held.entry(host).or_default();
                if !comes {
                    visits.pop();
                    continue;
                }
                let permit = strangers.places.clone().try_acquire_owned().unwrap();
                let place = Place { permit, hosts: strangers.hosts.clone() };
                match place.take(address(host)) {
                    Ok(visit) => visits.push(visit),
                    Err(_) => prop_assert_eq!(visits.len(), HOST_MAX),
                }
                prop_assert!(visits.len() <= HOST_MAX);
            }
            drop(held);
            prop_assert!(strangers.hosts.lock().is_empty());
            prop_assert_eq!(strangers.places.available_permits(), 1_000);
        }
    }
}
