//! The normalisation in f32 against its definition in f64, channel by channel; what blocks without spread do.

use super::*;
use aivillage_base::rng::SeededRng;

const ROWS: usize = 33;
const LAYER: BatchNorm = BatchNorm { channels: 5, pixels: 6 };

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SeededRng::new("numbers of a normalisation", seed, &[]);
    #[expect(clippy::cast_possible_truncation, reason = "test data")]
    (0..n).map(|_| (2.0 * rng.unit() - 1.0) as f32).collect()
}

/// A block whose channels lie far from zero and are differently wide, and tensors that fit.
fn block(layer: BatchNorm) -> (Vec<f32>, Vec<f32>) {
    let widths = [1.0, 0.01, 100.0, 3.0, 1e-4];
    let mut x = numbers(ROWS * layer.pixels * layer.channels, 1);
    for (i, v) in x.iter_mut().enumerate() {
        let channel = i % layer.channels;
        *v = *v * widths[channel] + [0.0, 10.0, -50.0, 1000.0, 0.5][channel];
    }
    let mut values = numbers(layer.parameters(), 2);
    values[layer.channels..2 * layer.channels].iter_mut().for_each(|v| *v = v.abs());
    (x, values)
}

fn close(got: f32, want: f64, allowed: f64, what: &str) {
    assert!((f64::from(got) - want).abs() <= allowed * want.abs().max(1.0), "{what}: {got} {want}");
}

/// Mean and variance (over n) of a channel's numbers.
fn moments_of(numbers: &[f64]) -> (f64, f64) {
    let mean = numbers.iter().sum::<f64>() / as_f64(numbers.len());
    (mean, numbers.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / as_f64(numbers.len()))
}

fn channel(all: &[f32], which: usize) -> Vec<f64> {
    all.iter().skip(which).step_by(LAYER.channels).map(|v| f64::from(*v)).collect()
}

#[test]
fn a_training_block_is_normalised_by_its_own_moments_and_the_running_ones_follow() {
    let (x, mut values) = block(LAYER);
    let (before, mut moments) = (values.clone(), Moments::new(LAYER.channels));
    let mut y = vec![f32::NAN; x.len()];
    LAYER.forward(&values, &x, ROWS, Statistics::Block, &mut moments, &mut y);
    LAYER.follow(&mut values, &moments);
    for c in 0..LAYER.channels {
        let input = channel(&x, c);
        let (mean, variance) = moments_of(&input);
        let [running_mean, running_variance, scale, shift] = [0, 1, 2, 3].map(|i| f64::from(before[i * 5 + c]));
        for (got, x) in channel(&y, c).iter().zip(&input) {
            let want = (x - mean) / (variance + 1e-5).sqrt() * scale + shift;
            // The channel at 1000 is 3 wide: its numbers are themselves known to 3e-5 only.
            assert!((got - want).abs() < 3e-5, "channel {c}: {got} {want}");
        }
        close(values[c], 0.9 * running_mean + 0.1 * mean, 1e-6, "running mean");
        let n = as_f64(input.len());
        close(values[5 + c], 0.9 * running_variance + 0.1 * variance * n / (n - 1.0), 1e-5, "running variance");
    }
    assert_eq!(values[10..], before[10..], "scale and shift follow gradients only");
    // The running ones are what everything but training computes with, and that moves nothing.
    let kept = values.clone();
    LAYER.forward(&values, &x, ROWS, Statistics::Running, &mut moments, &mut y);
    LAYER.follow(&mut values, &moments);
    assert_eq!(values, kept);
    for (i, (got, x)) in y.iter().zip(&x).enumerate() {
        let [mean, variance, scale, shift] = [0, 1, 2, 3].map(|t| f64::from(values[t * 5 + i % 5]));
        close(*got, (f64::from(*x) - mean) / (variance + 1e-5).sqrt() * scale + shift, 1e-5, "by running moments");
    }
}

#[test]
fn its_gradients_are_those_of_the_paper() {
    let (x, values) = block(LAYER);
    let (dy, mut moments) = (numbers(x.len(), 3), Moments::new(LAYER.channels));
    let (mut y, mut dx) = (vec![0.0; x.len()], vec![f32::NAN; x.len()]);
    let mut gradient = vec![f32::NAN; LAYER.parameters()];
    LAYER.forward(&values, &x, ROWS, Statistics::Block, &mut moments, &mut y);
    LAYER.backward(&x, ROWS, &dy, &mut moments, &mut gradient, Some(&mut dx));
    assert_eq!(gradient[..10], [0.0; 10], "running statistics have no gradient");
    for c in 0..LAYER.channels {
        let (x, dy, n) = (channel(&x, c), channel(&dy, c), as_f64(x.len() / LAYER.channels));
        let (mean, variance) = moments_of(&x);
        let (scale, root) = (f64::from(values[10 + c]), (variance + 1e-5).sqrt());
        let normal: Vec<f64> = x.iter().map(|x| (x - mean) / root).collect();
        close(gradient[10 + c], dy.iter().zip(&normal).map(|(g, x)| g * x).sum(), 3e-5, "scale");
        close(gradient[15 + c], dy.iter().sum(), 1e-6, "shift");
        // Section 3 of the paper, step by step: by the normalised number, the variance, the mean, the input.
        let by_normal: Vec<f64> = dy.iter().map(|g| g * scale).collect();
        let by_variance: f64 = by_normal.iter().zip(&x).map(|(g, x)| g * (x - mean) * -0.5 / root.powi(3)).sum();
        let by_mean =
            -by_normal.iter().sum::<f64>() / root + by_variance * x.iter().map(|x| -2.0 * (x - mean)).sum::<f64>() / n;
        for ((got, g), x) in channel(&dx, c).iter().zip(&by_normal).zip(&x) {
            let want = g / root + by_variance * 2.0 * (x - mean) / n + by_mean / n;
            assert!((got - want).abs() <= 3e-5 * (scale / root).abs().max(1.0), "channel {c}: {got} {want}");
        }
    }
}

#[test]
fn a_constant_channel_gives_its_shift_and_learns_no_scale() {
    let layer = BatchNorm { channels: 2, pixels: 1 };
    // 0.1 and 1e8 / 3 have no exact sums.
    let x: Vec<f32> = [0.1, 1e8 / 3.0].repeat(ROWS);
    let mut values = vec![0.0, 0.0, 1.0, 1.0, 2.0, 3.0, -0.25, 0.75];
    let (mut moments, mut y) = (Moments::new(2), vec![f32::NAN; x.len()]);
    layer.forward(&values, &x, ROWS, Statistics::Block, &mut moments, &mut y);
    assert_eq!(y, [-0.25, 0.75].repeat(ROWS));
    let (dy, mut gradient, mut dx) = (numbers(x.len(), 3), vec![f32::NAN; 8], vec![f32::NAN; x.len()]);
    layer.backward(&x, ROWS, &dy, &mut moments, &mut gradient, Some(&mut dx));
    assert_eq!(gradient[4..6], [0.0, 0.0]);
    assert!(dx.iter().all(|v| v.is_finite()));
    for _ in 0..2000 {
        layer.follow(&mut values, &moments);
    }
    assert!(values[2..4].iter().all(|v| (0.0..1e-30).contains(v)), "variances go to zero, not below: {values:?}");
    layer.forward(&values, &x, ROWS, Statistics::Running, &mut moments, &mut y);
    assert!(y.iter().all(|v| v.is_finite()));
}

#[test]
fn a_row_alone_has_no_spread_and_goes_by_the_running_statistics() {
    let layer = BatchNorm { channels: 5, pixels: 1 };
    let (x, mut values) = block(layer);
    let (kept, mut moments) = (values.clone(), Moments::new(5));
    let (mut alone, mut running) = (vec![f32::NAN; 5], vec![f32::NAN; 5]);
    layer.forward(&values, &x, ROWS, Statistics::Block, &mut moments, &mut vec![0.0; x.len()]);
    layer.forward(&values, &x, 1, Statistics::Block, &mut moments, &mut alone);
    layer.follow(&mut values, &moments);
    assert_eq!(values, kept, "nothing of the block before is left");
    layer.forward(&values, &x, 1, Statistics::Running, &mut moments, &mut running);
    assert_eq!(alone, running);
    // An image alone has the spread of its pixels.
    let image = BatchNorm { channels: 5, pixels: 6 };
    image.forward(&values, &x, 1, Statistics::Block, &mut moments, &mut [0.0; 30]);
    image.follow(&mut values, &moments);
    assert_ne!(values, kept);
}
