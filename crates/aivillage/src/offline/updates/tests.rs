//! Files as rows: what is read is what was written, on grids that clip nothing; what is wrong is refused by name.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

/// A file of these tensors.
fn write(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let mut header = serde_json::Map::new();
    let (mut offset, mut data) = (0, Vec::new());
    for (name, shape, values) in tensors {
        let end = offset + 4 * values.len();
        header.insert(
            (*name).to_owned(),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}),
        );
        offset = end;
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(path, bytes).unwrap();
}

/// A model of two tensors and updates `a`, `b`, .. with these values.
struct Files {
    _dir: tempfile::TempDir,
    path: PathBuf,
    model: TensorFile,
}

const PLAIN: Shape<'static> = Shape { content: Content::Differences, personal: &[], planes: 1 };
const MODEL: [f32; 5] = [1.0, -2.0, 0.5, 4.0, 8.0];

impl Files {
    fn new(updates: &[[f32; 5]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let file = |name: &str, v: &[f32; 5]| write(&path.join(name), &[("w", &[2, 1], &v[..2]), ("v", &[3], &v[2..])]);
        file("model", &MODEL);
        for (name, values) in ["a", "b", "c"].iter().zip(updates) {
            file(&format!("{name}.safetensors"), values);
        }
        let model = TensorFile::open(&path.join("model")).unwrap();
        Self { _dir: dir, path, model }
    }

    fn open(&self, names: &[&str], shape: Shape<'_>) -> Result<Updates, FileError> {
        Updates::open(&self.path, names.iter().copied(), &self.model, shape)
    }
}

proptest! {
    #[test]
    fn nothing_is_clipped_and_every_value_is_met_within_half_a_step(values in proptest::array::uniform5(-1e6f32..1e6)) {
        let files = Files::new(&[values]);
        let mut updates = files.open(&["a"], PLAIN).unwrap();
        let grids = updates.fix_grids(None).unwrap();
        let mut read = vec![0; 5];
        updates.read(0, 0, &mut read).unwrap();
        for (tensor, range) in [("w", 0..2), ("v", 2..5)] {
            let step = grids[tensor].step();
            let largest = values[range.clone()].iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            prop_assert!(largest == 0.0 || step <= f64::from(largest) * 2.0_f64.powi(-20));
            for i in range {
                prop_assert!((f64::from(read[i]) * step - f64::from(values[i])).abs() <= step / 2.0);
            }
        }
    }

    #[test]
    fn a_piece_is_what_the_whole_has_there(values in proptest::array::uniform5(-3.0f32..3.0), start in 0usize..5, len in 0usize..5) {
        let files = Files::new(&[values, MODEL]);
        for content in [Content::Differences, Content::Models] {
            let mut updates = files.open(&["a", "b"], Shape { content, ..PLAIN }).unwrap();
            updates.fix_grids(None).unwrap();
            let len = len.min(5 - start);
            for row in 0..2 {
                let (mut whole, mut piece) = (vec![0; 5], vec![0; len]);
                updates.read(row, 0, &mut whole).unwrap();
                updates.read(row, start, &mut piece).unwrap();
                prop_assert_eq!(&piece[..], &whole[start..start + len]);
                prop_assert_eq!(row == 1 && content == Content::Models, whole == vec![0; 5]);
            }
        }
    }

    #[test]
    fn integers_on_a_grid_survive_being_written_as_f32(q in -8_388_607i32..=8_388_607, exponent in -60i32..=60) {
        let grid = Grid { exponent, ..Grid::default() };
        #[expect(clippy::cast_possible_truncation, reason = "24 bits fit an f32 exactly")]
        let value = (f64::from(q) * grid.step()) as f32;
        let files = Files::new(&[[value, 0.0, 0.0, 0.0, 0.0]]);
        let mut updates = files.open(&["a"], PLAIN).unwrap();
        updates.fix_grids(Some(&BTreeMap::from([("w".to_owned(), grid)]))).unwrap();
        let mut read = [0; 1];
        updates.read(0, 0, &mut read).unwrap();
        prop_assert_eq!(read[0], q);
    }
}

#[test]
fn personal_tensors_are_left_out_and_second_planes_follow() {
    let files = Files::new(&[]);
    let tensors: [(&str, &[usize], &[f32]); 3] =
        [("second/v", &[3], &[4.0, 5.0, 6.0]), ("v", &[3], &[1.0, 2.0, 3.0]), ("w", &[2, 1], &[9.0, 9.0])];
    write(&files.path.join("a.safetensors"), &tensors);
    let personal = ["w".to_owned()];
    let shape = Shape { personal: &personal, planes: 2, ..PLAIN };
    let mut updates = files.open(&["a"], shape).unwrap();
    updates.fix_grids(Some(&BTreeMap::from([("v".to_owned(), Grid { exponent: 0, bound: 10 })]))).unwrap();
    let mut read = vec![0; updates.values()];
    updates.read(0, 0, &mut read).unwrap();
    assert_eq!(read, [1, 2, 3, 4, 5, 6]);
    let bytes: Vec<u8> = read.iter().flat_map(|q: &i32| q.to_le_bytes()).collect();
    assert_eq!(updates.digests().unwrap(), [Digest::of(&bytes)]);
}

#[test]
fn files_that_do_not_fit_the_model_are_refused_with_the_tensor() {
    let files = Files::new(&[MODEL]);
    let refused = |tensors: &[(&str, &[usize], &[f32])], why: &str| {
        write(&files.path.join("b.safetensors"), tensors);
        let found = files.open(&["a", "b"], PLAIN).unwrap_err();
        assert!(found.to_string().contains("b.safetensors") && found.why.contains(why), "{found}");
    };
    refused(&[("w", &[2, 1], &[0.0; 2])], "tensor `v` is missing");
    refused(&[("w", &[1, 2], &[0.0; 2]), ("v", &[3], &[0.0; 3])], "tensor `w` is [1, 2], the model's is [2, 1]");
    refused(
        &[("w", &[2, 1], &[0.0; 2]), ("v", &[3], &[0.0; 3]), ("x", &[1], &[0.0])],
        "tensor `x` is not in the model",
    );
    refused(&[("w", &[2, 1], &[0.0; 2]), ("second/v", &[3], &[0.0; 3])], "`second/v` is not in the model");
    assert!(files.open(&["nobody"], PLAIN).unwrap_err().why.contains("cannot be read"));
}

#[test]
fn values_without_a_place_on_the_grid_are_refused_with_tensor_and_place() {
    for (bad, why) in
        [(f32::NAN, "is not finite"), (f32::INFINITY, "is not finite"), (f32::MAX, "larger than any grid")]
    {
        let files = Files::new(&[MODEL, [0.0, 0.0, 0.0, bad, 0.0]]);
        let mut updates = files.open(&["a", "b"], PLAIN).unwrap();
        let found = updates.fix_grids(None).unwrap_err();
        assert!(found.why.contains(why), "{found}");
        if why.contains("finite") {
            assert!(found.to_string().contains("b.safetensors") && found.why.contains("`v`: change"), "{found}");
            assert!(found.why.contains("value 1"), "{found}");
        }
    }
    let files = Files::new(&[MODEL]);
    let mut updates = files.open(&["a"], PLAIN).unwrap();
    updates.fix_grids(Some(&BTreeMap::from([("v".to_owned(), Grid { exponent: 0, bound: 7 })]))).unwrap();
    let found = updates.read(0, 0, &mut [0; 5]).unwrap_err();
    assert!(found.why.contains("tensor `v`: change 8e0 of value 2 lies outside"), "{found}");
}
