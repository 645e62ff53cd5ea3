//! Inputs as people send them, right and wrong.

use super::*;
use aivillage_base::Recipe;
use proptest::prelude::{Just, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as _;
use serde_json::json;

fn flat(width: usize) -> Architecture {
    Recipe::LogisticRegression.build(&[width], Task::Classification { classes: 2 }).unwrap()
}

fn image() -> Architecture {
    Recipe::Mlp { hidden: vec![] }.build(&[1, 2, 2], Task::Regression).unwrap()
}

fn read(value: Value, model: &Architecture) -> Result<Vec<Vec<f32>>, String> {
    let Value::Object(map) = value else { unreachable!("tests pass objects") };
    parse(&map, model).map_err(|e| e.to_string())
}

#[test]
fn a_row_and_a_list_of_rows_are_told_apart() {
    assert_eq!(read(json!({"inputs": [1, 2.5, -3]}), &flat(3)), Ok(vec![vec![1.0, 2.5, -3.0]]));
    assert_eq!(read(json!({"input": [[1, 2], [3, 4]]}), &flat(2)), Ok(vec![vec![1.0, 2.0], vec![3.0, 4.0]]));
    assert_eq!(read(json!({"image_tensor": [[0.5, 2]]}), &flat(2)), Ok(vec![vec![0.5, 2.0]]), "the guide's word");
    let one = vec![vec![1.0, 2.0, 3.0, 4.0]];
    for same in [json!([1, 2, 3, 4]), json!([[1, 2, 3, 4]]), json!([[[1, 2], [3, 4]]]), json!([[[[1, 2], [3, 4]]]])] {
        assert_eq!(read(json!({"inputs": same}), &image()), Ok(one.clone()), "{same}");
    }
}

#[test]
fn every_fault_has_its_pointer_and_both_shapes() {
    let check = |value: Value, model: &Architecture, wanted: &[&str]| {
        let error = read(value, model).unwrap_err();
        for part in wanted {
            assert!(error.contains(part), "{part} in {error}");
        }
    };
    check(
        json!({"inputs": [1, 2]}),
        &flat(3),
        &["/input_data/inputs:", "2 entries", "3 are needed", "row of 3 numbers"],
    );
    check(json!({"inputs": [[1, 2, 3], [1, 2]]}), &flat(3), &["/input_data/inputs/1:", "2 entries"]);
    check(json!({"inputs": [[1, 2, 3], 7]}), &flat(3), &["/input_data/inputs/1:", "a number"]);
    check(json!({"inputs": [[[1, 2], [3]]]}), &image(), &["/input_data/inputs/0/1:", "[1, 2, 2]"]);
    check(json!({"inputs": [1, "x", 3]}), &flat(3), &["/input_data/inputs/1:", "this is a text"]);
    check(json!({"inputs": [1, 1e39, 3]}), &flat(3), &["/input_data/inputs/1:", "32 bits"]);
    check(json!({"inputs": []}), &flat(3), &["empty"]);
    check(json!({"inputs": [[]]}), &flat(3), &["/input_data/inputs/0:", "0 entries"]);
    check(json!({"inputs": [[[[[1]]]]]}), &flat(3), &["nested 5 deep"]);
    check(json!({"inputs": "secret"}), &flat(3), &["this is a text"]);
    check(json!({"input": 1, "inputs": 2}), &flat(3), &["it has several"]);
    check(json!({}), &flat(3), &["/input_data:", "is empty"]);
    check(json!({"inptus": [1]}), &flat(3), &["/input_data/inptus:", "did you mean `inputs`"]);
    check(json!({"test_data": [[0.1]]}), &flat(3), &["unknown key", "row of 3 numbers"]);
    check(json!({"a/b~": 1}), &flat(3), &["/input_data/a~1b~0:"]);
}

#[test]
fn more_than_a_node_should_carry_is_refused() {
    let rows = vec![vec![0; 3]; ROWS_MAX + 1];
    assert!(read(json!({"inputs": rows}), &flat(3)).unwrap_err().contains("at most 1024"));
    let wide = vec![vec![0; 4_096]; 65];
    assert!(read(json!({"inputs": wide}), &flat(4_096)).unwrap_err().contains("262144"));
    let many = Recipe::LogisticRegression.build(&[1], Task::Classification { classes: 1_000 }).unwrap();
    assert!(read(json!({"inputs": vec![[0]; 100]}), &many).unwrap_err().contains("100000 output values"));
}

proptest! {
    #[test]
    fn what_fits_reads_back_exactly(rows in prop::collection::vec(prop::collection::vec(-1e30f32..1e30, 4), 1..20)) {
        prop_assert_eq!(read(json!({"inputs": rows}), &flat(4)), Ok(rows.clone()));
        let nested: Vec<_> = rows.iter().map(|r| json!([[[r[0], r[1]], [r[2], r[3]]]])).collect();
        prop_assert_eq!(read(json!({"inputs": nested}), &image()), Ok(rows));
    }

    #[test]
    fn any_json_gives_full_finite_rows_or_a_pointer(value in any_json()) {
        for model in [flat(2), image()] {
            match read(json!({"inputs": value}), &model) {
                Ok(rows) => prop_assert!(!rows.is_empty() && rows.iter().flatten().all(|x| x.is_finite())
                    && rows.iter().all(|r| r.len() == model.input.iter().product::<usize>())),
                Err(error) => prop_assert!(error.starts_with("/input_data")),
            }
        }
    }
}

fn any_json() -> impl proptest::strategy::Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<f64>().prop_map(|x| json!(x)),
        any::<i64>().prop_map(|x| json!(x)),
        Just(Value::Null),
        Just(json!("x")),
    ];
    leaf.prop_recursive(5, 64, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("[a-z]", inner, 0..3).prop_map(|m| json!(m)),
        ]
    })
}
