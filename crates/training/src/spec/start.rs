//! Which model a job starts from, and whether that shape goes together with what else is asked.

use aivillage_base::{ModelId, Recipe, arch};

use super::{CatalogueModel, Faults, Hyper, JobRequest, ModelChoice, Start};

/// Techniques that clip the gradient of each example at the node (Abadi et al. 2016, algorithm 1).
const CLIP_EXAMPLES: [&str; 2] = ["differential_privacy", "local_differential_privacy"];

/// The start that was asked for, with the normalisation that was asked for; None = a fault was found.
pub(super) fn resolve(
    request: &JobRequest,
    hyper: &Hyper,
    catalogue: impl FnOnce(&ModelId) -> Option<CatalogueModel>,
    faults: &mut Faults,
) -> Option<Start> {
    let start = match named(&request.model_architecture, &hyper.hidden, catalogue, faults)? {
        Start::Recipe(recipe) => match recipe.with_norm(hyper.norm) {
            Ok(recipe) => Start::Recipe(recipe),
            Err(e) => {
                faults.invalid("/hyperparameters/norm", &e.0);
                return None;
            }
        },
        Start::Model(_) if hyper.norm != arch::Norm::None => {
            let why = "norm is an option of `mlp` and `simple_cnn`, and a catalogue model has the layers it has: leave it out";
            faults.invalid("/hyperparameters/norm", why);
            return None;
        }
        Start::Model(model) => Start::Model(model),
    };
    check_examples_apart(request, &start, faults);
    Some(start)
}

/// Who asks that single examples be clipped asks for a model in which they can be.
fn check_examples_apart(request: &JobRequest, start: &Start, faults: &mut Faults) {
    let apart = match start {
        Start::Recipe(recipe) => recipe.examples_apart(),
        Start::Model(model) => model.architecture.examples_apart(),
    };
    let Err(why) = apart else { return };
    for (i, technique) in request.privacy_techniques.iter().flatten().enumerate() {
        if CLIP_EXAMPLES.contains(&technique.as_str()) {
            let detail = format!("`{technique}` clips the gradient of each example, and this model cannot: {why}");
            faults.invalid(&format!("/privacy_techniques/{i}"), &detail);
        }
    }
}

fn named(
    choice: &ModelChoice,
    hidden: &[usize],
    catalogue: impl FnOnce(&ModelId) -> Option<CatalogueModel>,
    faults: &mut Faults,
) -> Option<Start> {
    let name = match choice {
        ModelChoice::Layers(layers) => return Some(Start::Recipe(Recipe::Layers(layers.clone()))),
        ModelChoice::Named(name) => name,
    };
    let recipe = Recipe::named(name, hidden);
    let known = recipe.is_ok() || arch::RECIPES_NOT_BUILT.contains(&name.as_str());
    if !known && let Some(model) = ModelId::new(name.clone()).ok().as_ref().and_then(catalogue) {
        return Some(Start::Model(model));
    }
    match recipe {
        Ok(recipe) => Some(Start::Recipe(recipe)),
        Err(e) if known => {
            faults.invalid("/model_architecture", &e.0);
            None
        }
        Err(e) => {
            let more = "; no catalogue model that can be trained has this id either";
            faults.invalid("/model_architecture", &format!("{}{more}", e.0));
            None
        }
    }
}
