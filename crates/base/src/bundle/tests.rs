//! Bundles: what is written is read back, by us and by others; what is cut is refused.

use proptest::prelude::*;

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

proptest! {
    #[test]
    fn any_values_are_read_back_to_the_bit(hidden in 1usize..6, seed in any::<u32>()) {
        let arch = Recipe::Mlp { hidden: vec![hidden] }.build(&[3], Task::Regression).unwrap();
        let count = arch.parameters().unwrap();
        let values: Vec<f32> = (0..count).map(|i| f32::from_bits(seed.rotate_left(u32::try_from(i).unwrap())))
            .map(|v| if v.is_finite() { v } else { 0.0 }).collect();
        let (back, read_back) = read(&write(&arch, &values).unwrap()).unwrap();
        prop_assert_eq!(back, arch);
        prop_assert!(read_back.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn bytes_that_are_no_bundle_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn one_changed_byte_of_the_header_is_refused_or_changes_nothing_but_its_text(at in 0usize..300, flip in 1u8..) {
        let (arch, mut bytes) = sample();
        let header = read_header(&bytes, bytes.len() as u64).unwrap();
        let at = at % header.data_offset;
        bytes[at] ^= flip;
        if let Ok((read_back, values)) = read(&bytes) {
            prop_assert_eq!(values.len(), header.parameters);
            prop_assert_eq!(read_back.parameters().unwrap(), arch.parameters().unwrap());
        }
    }
}
