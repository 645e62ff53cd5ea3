//! What an auditor gets of a job, and who is none.

use aivillage_base::Digest;
use serde_json::{Value, json};

use crate::client::PATIENCE;
use crate::village::Village;

const F: &str = "/v1/federated/training";

async fn trained(village: &Village, retain: bool) {
    village.node.arrive().await;
    let body = json!({"job_name": "x", "job_id": "j", "model_architecture": "logistic_regression", "total_rounds": 2,
        "min_participants": 1, "privacy_techniques": [], "retain_updates": retain});
    village.post(&format!("{F}/create")).key(&village.client).json(&body).send().await.ok();
    tokio::time::timeout(PATIENCE, village.node.work()).await.expect("the job ends");
}

fn digest(record: &Value, round: usize) -> String {
    record["rounds"][round]["members"][0]["state"]["payload"]["digest"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_jobs_creator_and_admins_get_its_record_and_the_updates_that_were_kept() {
    let village = Village::start().await;
    trained(&village, true).await;
    for key in [&village.client, &village.admin] {
        let record = village.get(&format!("{F}/j/record")).key(key).send().await.ok();
        assert_eq!(record["job"]["spec"]["strategy"]["name"], "fedavg");
        assert_eq!(record["rounds"].as_array().unwrap().len(), 2, "{record:#}");
        for round in 0..2 {
            let digest = digest(&record, round);
            let update = village.get(&format!("{F}/j/updates/{digest}")).key(key).send().await;
            assert_eq!(Digest::of(&update.bytes).to_string(), digest);
            assert_eq!(update.header("etag"), format!("\"{digest}\""));
        }
    }
    let record = village.get(&format!("{F}/j/record")).key(&village.admin).send().await.ok();
    for path in ["j/record".to_owned(), format!("j/updates/{}", digest(&record, 0))] {
        let refused = village.get(&format!("{F}/{path}")).send().await.problem(403);
        assert!(refused["detail"].as_str().unwrap().contains("somebody else"), "{refused}");
    }
}

#[tokio::test]
async fn what_was_not_kept_or_never_was_is_not_found() {
    let village = Village::start().await;
    trained(&village, false).await;
    let record = village.get(&format!("{F}/j/record")).key(&village.admin).send().await.ok();
    for path in
        [format!("j/updates/{}", digest(&record, 0)), format!("j/updates/{}", "0".repeat(64)), "j/updates/x".to_owned()]
    {
        village.get(&format!("{F}/{path}")).key(&village.admin).send().await.problem(404);
    }
    for path in ["nothing/record".to_owned(), format!("nothing/updates/{}", "0".repeat(64))] {
        let refused = village.get(&format!("{F}/{path}")).key(&village.client).send().await.problem(404);
        assert_eq!(refused["detail"], "Job not found");
    }
}
