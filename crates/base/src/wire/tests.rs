//! Wire messages: what is sent is what is received; what a newer side adds is ignored, what is broken is refused.

use proptest::prelude::*;

use super::*;
use crate::arch::Recipe;

fn round_key() -> impl Strategy<Value = RoundKey> {
    ("[a-z0-9][a-z0-9_.-]{0,20}", any::<u32>(), any::<u32>()).prop_map(|(job, round, attempt)| RoundKey {
        job: JobId::new(job).unwrap(),
        round,
        attempt,
    })
}

fn blob() -> impl Strategy<Value = BlobRef> {
    (any::<[u8; 32]>(), any::<u64>()).prop_map(|(bytes, length)| BlobRef { digest: Digest(bytes), bytes: length })
}

fn down() -> impl Strategy<Value = Down> {
    let invitation = (round_key(), blob(), any::<u64>(), 1usize..50, 0.0001f64..10.0).prop_map(
        |(key, model, seed, hidden, learning_rate)| {
            let recipe = Recipe::Mlp { hidden: vec![hidden] };
            let architecture = recipe.build(&[7], Task::Classification { classes: 3 }).unwrap();
            Down::Invite(Box::new(Invitation {
                key,
                job_name: "a \"job\"\nof two lines".into(),
                publisher: "ada".into(),
                job_type: "standard".into(),
                recipe: recipe.name().into(),
                grids: vec![Grid::default(); 4],
                architecture,
                model,
                training: LocalTraining {
                    epochs: 3,
                    batch_size: 32,
                    learning_rate,
                    momentum: 0.9,
                    weight_decay: 0.0,
                    proximal_mu: 0.0,
                },
                data: DataRequirements::default(),
                seed,
                max_examples: 5,
                local: LocalRule::Ditto { lambda: 0.5 },
                initial_loss: false,
                personal: Vec::new(),
                receipt: None,
                retain_updates: false,
                clip: None,
                privacy_techniques: Vec::new(),
                secure: None,
                total_rounds: 9,
                deadline_ms: seed,
            }))
        },
    );
    let predict = (any::<u128>(), blob(), prop::collection::vec(prop::collection::vec(-1e6f32..1e6, 3), 0..4))
        .prop_map(|(bits, model, rows)| {
            Down::Predict(Box::new(PredictTask {
                request: RequestId::from_bits(bits),
                attempt: 1,
                model_id: ModelId::new("m").unwrap(),
                model,
                rows,
                deadline_ms: 5,
            }))
        });
    prop_oneof![
        Just(Down::Heartbeat),
        invitation,
        predict,
        round_key().prop_map(|key| Down::RoundClosed { key, outcome: "published".into() }),
    ]
}

fn up() -> impl Strategy<Value = Up> {
    prop_oneof![
        Just(Up::Leave),
        (round_key(), "[ -~]{0,40}").prop_map(|(key, reason)| Up::TrainingFailed { key, reason }),
        (round_key(), any::<bool>()).prop_map(|(key, yes)| Up::Answer {
            key,
            declined: (!yes).then(|| Declined {
                rule: "hours".into(),
                reason: "night".into(),
                signature: Hex([7; 64]),
            }),
        }),
        (any::<u128>(), prop::collection::vec(prop::collection::vec(0.0f32..1.0, 2), 0..3)).prop_map(
            |(bits, outputs)| {
                Up::Prediction {
                    request: RequestId::from_bits(bits),
                    attempt: 2,
                    outcome: PredictOutcome::Done { outputs, compute_us: 7 },
                }
            }
        ),
    ]
}

proptest! {
    #[test]
    fn messages_are_read_back_as_they_were_sent(down in down(), up in up()) {
        let text = serde_json::to_string(&down).unwrap();
        prop_assert!(!text.contains('\n'), "a message is one line of the stream");
        prop_assert_eq!(serde_json::from_str::<Down>(&text).unwrap(), down);
        let text = serde_json::to_string(&up).unwrap();
        prop_assert_eq!(serde_json::from_str::<Up>(&text).unwrap(), up);
    }

    #[test]
    fn text_that_is_no_message_is_refused_without_a_panic(text in "[ -~]{0,80}") {
        prop_assert!(serde_json::from_str::<Down>(&text).is_err());
        prop_assert!(serde_json::from_str::<Up>(&text).is_err());
    }
}

#[test]
fn what_a_newer_side_adds_is_ignored() {
    let text = r#"{"type":"goodbye","retry_after_ms":5,"because":"an update"}"#;
    assert_eq!(serde_json::from_str::<Down>(text).unwrap(), Down::Goodbye { retry_after_ms: 5 });
}

#[test]
fn a_refusal_of_a_node_that_does_not_sign_has_a_signature_that_no_key_makes() {
    let old: Declined = serde_json::from_str(r#"{"rule":"hours","reason":"night"}"#).unwrap();
    assert_eq!(old.signature, Hex([0; 64]));
}
