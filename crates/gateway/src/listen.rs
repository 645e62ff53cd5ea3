//! Where a gateway may listen: what others can reach must be encrypted and closed to strangers.

use std::net::SocketAddr;

/// An address that would expose the gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{address} can be reached from other machines, but {lacks}: set {way_out}, listen on 127.0.0.1, or accept the risk with `gateway.allow_insecure: true`"
)]
pub struct ListenError {
    address: SocketAddr,
    lacks: &'static str,
    way_out: &'static str,
}

/// Checks a listener before it is bound. Loopback is always fine.
///
/// # Errors
/// What is missing on an address that is not loopback, unless `allow_insecure`.
pub fn check_listener(
    address: SocketAddr,
    tls: bool,
    require_authentication: bool,
    allow_insecure: bool,
) -> Result<(), ListenError> {
    if address.ip().to_canonical().is_loopback() || allow_insecure {
        return Ok(());
    }
    let (lacks, way_out) = match (tls, require_authentication) {
        (true, true) => return Ok(()),
        (false, true) => ("the listener has no TLS", "`gateway.tls`"),
        (true, false) => {
            ("strangers need no key", "`inference.privacy.require_authentication: true` (or ENVIRONMENT=production)")
        }
        (false, false) => (
            "the listener has no TLS and strangers need no key",
            "`gateway.tls` and `inference.privacy.require_authentication: true`",
        ),
    };
    Err(ListenError { address, lacks, way_out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_protected_listeners_may_be_reached_by_others() {
        let check =
            |address: &str, tls, auth, insecure| check_listener(address.parse().unwrap(), tls, auth, insecure).is_ok();
        for loopback in ["127.0.0.1:8000", "127.3.2.1:0", "[::1]:8000", "[::ffff:127.0.0.1]:1"] {
            assert!(check(loopback, false, false, false), "{loopback}");
        }
        for open in ["0.0.0.0:8000", "[::]:8000", "192.168.1.4:8000"] {
            assert!(!check(open, false, false, false), "{open}");
            assert!(!check(open, true, false, false), "{open}");
            assert!(!check(open, false, true, false), "{open}");
            assert!(check(open, true, true, false), "{open}");
            assert!(check(open, false, false, true), "{open}");
        }
    }

    #[test]
    fn the_refusal_names_what_to_set() {
        let error = check_listener("0.0.0.0:1".parse().unwrap(), false, false, false).unwrap_err().to_string();
        assert!(error.contains("gateway.tls") && error.contains("allow_insecure"), "{error}");
    }
}
