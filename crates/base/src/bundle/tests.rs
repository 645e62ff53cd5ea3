//! Bundles: what is written is read back, by us and by others; what is cut is refused.

use super::*;
use crate::arch::{Recipe, Task};

fn sample() -> (Architecture, Vec<u8>) {
    let arch = Recipe::Mlp { hidden: vec![3] }.build(&[2], Task::Regression).unwrap();
    let values: Vec<f32> = (0..13u8).map(f32::from).collect();
    let bytes = write(&arch, &values).unwrap();
    (arch, bytes)
}

#[test]
fn a_bundle_reads_back_and_foreign_readers_agree() {
    let (arch, bytes) = sample();
    let (back, values) = read(&bytes).unwrap();
    assert_eq!((back, values[12]), (arch, 12.0));
    let foreign = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(foreign.tensor("layer000.weight").unwrap().shape(), [2, 3]);
}

#[test]
fn cut_or_padded_bundles_are_refused() {
    let (_, bytes) = sample();
    for len in 0..bytes.len() {
        assert!(read(&bytes[..len]).is_err(), "{len} bytes of {}", bytes.len());
    }
    assert!(read(&[bytes.as_slice(), &[0]].concat()).is_err());
}
