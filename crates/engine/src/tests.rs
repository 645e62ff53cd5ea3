//! The layers against arithmetic: each gradient against central differences in f64, and bits that do not move.

use aivillage_base::arch::{Architecture, LayerSpec, Norm, Recipe, Task, TensorKind};
use aivillage_base::rng::SeededRng;

use crate::layers::Statistics;
use crate::loss::{Wanted, as_f64, differentiate, measure};
use crate::network::Network;

const CLASSES: Task = Task::Classification { classes: 3 };

fn dense(units: usize) -> LayerSpec {
    LayerSpec::Dense { units }
}

fn conv(filters: usize, kernel: usize) -> LayerSpec {
    LayerSpec::Conv2d { filters, kernel }
}

fn pool(size: usize) -> LayerSpec {
    LayerSpec::MaxPool2d { size }
}

fn numbers(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = SeededRng::new("test numbers", seed, &[]);
    (0..n).map(|_| 2.0 * rng.unit() - 1.0).collect()
}

/// Values for a model that the layers accept: running variances are above zero.
fn values_of(arch: &Architecture, seed: u64) -> Vec<f64> {
    let mut values = numbers(arch.parameters().unwrap(), seed);
    let mut at = 0;
    for tensor in arch.layout().unwrap() {
        if tensor.kind == TensorKind::RunningVariance {
            values[at..at + tensor.len()].iter_mut().for_each(|v| *v = v.abs() + 0.1);
        }
        at += tensor.len();
    }
    values
}

fn check_gradient(input: &[usize], layers: Vec<LayerSpec>, task: Task) {
    check_gradient_of_rows(4, input, layers, task);
}

/// Compares the gradient of the mean loss with respect to every trained value of the model with central differences in f64;
/// of all others it is zero.
fn check_gradient_of_rows(rows: usize, input: &[usize], layers: Vec<LayerSpec>, task: Task) {
    let arch = Architecture { input: input.to_vec(), layers, task };
    let network = Network::new(&arch).unwrap();
    let mut values = values_of(&arch, 1);
    let x = numbers(rows * network.input(), 2);
    let (labels, targets) = ([0, 2, 1, 2], [0.5f32, -1.0, 2.0, 0.25]);
    let wanted = match task {
        Task::Classification { .. } => Wanted::Labels(&labels[..rows]),
        Task::Regression => Wanted::Values(&targets[..rows]),
    };
    let mut work = network.workspace(rows);
    let mut gradient = vec![f64::NAN; network.parameters()];
    let logits = network.forward(&values, &x, rows, Statistics::Block, &mut work).to_vec();
    let seen = network.backward(&values, &x, rows, &mut work, &mut gradient, |y, g| differentiate(y, wanted, g));
    assert!((seen.loss - measure(&logits, wanted).loss).abs() < 1e-12);
    assert_eq!(seen.right, measure(&logits, wanted).right);
    let mut loss = |values: &[f64]| {
        measure(network.forward(values, &x, rows, Statistics::Block, &mut work), wanted).loss / as_f64(rows)
    };
    for i in 0..values.len() {
        if !network.trained().iter().any(|run| run.contains(&i)) {
            assert_eq!(gradient[i], 0.0, "{arch:?} value {i}");
            continue;
        }
        let (kept, h) = (values[i], 1e-6);
        values[i] = kept + h;
        let above = loss(&values);
        values[i] = kept - h;
        let below = loss(&values);
        values[i] = kept;
        let difference = (above - below) / (2.0 * h);
        // Rounding of the two losses, divided by 2h, is what the differences cannot see.
        let allowed = 1e-6 * difference.abs().max(gradient[i].abs()) + 1e-9 * seen.loss.max(1.0);
        assert!(
            (difference - gradient[i]).abs() < allowed,
            "{arch:?} value {i}: {} by differences, {} by the layers",
            difference,
            gradient[i]
        );
    }
}

#[test]
fn gradients_of_dense_layers_match_differences() {
    check_gradient(&[5], vec![dense(3)], CLASSES);
    check_gradient(&[5], vec![dense(1)], Task::Regression);
    check_gradient(&[5], vec![dense(7), LayerSpec::Relu, dense(4), LayerSpec::Relu, dense(3)], CLASSES);
    check_gradient(&[5], vec![LayerSpec::Relu, dense(4), LayerSpec::Relu, LayerSpec::Relu, dense(1)], Task::Regression);
}

#[test]
fn gradients_of_convolutions_and_pools_match_differences() {
    check_gradient(&[2, 4, 5], vec![conv(3, 3), LayerSpec::Flatten, dense(3)], CLASSES);
    check_gradient(&[1, 5, 5], vec![conv(2, 5), LayerSpec::Relu, pool(2), LayerSpec::Flatten, dense(3)], CLASSES);
    // Kernel larger than the image, a pool that drops a border, a convolution behind a pool, a 1 x 1 kernel.
    check_gradient(
        &[2, 7, 6],
        vec![
            conv(3, 9),
            LayerSpec::Relu,
            pool(3),
            conv(2, 3),
            LayerSpec::Relu,
            conv(2, 1),
            LayerSpec::Flatten,
            dense(1),
        ],
        Task::Regression,
    );
    check_gradient(&[2, 4, 4], vec![pool(2), LayerSpec::Flatten, dense(3)], CLASSES);
    check_gradient(&[2, 3, 4], vec![LayerSpec::Relu, conv(2, 3), pool(2), LayerSpec::Flatten, dense(3)], CLASSES);
    check_gradient(&[2, 3, 4], vec![LayerSpec::Flatten, dense(3)], CLASSES);
}

#[test]
fn gradients_of_normalisations_match_differences() {
    let norm = LayerSpec::BatchNorm {};
    check_gradient(&[5], vec![dense(7), norm.clone(), LayerSpec::Relu, dense(3)], CLASSES);
    check_gradient(&[5], vec![norm.clone(), dense(4), norm.clone(), norm.clone(), dense(1)], Task::Regression);
    check_gradient(&[5], vec![LayerSpec::Relu, norm.clone(), dense(3), norm.clone()], CLASSES);
    // Of images: behind a convolution, a pool and the data as they are; and of what was an image.
    let layers = vec![
        norm.clone(),
        conv(3, 3),
        norm.clone(),
        LayerSpec::Relu,
        pool(2),
        norm.clone(),
        LayerSpec::Flatten,
        norm.clone(),
        dense(3),
    ];
    check_gradient(&[2, 4, 5], layers, CLASSES);
    // One row of features has no spread and goes by the running statistics; one image has its pixels.
    check_gradient_of_rows(1, &[5], vec![dense(7), norm.clone(), LayerSpec::Relu, dense(3)], CLASSES);
    check_gradient_of_rows(1, &[2, 4, 5], vec![conv(3, 3), norm, LayerSpec::Flatten, dense(3)], CLASSES);
}

/// Compares the clipped gradient with that of single rows, each scaled by hand, in f64.
fn check_clipping(input: &[usize], layers: Vec<LayerSpec>) {
    const ROWS: usize = 5;
    let network = Network::new(&Architecture { input: input.to_vec(), layers, task: CLASSES }).unwrap();
    let (values, x) = (numbers(network.parameters(), 1), numbers(ROWS * network.input(), 2));
    let labels = [0, 2, 1, 2, 0];
    let mut single = network.workspace(1);
    let rows: Vec<Vec<f64>> = (0..ROWS)
        .map(|row| {
            let x = &x[row * network.input()..(row + 1) * network.input()];
            let mut gradient = vec![f64::NAN; network.parameters()];
            network.forward(&values, x, 1, Statistics::Block, &mut single);
            network.backward(&values, x, 1, &mut single, &mut gradient, |y, g| {
                differentiate(y, Wanted::Labels(&labels[row..=row]), g)
            });
            gradient
        })
        .collect();
    let mut norms: Vec<f64> = rows.iter().map(|row| row.iter().map(|g| g * g).sum::<f64>().sqrt()).collect();
    let mut sorted = norms.clone();
    sorted.sort_by(f64::total_cmp);
    for bound in [sorted[0] / 2.0, sorted[2], sorted[4] * 2.0] {
        let mut want = vec![0.0; network.parameters()];
        for (row, norm) in rows.iter().zip(&mut norms) {
            for (sum, g) in want.iter_mut().zip(row) {
                *sum += g * f64::min(1.0, bound / *norm) / 5.0;
            }
        }
        // Twice in one workspace: nothing of the first pass may be left in the second.
        let (mut work, mut gradient) = (network.workspace(ROWS + 1), vec![f64::NAN; network.parameters()]);
        for _ in 0..2 {
            network.forward(&values, &x, ROWS, Statistics::Block, &mut work);
            network.backward_clipped(&values, &x, ROWS, &mut work, &mut gradient, bound, |y, g| {
                differentiate(y, Wanted::Labels(&labels), g)
            });
            for (i, (got, want)) in gradient.iter().zip(&want).enumerate() {
                assert!((got - want).abs() < 1e-12, "bound {bound} value {i}: {got} {want}");
            }
        }
    }
}

#[test]
fn clipped_gradients_are_those_of_single_rows_scaled_by_hand() {
    check_clipping(&[5], vec![dense(3)]);
    check_clipping(&[5], vec![dense(7), LayerSpec::Relu, dense(4), LayerSpec::Relu, dense(3)]);
    check_clipping(&[2, 4, 5], vec![conv(3, 3), LayerSpec::Flatten, dense(3)]);
    let layers = vec![conv(3, 5), LayerSpec::Relu, pool(2), conv(2, 3), LayerSpec::Relu, LayerSpec::Flatten, dense(3)];
    check_clipping(&[2, 7, 6], layers);
}

/// Runs an image through `layer` and sums the output with distinct weights, so that no two places can be confused.
fn spread(input: [usize; 3], layer: LayerSpec, tensors: &[f64], image: &[f64], outputs: usize) -> f64 {
    let arch = Architecture {
        input: input.to_vec(),
        layers: vec![layer, LayerSpec::Flatten, dense(1)],
        task: Task::Regression,
    };
    let network = Network::new(&arch).unwrap();
    let values = [tensors, &[0.0], &numbers(outputs, 9)].concat();
    network.forward(&values, image, 1, Statistics::Running, &mut network.workspace(1))[0]
}

#[test]
fn a_convolution_is_what_its_definition_says() {
    let (channels, height, width, filters, kernel) = (2, 3, 4, 3, 3);
    let tensors = numbers(filters + filters * channels * kernel * kernel, 4);
    let image = numbers(channels * height * width, 5);
    let (bias, weight) = tensors.split_at(filters);
    let mut want = Vec::new();
    for f in 0..filters {
        for r in 0..height {
            for q in 0..width {
                let mut sum = bias[f];
                for c in 0..channels {
                    for (i, j) in (0..kernel).flat_map(|i| (0..kernel).map(move |j| (i, j))) {
                        let (Some(row), Some(column)) = ((r + i).checked_sub(1), (q + j).checked_sub(1)) else {
                            continue;
                        };
                        if row < height && column < width {
                            let w = weight[((f * channels + c) * kernel + i) * kernel + j];
                            sum += w * image[(c * height + row) * width + column];
                        }
                    }
                }
                want.push(sum);
            }
        }
    }
    let want: f64 = want.iter().zip(numbers(want.len(), 9)).map(|(y, w)| y * w).sum();
    let layer = conv(filters, kernel);
    let got = spread([channels, height, width], layer, &tensors, &image, filters * height * width);
    assert!((got - want).abs() < 1e-12, "{got} {want}");
}

#[test]
fn a_pool_is_what_its_definition_says() {
    let image = numbers(2 * 5 * 4, 6);
    let mut want = Vec::new();
    for c in 0..2 {
        for (r, q) in [(0, 0), (0, 2), (2, 0), (2, 2)] {
            let at = |i: usize, j: usize| image[(c * 5 + r + i) * 4 + q + j];
            want.push(at(0, 0).max(at(0, 1)).max(at(1, 0)).max(at(1, 1)));
        }
    }
    let want: f64 = want.iter().zip(numbers(want.len(), 9)).map(|(y, w)| y * w).sum();
    assert!((spread([2, 5, 4], pool(2), &[], &image, 8) - want).abs() < 1e-12);
}

#[test]
fn a_rows_output_does_not_depend_on_its_company() {
    let classes = Task::Classification { classes: 10 };
    for (input, recipe) in [
        (vec![784], Recipe::Mlp { hidden: vec![128] }),
        (vec![700], Recipe::Mlp { hidden: vec![33, 7] }),
        (vec![784], Recipe::SimpleCnn),
        (vec![100], Recipe::Mlp { hidden: vec![33, 7] }.with_norm(Norm::Batch).unwrap()),
        (vec![64], Recipe::SimpleCnn.with_norm(Norm::Batch).unwrap()),
    ] {
        let arch = recipe.build(&input, classes).unwrap();
        let network = Network::new(&arch).unwrap();
        #[expect(clippy::cast_possible_truncation, reason = "test data")]
        let values: Vec<f32> = values_of(&arch, 1).iter().map(|v| *v as f32).collect();
        let rows = 33;
        #[expect(clippy::cast_possible_truncation, reason = "test data")]
        let x: Vec<f32> = numbers(rows * network.input(), 3).iter().map(|v| *v as f32).collect();
        let together = network.forward(&values, &x, rows, Statistics::Running, &mut network.workspace(rows)).to_vec();
        for block in [1, 2, 5, 8, 32] {
            let mut work = network.workspace(block);
            let apart: Vec<f32> = x
                .chunks(block * network.input())
                .flat_map(|x| {
                    network.forward(&values, x, x.len() / network.input(), Statistics::Running, &mut work).to_vec()
                })
                .collect();
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&together), bits(&apart), "{recipe:?} in blocks of {block}");
        }
    }
}

#[test]
fn models_that_compute_nothing_or_too_much_are_refused() {
    let text = |input: &[usize], layers: Vec<LayerSpec>, task| {
        Network::new(&Architecture { input: input.to_vec(), layers, task }).unwrap_err().to_string()
    };
    assert!(text(&[3], vec![], CLASSES).contains("at least one layer"));
    assert!(text(&[3], vec![dense(2)], CLASSES).contains("needs [3]"));
    let huge = vec![conv(4096, 1), pool(1024), pool(2), LayerSpec::Flatten, dense(3)];
    assert!(text(&[1, 2048, 2048], huge, CLASSES).contains("too large"));
}
