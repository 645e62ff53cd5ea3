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

fn tensors(architecture: &Architecture) -> Vec<(String, Vec<usize>)> {
    architecture.layout().unwrap().into_iter().map(|t| (t.name, t.shape)).collect()
}

#[test]
fn a_normalised_mlp_has_four_tensors_before_each_relu_in_the_order_of_their_names() {
    let recipe = Recipe::named("mlp", &[32]).unwrap().with_norm(Norm::Batch).unwrap();
    let classes = Task::Classification { classes: 10 };
    let arch = recipe.build(&[64], classes).unwrap();
    let found = tensors(&arch);
    let four = ["running_mean", "running_variance", "scale", "shift"];
    let four = four.map(|end| (format!("layer001.{end}"), vec![32]));
    assert_eq!(found[2..6], four);
    assert!(found.is_sorted(), "{found:?}");
    assert_eq!(found[6].0, "layer003.bias");
    let variances: Vec<_> = found.iter().filter(|(name, _)| holds_variances(name)).collect();
    assert_eq!(variances, [&("layer001.running_variance".to_owned(), vec![32])]);
    assert_eq!(recipe.name(), "mlp", "what policies allow by name stays allowed");
    let cnn = Recipe::SimpleCnn.with_norm(Norm::Batch).unwrap().build(&[64], classes).unwrap();
    let names: Vec<_> = tensors(&cnn).into_iter().filter(|(name, _)| name.ends_with("scale")).collect();
    assert_eq!(names, [("layer001.scale".to_owned(), vec![16]), ("layer005.scale".to_owned(), vec![32])]);
    let text = serde_json::to_string(&recipe).unwrap();
    assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe);
}

#[test]
fn without_a_norm_recipes_and_models_are_written_as_ever() {
    let plain = Recipe::SimpleCnn.with_norm(Norm::None).unwrap();
    assert_eq!(serde_json::to_string(&plain).unwrap(), "\"simple_cnn\"");
    let arch = Recipe::Mlp { hidden: vec![2] }.build(&[3], Task::Regression).unwrap();
    let text = serde_json::to_string(&arch).unwrap();
    assert_eq!(
        text,
        r#"{"input":[3],"layers":[{"type":"dense","units":2},{"type":"relu"},{"type":"dense","units":1}],"task":{"kind":"regression"}}"#
    );
    let layer: LayerSpec = serde_json::from_str(r#"{"type":"batch_norm"}"#).unwrap();
    assert_eq!(layer, LayerSpec::BatchNorm {});
    assert!(serde_json::from_str::<LayerSpec>(r#"{"type":"batch_norm","momentum":0.5}"#).is_err());
}

#[test]
fn a_norm_that_cannot_be_is_refused() {
    for recipe in [Recipe::LogisticRegression, Recipe::LinearRegression, Recipe::Layers(vec![LayerSpec::Relu])] {
        let error = recipe.with_norm(Norm::Batch).unwrap_err();
        assert!(error.0.contains("an option of `mlp` and `simple_cnn`"), "{error}");
    }
    let layers = vec![LayerSpec::BatchNorm {}, LayerSpec::Flatten, LayerSpec::Dense { units: 1 }];
    let arch = Architecture { input: vec![2, 2], layers, task: Task::Regression };
    assert!(arch.layout().unwrap_err().0.contains("layer 0: batch_norm needs [features]"));
}

#[test]
fn what_mixes_examples_is_named_before_and_after_the_data_is_known() {
    let recipe = Recipe::Mlp { hidden: vec![2] };
    let says = |error: ArchError| {
        assert!(error.0.contains("no example has a gradient of its own") && error.0.contains("norm: none"), "{error}");
    };
    assert_eq!(recipe.examples_apart(), Ok(()));
    assert_eq!(recipe.build(&[3], Task::Regression).unwrap().examples_apart(), Ok(()));
    let mixed = recipe.with_norm(Norm::Batch).unwrap();
    says(mixed.examples_apart().unwrap_err());
    let architecture = mixed.build(&[3], Task::Regression).unwrap();
    says(Recipe::Layers(architecture.layers.clone()).examples_apart().unwrap_err());
    let error = architecture.examples_apart().unwrap_err();
    assert!(error.0.starts_with("layer 1: "), "{error}");
}
