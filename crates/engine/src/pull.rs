//! What strategies add to a gradient: a pull towards an anchor, and a fixed correction.
//!
//! g <- g + strength (w - anchor) + correction. FedProx's proximal term (mu, the received model) and Ditto's (lambda, the
//! received model) are the pull; SCAFFOLD's `c - c_i` is the correction.

/// The addition of one round on one node; empty vectors = none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pull<'a> {
    /// What the values are drawn to.
    pub(crate) anchor: &'a [f32],
    /// How strongly, >= 0; 0 without an anchor.
    pub(crate) strength: f32,
    /// Added as it is.
    pub(crate) correction: &'a [f32],
}

impl Pull<'_> {
    /// Adds itself to `gradient`, of the loss at `values`.
    pub(crate) fn add(&self, values: &[f32], gradient: &mut [f32]) {
        if self.strength != 0.0 {
            for ((g, w), anchor) in gradient.iter_mut().zip(values).zip(self.anchor) {
                *g += self.strength * (*w - *anchor);
            }
        }
        for (g, c) in gradient.iter_mut().zip(self.correction) {
            *g += *c;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_its_formula_and_none_changes_nothing() {
        let (values, mut gradient) = ([3.0, -1.0], [1.0, 1.0]);
        Pull { anchor: &[1.0, 0.0], strength: 0.5, correction: &[0.25, -0.25] }.add(&values, &mut gradient);
        assert_eq!(gradient, [2.25, 0.25]);
        Pull::default().add(&values, &mut gradient);
        assert_eq!(gradient, [2.25, 0.25]);
    }
}
