//! Who is who in a secure round: pins, rosters, and the ways of revocation, re-enrolment and a lost key.

use serde_json::{Value, json};

use crate::village::{Village, job, shard};

/// A secure job for all of `participants`, from a model of its own: over one model a node opens the sum of one set only.
fn secure(id: &str, participants: u32) -> Value {
    let mut body = job(id, 1, participants);
    body["seed"] = id.bytes().map(u32::from).sum::<u32>().into();
    body["privacy_techniques"] = json!(["secure_aggregation"]);
    body
}

impl Village {
    /// Runs a secure job that must succeed.
    async fn secured(&self, id: &str, participants: u32) {
        self.create(&secure(id, participants)).await;
        let status = self.completed(id).await;
        let members = status["rounds"][0]["participants"].as_array().unwrap();
        assert!(members.iter().all(|m| m["status"] == "counted"), "{status:#}");
    }

    /// Runs a secure job that must fail, and returns what its last round says of this node.
    async fn failed(&self, id: &str, participants: u32, node: &str) -> String {
        self.create(&secure(id, participants)).await;
        let status = self.ended(id).await;
        assert_eq!(status["status"], "failed", "{status:#}");
        let rounds = status["rounds"].as_array().unwrap();
        let members = rounds.last().unwrap()["participants"].as_array().unwrap();
        let member = members.iter().find(|m| m["name"] == node).unwrap();
        assert_eq!(member["status"], "failed", "{status:#}");
        member["reason"].as_str().unwrap().to_owned()
    }

    fn pins(&self, node: &str) -> Value {
        serde_json::from_str(&self.at(&["node", "pins", "--json", "--dir", node]).ok()).unwrap()
    }

    /// Runs a command that needs no gateway in this village's folder.
    fn at(&self, arguments: &[&str]) -> crate::process::Said {
        let mut command = crate::process::aivillage();
        command.current_dir(&self.dir).args(arguments);
        crate::process::say(command)
    }
}

/// How a node comes to have a new key.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Its owner left, and joins again with the same folder.
    ReEnrolled,
    /// Its folder is gone; the operator revokes the old key.
    Lost,
}

#[tokio::test]
async fn a_new_key_under_an_old_name_is_refused_on_both_sides_until_the_owners_forget_the_old_one() {
    for way in [Way::ReEnrolled, Way::Lost] {
        let dir = tempfile::tempdir().unwrap();
        let mut village = Village::without_node(dir.path());
        village.join_sites(3).await;
        village.secured("first", 3).await;
        let before = village.pins("site-0");
        let names: Vec<&str> = before["pins"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!((names, &before["trust"]), (vec!["site-1", "site-2"], &json!("first_use")), "{before:#}");
        assert_eq!(before["registry"]["sequence"], 3);
        let folder = dir.path().join("site-2");
        match way {
            Way::ReEnrolled => {
                village.at(&["node", "leave", "--dir", "site-2"]).ok();
                assert_eq!(village.nodes[2].wait().code(), Some(8), "{}", village.nodes[2].log());
                std::fs::remove_file(folder.join("identity.key")).unwrap();
            }
            Way::Lost => {
                village.nodes[2].kill();
                std::fs::remove_dir_all(&folder).unwrap();
                village.say(&["node", "revoke", "site-2"]).ok();
            }
        }
        village.join("site-2", 2, 3).await;
        village.connected(&["site-0", "site-1", "site-2"]).await;
        let reason = village.failed("second", 3, "site-0").await;
        assert!(reason.starts_with("changed_key: site-2 has the key"), "{way:?}: {reason}");
        let shown = village.say(&["train", "show", "second"]).ok();
        assert!(shown.contains("changed_key"), "{shown}");
        assert!(village.nodes[0].log().contains("changed_key"), "{}", village.nodes[0].log());
        let sent = std::fs::read_to_string(dir.path().join("site-0/sent.log")).unwrap();
        assert!(sent.lines().any(|line| line.contains("changed_key")), "{sent}");
        // One owner's decision is not the other's.
        let forgot = village.at(&["node", "pins", "--dir", "site-0", "--forget", "site-2"]).ok();
        assert!(forgot.contains("site-2"), "{forgot}");
        village.at(&["node", "pins", "--dir", "site-0", "--forget", "site-2"]).refused(5);
        assert!(village.failed("third", 3, "site-1").await.starts_with("changed_key: site-2"));
        village.at(&["node", "pins", "--dir", "site-1", "--forget", "site-2"]).ok();
        village.secured("fourth", 3).await;
        let after = village.pins("site-0");
        assert_eq!(after["registry"]["sequence"], 5, "a revocation and an enrolment more: {after:#}");
        assert_ne!(after["pins"][1]["key"], before["pins"][1]["key"]);
    }
}

#[tokio::test]
async fn a_revoked_node_is_in_no_round_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(4).await;
    village.secured("first", 4).await;
    village.say(&["node", "revoke", "site-3"]).ok();
    village.secured("second", 3).await;
    let status: Value = village.client.get("training/status/second").await.unwrap();
    let members = status["rounds"][0]["participants"].as_array().unwrap();
    assert!(members.iter().all(|m| m["name"] != "site-3"), "{status:#}");
}

#[tokio::test]
async fn with_a_roster_strangers_are_refused_and_a_changed_file_keeps_the_node_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    for index in 0..3 {
        let token = village.token(&format!("site-{index}")).await;
        let folder = format!("site-{index}");
        village.at(&["node", "join", &village.link, "--token", &token, "--enrol-only", "--dir", &folder]).ok();
    }
    let created = village.say(&["roster", "create", "-o", "roster.yaml"]).ok();
    assert!(created.contains("3 nodes"), "{created}");
    village.say(&["roster", "create", "-o", "roster.yaml"]).refused(6);
    let signer = village.pins("site-0")["own"]["key"].as_str().unwrap().to_owned();
    let settings =
        |index: u32| format!("{}roster: {{file: ../roster.yaml, signers: [\"{signer}\"]}}\n", shard(index, 4));
    for index in 0..3 {
        std::fs::write(dir.path().join(format!("site-{index}/node.yaml")), settings(index)).unwrap();
    }
    let mut unsigned = village.node("site-1", &[]);
    assert_eq!(unsigned.wait().code(), Some(3), "{}", unsigned.log());
    assert!(unsigned.log().contains("is not signed by"), "{}", unsigned.log());
    let signed = village.at(&["roster", "sign", "roster.yaml", "--dir", "site-0"]).ok();
    assert!(signed.contains(&signer), "{signed}");
    let shown = village.at(&["roster", "show", "roster.yaml"]).ok();
    assert!(shown.contains("site-2") && shown.contains("fingerprint"), "{shown}");
    for index in 0..3 {
        village.run_node(&format!("site-{index}"), &[]);
    }
    village.connected(&["site-0", "site-1", "site-2"]).await;
    village.secured("first", 3).await;
    assert_eq!(village.pins("site-1")["trust"], "roster");
    // Who is not on it is refused by those who have it.
    village.join("stranger", 3, 4).await;
    village.connected(&["stranger"]).await;
    let reason = village.failed("second", 4, "site-1").await;
    assert!(reason.starts_with("changed_key: stranger with the key"), "{reason}");
    assert!(reason.contains("is not on this node's roster"), "{reason}");
    // A key that is put in after the signing is found at the next start.
    let text = std::fs::read_to_string(dir.path().join("roster.yaml")).unwrap();
    let stranger = village.pins("stranger")["own"]["key"].as_str().unwrap().to_owned();
    let changed = text.replace("nodes:\n", &format!("nodes:\n  \"stranger\": \"{stranger}\"\n"));
    std::fs::write(dir.path().join("roster.yaml"), changed).unwrap();
    village.nodes[2].terminate();
    assert_eq!(village.nodes[2].wait().code(), Some(0));
    let mut again = village.node("site-2", &[]);
    assert_eq!(again.wait().code(), Some(3), "{}", again.log());
    assert!(again.log().contains("does not fit its nodes"), "{}", again.log());
    village.at(&["roster", "show", "roster.yaml"]).refused(8);
}

#[tokio::test]
async fn a_gateway_restored_from_an_older_backup_is_a_fork_until_the_owners_forget_its_registry() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(2).await;
    village.gateway.terminate();
    village.gateway.wait();
    let copied = std::process::Command::new("cp").args(["-a", "gateway", "backup"]).current_dir(dir.path()).status();
    assert!(copied.unwrap().success());
    let mut village = village.again(&["--no-node"]);
    village.join("site-2", 2, 3).await;
    village.connected(&["site-0", "site-1", "site-2"]).await;
    village.secured("first", 3).await;
    village.gateway.terminate();
    village.gateway.wait();
    std::fs::remove_dir_all(village.data()).unwrap();
    std::fs::rename(dir.path().join("backup"), village.data()).unwrap();
    let mut village = village.again(&["--no-node"]);
    // Its third enrolment is another one than the nodes were shown.
    village.join("other", 2, 3).await;
    village.connected(&["site-0", "site-1", "other"]).await;
    let reason = village.failed("second", 3, "site-0").await;
    assert!(reason.starts_with("fork: the gateway shows another registry of enrolments than before"), "{reason}");
    for (index, site) in ["site-0", "site-1"].into_iter().enumerate() {
        village.nodes[index].terminate();
        village.nodes[index].wait();
        for file in std::fs::read_dir(dir.path().join(site)).unwrap().map(|file| file.unwrap().path()) {
            if file.file_name().unwrap().to_string_lossy().starts_with("registry-") {
                std::fs::remove_file(file).unwrap();
            }
        }
        village.run_node(site, &[]);
    }
    village.connected(&["site-0", "site-1", "other"]).await;
    village.secured("third", 3).await;
}
