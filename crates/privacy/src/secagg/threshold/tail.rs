//! Hypergeometric tails in natural logarithms: exact sums, no bounds, no underflow.
//!
//! `libm`'s logarithm and exponential have the same bits on every machine, so two participants never disagree. Rounding
//! errors stay far below [`SLACK`] for up to a million participants; every tail is that much larger than computed.

/// Added to each tail: a factor of 1 + 10^-6.
const SLACK: f64 = 1e-6;

/// ln x.
#[expect(clippy::cast_precision_loss, reason = "counts of participants are fewer than 2^52")]
pub(super) fn ln(x: usize) -> f64 {
    libm::log(x as f64)
}

/// Binomial coefficients from a table of ln i!.
#[derive(Debug)]
pub(super) struct Binomials {
    factorials: Vec<f64>,
}

impl Binomials {
    pub(super) fn up_to(n: usize) -> Self {
        let mut factorials = vec![0.0];
        // Compensated (Kahan): ln 1000000! is 10^7, of which 10^6 sums would lose digits that matter.
        let (mut sum, mut lost) = (0.0, 0.0);
        for i in 1..=n {
            let term = ln(i) - lost;
            let next = sum + term;
            lost = (next - sum) - term;
            sum = next;
            factorials.push(sum);
        }
        Self { factorials }
    }

    /// ln C(n, k); minus infinity for k > n.
    fn ln(&self, n: usize, k: usize) -> f64 {
        if k > n {
            return f64::NEG_INFINITY;
        }
        self.factorials[n] - self.factorials[k] - self.factorials[n - k]
    }

    /// ln of a bound on the chance that the Harary graph of `n` participants with `k` neighbours falls apart when `bad`
    /// random ones are taken away: that needs two separate runs of k/2 successive bad ones, and there are n(n-k-1)/2 pairs of
    /// places, each with chance C(bad, k) / C(n, k). An odd k counts as k - 1, which is a part of its graph.
    pub(super) fn disconnected(&self, n: usize, k: usize, bad: usize) -> f64 {
        let k = k / 2 * 2;
        if k > bad {
            return f64::NEG_INFINITY;
        }
        let pairs = ln(n) + ln(n - k - 1) - std::f64::consts::LN_2;
        // More bad ones than participants: nobody is left, the bound says nothing.
        let bad = bad.min(n);
        pairs + self.ln(bad, k) - self.ln(n, k) + SLACK
    }
}

/// The tail of X = marked ones among `draws` of `n`, of whom `marked` are.
#[derive(Debug)]
pub(super) struct Tail {
    /// ln Pr[X >= x] for x = 0 to `draws`.
    at_least: Vec<f64>,
}

impl Tail {
    pub(super) fn new(binomials: &Binomials, n: usize, marked: usize, draws: usize) -> Self {
        let mut at_least = vec![f64::NEG_INFINITY; draws + 1];
        let mut sum = f64::NEG_INFINITY;
        for (x, slot) in at_least.iter_mut().enumerate().rev() {
            let ways = binomials.ln(marked, x) + binomials.ln(n - marked, draws - x);
            sum = add(sum, ways - binomials.ln(n, draws));
            *slot = sum;
        }
        Self { at_least }
    }

    /// ln Pr[X >= x], rounded up.
    pub(super) fn at_least(&self, x: usize) -> f64 {
        self.at_least.get(x).map_or(f64::NEG_INFINITY, |tail| tail + SLACK)
    }
}

/// ln(e^a + e^b).
fn add(a: f64, b: f64) -> f64 {
    let (large, small) = if a > b { (a, b) } else { (b, a) };
    if small == f64::NEG_INFINITY {
        return large;
    }
    large + libm::log1p(libm::exp(small - large))
}
