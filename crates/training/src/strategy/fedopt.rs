//! What the adaptive server optimisers have in common.
//!
//! Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2: with d the mean of the changes weighted by examples,
//! m(r) = beta_1 m(r-1) + (1 - beta_1) d,  v(r) by the member of the family,  w(r+1) = w(r) + rate m(r) / (sqrt(v(r)) + tau).
//! State: `first_moment` m and `second_moment` v, each as long as the model, zero at the start (Flower's choice; the
//! paper starts v at tau^2 or more).

use super::settings::Settings;
use super::{Block, narrow};

/// Names of the state: m and v.
pub(super) const SLOTS: &[&str] = &["first_moment", "second_moment"];

/// One step of all coordinates of a block; `second` makes v(r) of v(r-1) and d.
pub(super) fn step(block: &mut Block<'_, '_>, rate: f64, beta_1: f64, tau: f64, second: impl Fn(f64, f64) -> f64) {
    let [first_moment, second_moment] = block.state else { return };
    let moments = first_moment.iter_mut().zip(second_moment.iter_mut());
    for ((w, (m, v)), d) in block.weights.iter_mut().zip(moments).zip(block.direction) {
        let next_m = beta_1 * f64::from(*m) + (1.0 - beta_1) * d;
        let next_v = second(f64::from(*v), *d);
        *w = narrow(f64::from(*w) + rate * next_m / (next_v.sqrt() + tau));
        (*m, *v) = (narrow(next_m), narrow(next_v));
    }
}

impl Settings<'_> {
    /// `server_learning_rate`, 1e-9 to 1000.
    pub(super) fn server_learning_rate(&mut self, default: f64) -> f64 {
        self.number("server_learning_rate", 1e-9, 1000.0, default)
    }

    /// `eta`, the family's server learning rate, 1e-9 to 1000.
    pub(super) fn eta(&mut self, default: f64) -> f64 {
        self.number("eta", 1e-9, 1000.0, default)
    }

    /// A decay of a running mean, 0 to 0.999999.
    pub(super) fn decay(&mut self, key: &'static str, default: f64) -> f64 {
        self.number(key, 0.0, 0.999_999, default)
    }

    /// `tau`, the degree of adaptivity, 1e-12 to 1.
    pub(super) fn tau(&mut self) -> f64 {
        self.number("tau", 1e-12, 1.0, 1e-3)
    }
}
