//! Rounds with a helper between real processes: a gateway, three nodes, and a helper of another owner, which dies on the way.

use serde_json::{Value, json};

use crate::process::{Process, Said, aivillage, say};
use crate::village::{Village, job, shard};

const HELPER: &str = "notary";

impl Village {
    /// A command that needs no gateway, in this village's folder.
    fn alone(&self, arguments: &[&str]) -> Said {
        let mut command = aivillage();
        command.current_dir(&self.dir).args(arguments);
        say(command)
    }

    fn helper(&self, arguments: &[&str]) -> Process {
        let mut command = aivillage();
        command.args(["helper", "join"]).args(arguments).arg("--dir").arg(self.dir.join(HELPER));
        Process::start(command, self.dir.join("notary.log"))
    }

    /// Enrols the helper; returns its key.
    async fn enrol_helper(&self) -> String {
        let token = self.token("another-owner").await;
        let mut enrolling = self.helper(&[&self.link, "--token", &token, "--enrol-only"]);
        assert!(enrolling.wait().success(), "{}", enrolling.log());
        self.alone(&["helper", "key", "--dir", HELPER]).ok().trim().to_owned()
    }
}

fn helped(id: &str, rounds: u32, name: &str) -> Value {
    let mut body = job(id, rounds, 3);
    body["privacy_techniques"] = json!(["secure_aggregation"]);
    body["privacy"] = json!({"variant": "two_helper", "helper": name});
    body
}

#[tokio::test]
async fn a_helper_that_is_killed_on_the_way_gives_the_plain_jobs_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    let key = village.enrol_helper().await;
    for index in 0..3 {
        let rules = format!("privacy:\n  require_secure_aggregation: false\n  helpers: [\"{key}\"]\n");
        village.join_with(&format!("site-{index}"), &format!("{}{rules}", shard(index, 3))).await;
    }
    village.connected(&["site-0", "site-1", "site-2"]).await;
    let plain = village.submit("plain", 2, 3).await;
    let expected = village.completed(&plain).await["model"]["blake3"].clone();
    assert!(expected.is_string());
    let name = village.enrolled_helper(&key).await;
    // It has noted what it opens, and dies before it says so; comes back, and dies when it has.
    let mut helper = village.helper(&["--crash-at", "before:help:1"]);
    village.create(&helped("helped", 2, &name)).await;
    helper.wait();
    let mut helper = village.helper(&["--crash-at", "after:help:1"]);
    helper.wait();
    let _running = village.helper(&[]);
    let status = village.completed("helped").await;
    assert_eq!(status["model"]["blake3"], expected, "{status:#}");
    assert_eq!(status["privacy"]["variant"], "two_helper");
    assert_eq!(status["privacy"]["helper"], json!(name));
    let members = status["rounds"][0]["participants"].as_array().unwrap();
    assert!(members.iter().all(|m| m["status"] == "counted" && m["weight"].is_null()), "{status:#}");
    let sent = std::fs::read_to_string(dir.path().join(HELPER).join("sent.log")).unwrap();
    let kinds: Vec<String> = sent
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].as_str().unwrap().to_owned())
        .collect();
    assert!(kinds.iter().all(|kind| kind == "report" || kind == "help"), "{sent}");
    let told = village.say(&["node", "preview", "helped", "--dir", "site-0"]).ok();
    assert!(told.contains("helpers"), "{told}");
}

impl Village {
    /// The name that the gateway has enrolled this key under.
    async fn enrolled_helper(&self, key: &str) -> String {
        let list: Value = self.client.get("nodes").await.unwrap();
        let nodes = list["nodes"].as_array().unwrap();
        let found = nodes.iter().find(|n| n["node_id"] == key).unwrap_or_else(|| panic!("{list:#}"));
        found["name"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn nodes_that_have_not_listed_the_helper_refuse_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    let key = village.enrol_helper().await;
    village.join_sites(3).await;
    let name = village.enrolled_helper(&key).await;
    let _running = village.helper(&[]);
    village.create(&helped("helped", 1, &name)).await;
    let refused = |v: &Value| v["reason"].as_str().is_some_and(|reason| reason.contains("(helpers)"));
    village.until("training/status/helped", "the refusals", refused).await;
    for site in ["site-0", "site-1", "site-2"] {
        let sent = std::fs::read_to_string(dir.path().join(site).join("sent.log")).unwrap();
        assert!(!sent.contains("\"update\""), "{sent}");
    }
    let told = village.say(&["node", "preview", "helped", "--dir", "site-0"]);
    told.refused(8);
}
