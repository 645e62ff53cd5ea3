//! Rounds from files against a few lines of plain arithmetic, and what is refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::*;

/// A file of one tensor `w` and one `b`.
fn write(path: &Path, w: &[f32], b: f32) {
    let tensors = [("b".to_owned(), vec![1]), ("w".to_owned(), vec![w.len()])];
    let mut file = begin_tensors(path, &tensors).unwrap();
    file.write(&b.to_le_bytes()).unwrap();
    file.write(&w.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    file.finish().unwrap();
}

fn values(path: &Path) -> Vec<f32> {
    let file = TensorFile::open(path).unwrap();
    let mut out = vec![0.0; file.values()];
    file.reader().unwrap().read(0, &mut out, &mut Vec::new()).unwrap();
    out
}

struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    /// Participants `a`, `b`, .. whose models are the model plus these.
    fn new(changes: &[[f32; 3]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["models", "changes"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        write(&dir.path().join("model.safetensors"), &[1.0, -1.0], 0.5);
        for (name, c) in ["a", "b", "c", "d", "e"].iter().zip(changes) {
            let file = format!("{name}.safetensors");
            write(&dir.path().join("changes").join(&file), &c[1..], c[0]);
            write(&dir.path().join("models").join(&file), &[1.0 + c[1], -1.0 + c[2]], 0.5 + c[0]);
        }
        Self { dir }
    }

    fn files(&self, content: Content) -> Files {
        let at = |name: &str| self.dir.path().join(name);
        Files {
            model: at("model.safetensors"),
            updates: at(if content == Content::Models { "models" } else { "changes" }),
            content,
            state: None,
            state_out: None,
            output: at("out.safetensors"),
        }
    }

    fn round(&self, strategy: &str, config: serde_json::Value, weights: &[u32]) -> Round {
        let chosen = aivillage_training::strategy::named(strategy, config.as_object().unwrap()).unwrap();
        let declared = |weight: &u32| serde_json::from_value(json!({ "examples": weight })).unwrap();
        let participants: BTreeMap<String, Declared> =
            ["a", "b", "c", "d", "e"].iter().map(ToString::to_string).zip(weights.iter().map(declared)).collect();
        Round {
            strategy: chosen.strategy,
            training: LocalTraining {
                epochs: 1,
                batch_size: 1,
                learning_rate: 0.1,
                momentum: 0.0,
                weight_decay: 0.0,
                proximal_mu: 0.0,
            },
            round: None,
            invited: 5,
            examples_max: None,
            participants,
            personal: Vec::new(),
            grids: None,
            recorded: None,
        }
    }
}

#[test]
fn means_and_medians_are_those_of_plain_arithmetic() {
    let case = Case::new(&[[0.5, 1.0, 0.25], [1.5, -1.0, 0.25], [4.0, 8.0, -0.125]]);
    for content in [Content::Models, Content::Differences] {
        let files = case.files(content);
        let made = recompute(&case.round("fedavg", json!({}), &[1, 3, 4]), &files).unwrap();
        assert_eq!(values(&files.output), [3.125, 4.75, -0.9375]);
        assert_eq!(made.model.digest, file_digest(&files.output).unwrap());
        let round = case.round("median", json!({}), &[1, 3, 4]);
        recompute(&round, &files).unwrap();
        assert_eq!(values(&files.output), [2.0, 2.0, -0.75]);
    }
    let left: Vec<_> = std::fs::read_dir(case.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "nothing but the model, the folders and the result: {left:?}");
}

#[test]
fn state_goes_from_round_to_round_with_the_rounds_number() {
    let case = Case::new(&[[1.0, 2.0, 4.0]]);
    let at = |name: &str| case.dir.path().join(name);
    let first = Files { state_out: Some(at("s1")), output: at("m1"), ..case.files(Content::Differences) };
    let round = case.round("fedavgm", json!({"server_momentum": 0.5}), &[7]);
    let made = recompute(&round, &first).unwrap();
    assert_eq!((made.round, made.state.len()), (1, 1));
    assert_eq!(values(&at("m1")), [1.5, 3.0, 3.0]);
    let second = Files { model: at("m1"), state: Some(at("s1")), state_out: Some(at("s2")), output: at("m2"), ..first };
    let made = recompute(&round, &second).unwrap();
    assert_eq!(made.round, 2);
    assert_eq!(values(&at("m2")), [3.0, 6.0, 9.0], "one and a half times the change more");
    assert_eq!(values(&at("s2").join("momentum.safetensors")), [1.5, 3.0, 6.0]);
    let other = case.round("fedadam", json!({}), &[7]);
    let refused = recompute(&other, &second).unwrap_err();
    assert!(refused.message.contains("state of fedavgm, not of fedadam"), "{refused}");
}

#[test]
fn a_result_that_is_not_the_recorded_one_is_a_failure_and_leaves_nothing() {
    let case = Case::new(&[[1.0, 2.0, 4.0]]);
    let files = case.files(Content::Differences);
    let mut round = case.round("fedavg", json!({}), &[7]);
    let made = recompute(&round, &files).unwrap();
    std::fs::remove_file(&files.output).unwrap();
    let recorded = Recorded {
        model_in: file_digest(&files.model).unwrap(),
        state_in: Vec::new(),
        model_out: made.model.digest,
        state_out: Vec::new(),
    };
    round.recorded = Some(recorded.clone());
    assert_eq!(recompute(&round, &files).unwrap().model, made.model);
    std::fs::remove_file(&files.output).unwrap();
    for wrong in [
        Recorded { model_out: Digest::of(b"other"), ..recorded.clone() },
        Recorded { model_in: Digest::of(b"other"), ..recorded },
    ] {
        round.recorded = Some(wrong);
        let refused = recompute(&round, &files).unwrap_err();
        assert!(refused.message.contains("BLAKE3") && refused.hint.is_some(), "{refused}");
        assert!(!files.output.exists());
    }
    round.recorded = None;
    let payload = BlobRef { digest: Digest::of(b"other"), bytes: 12 };
    round.participants.get_mut("a").unwrap().payload = Some(payload);
    let refused = recompute(&round, &files).unwrap_err();
    assert!(refused.message.contains("the update of a is not the one that counted"), "{refused}");
}

#[test]
fn rules_refuse_what_they_cannot_use() {
    let case = Case::new(&[[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]);
    let files = case.files(Content::Differences);
    let refused = recompute(&case.round("krum", json!({"byzantine": 1}), &[1, 1]), &files).unwrap_err();
    assert!(refused.message.contains("n >= 2f + 3 with byzantine f = 1: 2 updates"), "{refused}");
    let refused = recompute(&case.round("qfedavg", json!({}), &[1, 1]), &files).unwrap_err();
    assert!(refused.message.contains("loss"), "{refused}");
    assert!(!files.output.exists());
}
