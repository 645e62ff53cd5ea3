//! Jobs over real nodes: what comes out, what is refused, and that it is the same every time.

use serde_json::Value;

use crate::village::Village;

async fn one_run(nodes: u32, rounds: u32) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::start(dir.path());
    for index in 0..nodes {
        village.join(&format!("site-{index}"), index, nodes).await;
    }
    let job = village.submit("digits", rounds, nodes).await;
    village.ended(&job).await
}

#[tokio::test]
async fn two_fresh_villages_with_one_seed_end_in_one_digest() {
    let first = one_run(3, 3).await;
    let second = one_run(3, 3).await;
    assert_eq!(first["status"], "completed", "{first:#}");
    assert!(first["model"]["blake3"].is_string(), "{first:#}");
    assert_eq!(first["model"]["blake3"], second["model"]["blake3"]);
}
