//! How a bundled data set is dealt to the nodes of a demonstration: unequally, and always the same way.
//!
//! A seeded 20 % of the rows is the common test set, which no node trains on. The rest is dealt label by label in the
//! proportions of a Dirichlet(alpha) draw, the usual model of unequal data (Hsu, Qi and Brown 2019,
//! <https://arxiv.org/abs/1909.06335>), redrawn until every shard has [`SHARD_ROWS_MIN`] rows. The draws depend on data set, number
//! of nodes, alpha and seed only, so six processes that load "shard i of 6" hold six disjoint parts of one deal.

use aivillage_base::rng::SeededRng;

use super::{Bundled, DataError, Dataset, bundled};
use crate::loss::as_f64;

/// Fewest rows of a shard.
pub const SHARD_ROWS_MIN: usize = 20;

/// Deals tried before the request is called impossible; a deal is a few thousand random numbers.
const DEALS_MAX: u32 = 10_000;

/// Rows of each label in each shard: `counts[shard][label]`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Table {
    /// One row of counts a shard.
    pub counts: Vec<Vec<usize>>,
}

/// A data set dealt to nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// Common test set that no shard contains.
    pub test: Dataset,
    /// One part a node, disjoint.
    pub shards: Vec<Dataset>,
    /// How the labels fell.
    pub table: Table,
    /// Deals thrown away because a shard was too small.
    pub redraws: u32,
}

/// Deals `which` to `nodes` nodes.
///
/// # Errors
/// If a shard of [`SHARD_ROWS_MIN`] rows for each node is out of reach, or alpha is not in (0, 1000000].
pub fn split(which: Bundled, nodes: usize, alpha: f64, seed: u64) -> Result<Split, DataError> {
    let data = bundled(which);
    let (test, rest) = test_rows(which, &data, seed);
    if nodes == 0 || nodes * SHARD_ROWS_MIN > rest.len() {
        return Err(DataError::Description(format!(
            "{} rows of `{}` cannot be dealt to {nodes} nodes: 1 to {} nodes get {SHARD_ROWS_MIN} rows each",
            rest.len(),
            which.name(),
            rest.len() / SHARD_ROWS_MIN
        )));
    }
    if !(alpha > 0.0 && alpha <= 1e6) {
        return Err(DataError::Description(format!("alpha {alpha}: above 0 and at most 1000000 is possible")));
    }
    let labels = data.labels().expect("invariant: the bundled data sets have labels");
    let classes = data.task().outputs();
    for redraws in 0..DEALS_MAX {
        let parts = (nodes as u64).to_le_bytes();
        let parts = [which.name().as_bytes(), &parts, &alpha.to_bits().to_le_bytes(), &redraws.to_le_bytes()];
        let mut rng = SeededRng::new("deal to nodes", seed, &parts);
        let shards = deal(labels, &rest, classes, nodes, alpha, &mut rng);
        if shards.iter().all(|s| s.len() >= SHARD_ROWS_MIN) {
            let counts = shards.iter().map(|s| count(labels, s, classes)).collect();
            return Ok(Split {
                test: data.select(&test),
                shards: shards.iter().map(|s| data.select(s)).collect(),
                table: Table { counts },
                redraws,
            });
        }
    }
    Err(DataError::Description(format!(
        "no deal of {DEALS_MAX} gave each of {nodes} nodes {SHARD_ROWS_MIN} rows of `{}`: take fewer nodes or a larger alpha \
         than {alpha}",
        which.name()
    )))
}

/// Row numbers of the common test set and of the rest, each ascending.
fn test_rows(which: Bundled, data: &Dataset, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut rows: Vec<usize> = (0..data.rows()).collect();
    SeededRng::new("common test set", seed, &[which.name().as_bytes()]).shuffle(&mut rows);
    let mut rest = rows.split_off(data.rows() / 5);
    rows.sort_unstable();
    rest.sort_unstable();
    (rows, rest)
}

/// One deal: row numbers of each shard, ascending.
fn deal(
    labels: &[u32],
    rows: &[usize],
    classes: usize,
    nodes: usize,
    alpha: f64,
    rng: &mut SeededRng,
) -> Vec<Vec<usize>> {
    let mut shards = vec![Vec::new(); nodes];
    for label in 0..classes {
        let mut mine: Vec<usize> = rows.iter().copied().filter(|r| labels[*r] as usize == label).collect();
        rng.shuffle(&mut mine);
        let shares = dirichlet(nodes, alpha, rng);
        let mut cumulated = 0.0;
        let mut start = 0;
        for (i, share) in shares.iter().enumerate() {
            cumulated += share;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to the number of rows")]
            let cut = (cumulated * as_f64(mine.len())).round() as usize;
            let end = if i + 1 == nodes { mine.len() } else { cut.clamp(start, mine.len()) };
            shards[i].extend_from_slice(&mine[start..end]);
            start = end;
        }
    }
    for shard in &mut shards {
        shard.sort_unstable();
    }
    shards
}

fn count(labels: &[u32], rows: &[usize], classes: usize) -> Vec<usize> {
    let mut counts = vec![0; classes];
    for row in rows {
        counts[labels[*row] as usize] += 1;
    }
    counts
}

/// `n` shares that sum to one.
fn dirichlet(n: usize, alpha: f64, rng: &mut SeededRng) -> Vec<f64> {
    // Logarithms: for a small alpha the gammas themselves underflow.
    let logs: Vec<f64> = (0..n).map(|_| ln_gamma_variate(alpha, rng)).collect();
    let max = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logs.iter().map(|l| libm::exp(l - max)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// The logarithm of a Gamma(`shape`, 1) variate, by Marsaglia and Tsang (2000), "A simple method for generating gamma
/// variables", with their boost for shapes below one.
fn ln_gamma_variate(shape: f64, rng: &mut SeededRng) -> f64 {
    if shape < 1.0 {
        return ln_gamma_variate(shape + 1.0, rng) + libm::log(positive_unit(rng)) / shape;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = 1.0 + c * x;
        if v <= 0.0 {
            continue;
        }
        let v = v * v * v;
        let u = positive_unit(rng);
        if libm::log(u) < 0.5 * x * x + d - d * v + d * libm::log(v) {
            return libm::log(d) + libm::log(v);
        }
    }
}

/// Standard normal, by Marsaglia's polar method (the second variate is thrown away: simplicity over speed).
fn normal(rng: &mut SeededRng) -> f64 {
    loop {
        let (u, v) = (2.0 * rng.unit() - 1.0, 2.0 * rng.unit() - 1.0);
        let s = u * u + v * v;
        if s > 0.0 && s < 1.0 {
            return u * (-2.0 * libm::log(s) / s).sqrt();
        }
    }
}

/// Uniform over (0, 1].
fn positive_unit(rng: &mut SeededRng) -> f64 {
    1.0 - rng.unit()
}

#[cfg(test)]
mod tests;
