//! What a node's owner may write in node.yaml, and how each slip is explained.

use std::io::Write;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(file: &str, bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), bytes).unwrap();
        Self(folder)
    }

    fn load(&self, source: &Source) -> Result<Loaded, String> {
        load(source, self.0.path()).map_err(|e| e.to_string().replace(&self.0.path().display().to_string(), "DIR"))
    }
}

fn source(origin: Origin) -> Source {
    Source { name: "mine".into(), task: DataTask::Classification, classes: None, test_fraction: 0.0, origin }
}

fn csv_source(label: Option<Column>, features: Option<Vec<Column>>) -> Source {
    source(Origin::Csv { path: "a.csv".into(), label, features })
}

fn npz_source() -> Source {
    source(Origin::Npz { path: "a.npz".into(), features: "x".into(), label: "y".into() })
}

fn name(text: &str) -> Column {
    Column::Name(text.into())
}

fn csv_error(text: &str) -> String {
    Folder::with("a.csv", text.as_bytes()).load(&csv_source(None, None)).unwrap_err()
}

#[test]
fn a_csv_file_with_or_without_header_plain_or_gzip_gives_the_same_rows() {
    let with_header = "age, pressure ,outcome\n1,2,0\n3.5,-4e1,1\n";
    let expected = Dataset::classification("mine", vec![2], 2, vec![1.0, 2.0, 3.5, -40.0], vec![0, 1]).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(with_header.as_bytes()).unwrap();
    for bytes in [with_header.as_bytes().to_vec(), b"1,2,0\n3.5,-4e1,1".to_vec(), gz.finish().unwrap()] {
        let loaded = Folder::with("a.csv", &bytes).load(&csv_source(None, None)).unwrap();
        assert_eq!(loaded, Loaded { train: expected.clone(), held_out: None });
    }
}

#[test]
fn label_and_features_are_chosen_by_name_or_index() {
    let folder = Folder::with("a.csv", b"id,sick,age,weight\n7,1,50,80\n8,0,40,70\n");
    let by_name = folder.load(&csv_source(Some(name("sick")), Some(vec![name("weight"), name("age")]))).unwrap();
    let index = Column::Index;
    let by_index = folder.load(&csv_source(Some(index(1)), Some(vec![index(3), index(2)]))).unwrap();
    assert_eq!(by_name, by_index);
    assert_eq!(by_name.train.x(0..1), [80.0, 50.0]);
    assert_eq!(by_name.train.labels(), Some([1, 0].as_slice()));
    let error = folder.load(&csv_source(Some(name("sik")), None)).unwrap_err();
    assert_eq!(error, "DIR/a.csv:1: unknown column `sik`: did you mean `sick`? (valid: id, sick, age, weight)");
    let error = folder.load(&csv_source(Some(index(4)), None)).unwrap_err();
    assert_eq!(error, "DIR/a.csv: no column 4: they run from 0 to 3");
    let error = folder.load(&csv_source(Some(index(1)), Some(vec![index(1)]))).unwrap_err();
    assert!(error.contains("both `label` and one of `features`"), "{error}");
}

#[test]
fn a_slip_in_a_csv_file_is_named_with_line_and_column() {
    let check = |text: &str, want: &str| assert_eq!(csv_error(text), want);
    check("", "DIR/a.csv: the file is empty");
    check("a,b\n", "DIR/a.csv: there is a header line, but no row below it");
    check("a,b\n1,0\n2,x\n", "DIR/a.csv:3:2: `x` in column `b`: a finite number is expected");
    check("1,0\n,1\n", "DIR/a.csv:2:1: an empty cell: a finite number is expected");
    check("1,0\nNaN,1\n", "DIR/a.csv:2:1: `NaN`: a finite number is expected");
    check("1e39,0\n1,1\n", "DIR/a.csv:1:1: the number is too large for 32-bit floating point");
    check("1,0\n1,2,3\n", "DIR/a.csv:2: 3 columns, but 2 in the lines before: every line needs the same number");
    check("0\n1\n", "DIR/a.csv: no column is left to predict from: a file needs at least two columns");
    assert!(csv_error("1,0\n2,0.5\n").contains("row 1 has label 0.5: labels of a classification are 0, 1, 2"));
    assert!(csv_error("1,0\n2,0\n").contains("set `classes`"));
    let missing = Folder::with("b.csv", b"").load(&csv_source(None, None)).unwrap_err();
    assert!(missing.contains("cannot read DIR/a.csv") && missing.contains("`path`"), "{missing}");
}

#[test]
fn classes_and_task_are_obeyed() {
    let folder = Folder::with("a.csv", b"1,0\n2,1\n");
    let mut source = csv_source(None, None);
    source.classes = Some(5);
    assert_eq!(folder.load(&source).unwrap().train.task().outputs(), 5);
    let few = Folder::with("a.csv", b"1,0\n2,6\n").load(&source).unwrap_err();
    assert!(few.contains("row 1 has label 6, but 5 classes"), "{few}");
    source.task = DataTask::Regression;
    assert!(folder.load(&source).unwrap_err().contains("`classes` has no meaning"));
    source.classes = None;
    assert_eq!(folder.load(&source).unwrap().train.labels(), None);
}

#[test]
fn held_out_rows_are_never_trained_on() {
    let text: String = (0..50).map(|i| format!("{i},{}\n", i % 2)).collect();
    let folder = Folder::with("a.csv", text.as_bytes());
    let mut source = csv_source(None, None);
    source.test_fraction = 0.2;
    let loaded = folder.load(&source).unwrap();
    let held = loaded.held_out.unwrap();
    assert_eq!((loaded.train.rows(), held.rows()), (40, 10));
    let mut all = [loaded.train.x(0..40), held.x(0..10)].concat();
    all.sort_by(f32::total_cmp);
    assert!(all.iter().zip(0u16..).all(|(v, i)| *v == f32::from(i)));
    source.test_fraction = 0.95;
    assert!(folder.load(&source).unwrap_err().contains("not in 0 to 0.9"));
}

#[test]
fn a_source_reads_back_from_what_a_checked_node_yaml_serialises_to() {
    let text = r#"{"name": "mine", "task": "classification", "classes": null, "test_fraction": 0.0, "origin":
        {"kind": "csv", "path": "a.csv", "label": "sick", "features": [0, "age"]}}"#;
    let want = csv_source(Some(name("sick")), Some(vec![Column::Index(0), name("age")]));
    assert_eq!(serde_json::from_str::<Source>(text).unwrap(), want);
    let text = r#"{"kind": "shard", "dataset": "breast_cancer", "index": 0, "of": 6, "alpha": 0.3, "seed": 1}"#;
    let want = Origin::Shard { dataset: Bundled::BreastCancer, index: 0, of: 6, alpha: 0.3, seed: 1 };
    assert_eq!(serde_json::from_str::<Origin>(text).unwrap(), want);
}

#[test]
fn a_shard_is_exactly_its_part_of_the_deal() {
    let of_six = |index| source(Origin::Shard { dataset: Bundled::Digits, index, of: 6, alpha: 0.3, seed: 1 });
    let deal = split(Bundled::Digits, 6, 0.3, 1).unwrap();
    for (index, shard) in (0..6).zip(&deal.shards) {
        let loaded = load(&of_six(index), Path::new("")).unwrap().train;
        assert_eq!(loaded.name(), "mine");
        assert_eq!((loaded.x(0..loaded.rows()), loaded.labels()), (shard.x(0..shard.rows()), shard.labels()));
    }
    let error = load(&of_six(6), Path::new("")).unwrap_err().to_string();
    assert!(error.contains("`index` runs from 0 to `of` - 1"), "{error}");
}

/// A NumPy archive of two arrays, written by hand from the format's description.
fn archive(arrays: &[(&str, &str, &str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, descr, shape, data) in arrays {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
        zip.write_all(&u16::try_from(text.len()).unwrap().to_le_bytes()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn le<T, const N: usize>(values: &[T], bytes: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(bytes).collect()
}

#[test]
fn every_accepted_type_of_array_reads_as_the_same_numbers() {
    let want = Dataset::classification("mine", vec![2], 2, vec![1.0, 2.0, 3.0, 4.0], vec![0, 1]).unwrap();
    let (x, y) = ([1u8, 2, 3, 4], [0u8, 1]);
    let all = |values: &[u8]| {
        [
            ("<f4", le(values, |v| f32::from(*v).to_le_bytes())),
            ("<f8", le(values, |v| f64::from(*v).to_le_bytes())),
            ("<i4", le(values, |v| i32::from(*v).to_le_bytes())),
            ("<i8", le(values, |v| i64::from(*v).to_le_bytes())),
            ("|u1", values.to_vec()),
        ]
    };
    for ((xd, xs), (yd, ys)) in all(&x).into_iter().zip(all(&y)) {
        let folder = Folder::with("a.npz", &archive(&[("x", xd, "(2, 2)", xs), ("y", yd, "(2,)", ys)]));
        assert_eq!(folder.load(&npz_source()).unwrap().train, want, "{xd}");
    }
    let image =
        Folder::with("a.npz", &archive(&[("x", "|u1", "(2, 1, 2)", x.to_vec()), ("y", "|u1", "(2, 1)", y.to_vec())]));
    assert_eq!(image.load(&npz_source()).unwrap().train.input(), [1, 1, 2]);
}

#[test]
fn arrays_that_cannot_be_used_say_what_to_do() {
    let check = |arrays: &[(&str, &str, &str, Vec<u8>)], want: &str| {
        let error = Folder::with("a.npz", &archive(arrays)).load(&npz_source()).unwrap_err();
        assert!(error.contains(want), "{error}");
    };
    let y = || ("y", "|u1", "(2,)", vec![0, 1]);
    check(&[("x", "|O", "(2, 1)", vec![0; 16]), y()], "its type is |O: float32, float64");
    check(&[("x", ">f4", "(2, 1)", vec![0; 8]), y()], "its type is >f4");
    check(&[("x", "|u1", "(3, 1)", vec![0; 3]), y()], "shape [2], but `x` has 3 rows: [3] is expected");
    check(&[("x", "|u1", "(2, 9)", vec![0; 3]), y()], "array `x`: cut after 0 of 18 numbers");
    check(&[("x", "<f4", "(99999, 99999)", vec![]), y()], "holds more than 268435456 numbers");
    check(&[("x", "<f4", "(2, 1)", le(&[1.0f32, f32::NAN], |v| v.to_le_bytes())), y()], "number 0 of row 1 is not");
    check(&[("x", "<f4", "(2,)", vec![0; 8]), y()], "rows of [features]");
    check(&[("z", "<f4", "(2,)", vec![0; 8]), y()], "unknown array `x`");
    let error = Folder::with("a.npz", b"no zip").load(&npz_source()).unwrap_err();
    assert!(error.contains("not a NumPy archive"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        at in 0usize..600,
        flip in 1u8..,
    ) {
        // Random bytes, and a good archive with one byte changed.
        let _ = csv::read(bytes.as_slice(), Path::new("a"), None, None);
        let _ = npz::read(io::Cursor::new(bytes), Path::new("a"), "x", "y");
        let mut bytes = archive(&[("x", "|u1", "(2, 2)", vec![1, 2, 3, 4]), ("y", "|u1", "(2,)", vec![0, 1])]);
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let _ = npz::read(io::Cursor::new(bytes), Path::new("a"), "x", "y");
    }

    #[test]
    fn numbers_written_as_csv_are_read_back(rows in proptest::collection::vec((-1e6f32..1e6, 0u32..4), 1..40)) {
        let text: String = rows.iter().map(|(x, label)| format!("{x},{label}\n")).collect();
        let raw = csv::read(text.as_bytes(), Path::new("a"), None, None).unwrap();
        proptest::prop_assert_eq!(raw.x, rows.iter().map(|r| r.0).collect::<Vec<_>>());
        proptest::prop_assert_eq!(raw.y, rows.iter().map(|r| f64::from(r.1)).collect::<Vec<_>>());
    }
}
