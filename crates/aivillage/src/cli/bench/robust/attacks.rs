//! What dishonest nodes send instead of what they learned.
//!
//! Promise: pure functions of the honest changes and a seed. Must not know: how models are made or measured.

use aivillage_base::rng::SeededRng;
use clap::ValueEnum;
use serde::Serialize;

/// What the dishonest nodes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(super) enum Attack {
    /// Nothing: everybody is honest
    None,
    /// They send their change times -4
    SignFlip,
    /// They send their change times 100
    Scaled,
    /// They send normal noise, ten times as large as their change
    Noise,
    /// They train on labels in reverse order, and are honest otherwise
    LabelFlip,
    /// They all send mean - z * deviation of the honest changes: a little is enough (Baruch et al. 2019)
    ALittle,
}

impl Attack {
    /// All of them; the first is no attack.
    pub(super) const ALL: [Self; 6] =
        [Self::None, Self::SignFlip, Self::Scaled, Self::Noise, Self::LabelFlip, Self::ALittle];

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SignFlip => "sign_flip",
            Self::Scaled => "scaled",
            Self::Noise => "noise",
            Self::LabelFlip => "label_flip",
            Self::ALittle => "a_little",
        }
    }

    /// Replaces the changes of the `dishonest` nodes; `changes` holds what each node has learned.
    pub(super) fn forge(self, changes: &mut [Vec<f32>], dishonest: &[usize], rng: &mut SeededRng) {
        match self {
            Self::None | Self::LabelFlip => {}
            Self::SignFlip => scale(changes, dishonest, -4.0),
            Self::Scaled => scale(changes, dishonest, 100.0),
            Self::Noise => {
                for node in dishonest {
                    let change = &mut changes[*node];
                    let deviation = 10.0 * root_mean_square(change);
                    change.fill_with(|| narrow(deviation * normal(rng)));
                }
            }
            Self::ALittle => {
                let forged = a_little(changes, dishonest);
                for node in dishonest {
                    changes[*node].clone_from(&forged);
                }
            }
        }
    }
}

fn scale(changes: &mut [Vec<f32>], dishonest: &[usize], factor: f32) {
    for node in dishonest {
        for value in &mut changes[*node] {
            *value *= factor;
        }
    }
}

fn narrow(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    let narrowed = value as f32;
    narrowed
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::INFINITY, f64::from)
}

fn root_mean_square(values: &[f32]) -> f64 {
    let sum: f64 = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    (sum / count(values.len().max(1))).sqrt()
}

/// Nearly normal: the sum of twelve uniform numbers less six has mean 0 and variance 1, and needs no logarithm, whose last
/// bit differs between machines.
fn normal(rng: &mut SeededRng) -> f64 {
    (0..12).map(|_| rng.unit()).sum::<f64>() - 6.0
}

/// "A Little Is Enough" (Baruch, Baruch and Goldberg 2019, algorithm 3): the largest shift that still lies among enough
/// honest values to look like one of them, coordinate by coordinate.
fn a_little(changes: &[Vec<f32>], dishonest: &[usize]) -> Vec<f32> {
    let honest: Vec<&Vec<f32>> =
        changes.iter().enumerate().filter(|(i, _)| !dishonest.contains(i)).map(|(_, c)| c).collect();
    let (n, m) = (changes.len(), dishonest.len());
    let supporters = (n / 2 + 1).saturating_sub(m);
    let z = quantile(count(n - m - supporters) / count(n - m));
    let of = count(honest.len());
    (0..honest[0].len())
        .map(|i| {
            let mean = honest.iter().map(|c| f64::from(c[i])).sum::<f64>() / of;
            let variance = honest.iter().map(|c| (f64::from(c[i]) - mean).powi(2)).sum::<f64>() / of;
            narrow(mean - z * variance.sqrt())
        })
        .collect()
}

/// The z below which this share of a normal distribution lies; between -6 and 6.
fn quantile(share: f64) -> f64 {
    let (mut low, mut high) = (-6.0, 6.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if below(middle) < share { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// Share of a normal distribution below `z`: 1/2 plus the density's power series, integrated.
fn below(z: f64) -> f64 {
    let mut term = z;
    let mut sum = z;
    for k in 1..200 {
        let k = f64::from(k);
        term *= -z * z / (2.0 * k);
        sum += term / (2.0 * k + 1.0);
    }
    0.5 + sum / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes() -> Vec<Vec<f32>> {
        (0..5_u8).map(|i| vec![f32::from(i), 1.0, -2.0]).collect()
    }

    fn forged(attack: Attack) -> Vec<Vec<f32>> {
        let mut changes = changes();
        attack.forge(&mut changes, &[1, 4], &mut SeededRng::new("test", 1, &[]));
        changes
    }

    #[test]
    fn honest_nodes_send_what_they_learned_whatever_the_attack() {
        for attack in Attack::ALL {
            let forged = forged(attack);
            for node in [0, 2, 3] {
                assert_eq!(forged[node], changes()[node], "{attack:?}");
            }
            let same = forged == changes();
            assert_eq!(same, [Attack::None, Attack::LabelFlip].contains(&attack), "{attack:?}");
        }
        assert_eq!(forged(Attack::SignFlip)[4], [-16.0, -4.0, 8.0]);
        assert_eq!(forged(Attack::Scaled)[1], [100.0, 100.0, -200.0]);
    }

    #[test]
    fn a_little_is_within_the_honest_spread() {
        let forged = forged(Attack::ALittle);
        assert_eq!(forged[1], forged[4]);
        // Three honest nodes with 0, 2, 3 in the first coordinate; n 5, m 2: one supporter, z of 2/3.
        let (mean, deviation) = (5.0_f64 / 3.0, (14.0_f64 / 9.0).sqrt());
        assert!((f64::from(forged[1][0]) - (mean - 0.430_727 * deviation)).abs() < 1e-5, "{forged:?}");
        assert_eq!(forged[1][1..], [1.0, -2.0]);
    }

    #[test]
    fn the_normal_quantile_is_that_of_the_tables() {
        for (share, z) in [(0.5, 0.0), (0.975, 1.959_964), (0.642_857, 0.366_106), (0.001, -3.090_232)] {
            assert!((quantile(share) - z).abs() < 1e-5, "{share}: {}", quantile(share));
        }
    }

    #[test]
    fn noise_has_ten_times_the_size_of_the_change() {
        let mut changes = vec![vec![0.5; 10_000]];
        Attack::Noise.forge(&mut changes, &[0], &mut SeededRng::new("test", 2, &[]));
        assert!((root_mean_square(&changes[0]) - 5.0).abs() < 0.2);
    }
}
