//! Architectures and recipes: shapes, layouts, refusals.

use super::*;

#[test]
fn the_digits_mlp_has_its_tensors_in_layer_order() {
    let arch = Recipe::named("mlp", &[32]).unwrap().build(&[64], Task::Classification { classes: 10 }).unwrap();
    let names: Vec<_> = arch.layout().unwrap().iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    assert_eq!(
        names,
        [
            ("layer000.bias".into(), vec![32]),
            ("layer000.weight".into(), vec![64, 32]),
            ("layer002.bias".into(), vec![10]),
            ("layer002.weight".into(), vec![32, 10]),
        ]
    );
    assert_eq!(arch.parameters().unwrap(), 64 * 32 + 32 + 32 * 10 + 10);
}

#[test]
fn layers_that_cannot_follow_are_named() {
    let arch =
        Architecture { input: vec![1, 8, 8], layers: vec![LayerSpec::Dense { units: 3 }], task: Task::Regression };
    assert!(arch.layout().unwrap_err().0.contains("layer 0: dense needs a flat input"));
    assert!(Recipe::named("mpl", &[]).unwrap_err().0.contains("did you mean `mlp`"));
    assert!(Recipe::named("residual_cnn", &[]).unwrap_err().0.contains("not build it yet"));
}
