//! An auditor: a job's record and updates exported, its models recomputed elsewhere, and every difference found.

use std::path::Path;
use std::process::Command;

use aivillage_base::Digest;
use serde_json::{Value, json};

use crate::process::{Said, aivillage, clean, say};
use crate::village::{Village, job, shard};

/// Three nodes that let their updates be kept, and one job a strategy.
async fn trained(dir: &Path, jobs: &[(&str, Value)]) -> Village {
    let mut village = Village::without_node(dir);
    for index in 0..3 {
        let yaml = format!("{}privacy:\n  retain_updates: if_asked\n", shard(index, 3));
        village.join_with(&format!("site-{index}"), &yaml).await;
    }
    village.connected(&["site-0", "site-1", "site-2"]).await;
    for (id, strategy) in jobs {
        let mut body = job(id, 3, 3);
        body["strategy"] = strategy.clone();
        body["retain_updates"] = true.into();
        village.create(&body).await;
    }
    village
}

pub(crate) fn export(village: &Village, id: &str) -> Value {
    let said = village.say(&["train", "export", id, "--out", id, "--json"]).ok();
    serde_json::from_str(&said).unwrap()
}

/// Runs the script of an export, as an auditor would: with the program and the files, without a gateway.
pub(crate) fn replay(folder: &Path) -> Said {
    let mut command = clean(Command::new("sh"));
    command.arg(folder.join("replay.sh")).env("AIVILLAGE", env!("CARGO_BIN_EXE_aivillage"));
    say(command)
}

#[tokio::test]
async fn an_auditor_recomputes_the_very_models_for_sums_server_state_ranks_and_second_planes() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = [
        ("fedavg", json!({"name": "fedavg"})),
        ("fedadam", json!({"name": "fedadam", "config": {"eta": 0.05}})),
        ("trimmed_mean", json!({"name": "trimmed_mean", "config": {"beta": 0.34}})),
        ("scaffold", json!({"name": "scaffold"})),
        ("personal", json!({"name": "fedavg", "config": {"personal_tensors": ["layer000.*"]}})),
    ];
    let village = trained(dir.path(), &jobs).await;
    for (id, _) in &jobs {
        let status = village.completed(id).await;
        let exported = export(&village, id);
        assert_eq!((&exported["rounds"], &exported["recomputable"]), (&json!(3), &json!(3)), "{exported:#}");
        let folder = dir.path().join(id);
        let said = replay(&folder).ok();
        assert_eq!(said.matches("as recorded").count(), 3, "{said}");
        let model = std::fs::read(folder.join("round-0003/model.safetensors")).unwrap();
        assert_eq!(status["model"]["blake3"], Digest::of(&model).to_string(), "{id}");
    }
    assert!(dir.path().join("fedadam/round-0003/state/second_moment.safetensors").exists());
}

#[tokio::test]
async fn an_auditor_finds_what_was_changed() {
    let dir = tempfile::tempdir().unwrap();
    let village = trained(dir.path(), &[("job", json!({"name": "fedavg"}))]).await;
    village.completed("job").await;
    export(&village, "job");
    let folder = dir.path().join("job");
    let update = folder.join("round-0002/updates/site-1.safetensors");
    let good = std::fs::read(&update).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 4;
    bad[last..].copy_from_slice(&0.25_f32.to_le_bytes());
    std::fs::write(&update, &bad).unwrap();
    let refused = replay(&folder).refused(1);
    assert!(refused.contains("the update of site-1 is not the one that counted"), "{refused}");
    std::fs::write(&update, &good).unwrap();
    let plan = folder.join("round-0003/plan.json");
    let mut changed: Value = serde_json::from_slice(&std::fs::read(&plan).unwrap()).unwrap();
    changed["participants"]["site-0"]["weight"] = 1.into();
    std::fs::write(&plan, changed.to_string()).unwrap();
    let refused = replay(&folder).refused(1);
    assert!(refused.contains("the model that the round published"), "{refused}");
    assert!(!folder.join("round-0003/model.safetensors").exists());
}

#[tokio::test]
async fn updates_are_kept_only_where_job_and_node_say_so_and_an_export_names_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join("silent", 0, 2).await;
    village.join_with("open", &format!("{}privacy:\n  retain_updates: if_asked\n", shard(1, 2))).await;
    village.connected(&["silent", "open"]).await;
    for (id, retain) in [("kept", true), ("plain", false)] {
        let mut body = job(id, 1, 2);
        body["retain_updates"] = retain.into();
        village.create(&body).await;
        village.completed(id).await;
        let exported = export(&village, id);
        let missing = if retain { json!(["silent"]) } else { json!(["open", "silent"]) };
        assert_eq!(exported["not_kept"], json!([{"round": 1, "participants": missing}]), "{exported:#}");
        assert_eq!(exported["recomputable"], 0);
        assert_eq!(dir.path().join(id).join("round-0001/updates/open.safetensors").exists(), retain);
        let script = std::fs::read_to_string(dir.path().join(id).join("replay.sh")).unwrap();
        assert!(script.contains("no updates of") && script.contains("silent"), "{script}");
    }
    village.say(&["train", "export", "nothing", "--out", "x"]).refused(5);
    village.submit("waiting", 1, 5).await;
    let refused = village.say(&["train", "export", "waiting", "--out", "x"]).refused(6);
    assert!(refused.contains("has not published a round yet"), "{refused}");
}

#[tokio::test]
async fn aggregate_takes_anybodys_files_and_says_what_is_wrong_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let model = |path: &str, values: [f32; 2]| {
        let header = r#"{"any.name":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"by":"me"}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        std::fs::write(dir.path().join(path), bytes).unwrap();
    };
    std::fs::create_dir(dir.path().join("u")).unwrap();
    model("m.safetensors", [1.0, 2.0]);
    model("u/a.safetensors", [2.0, 2.0]);
    model("u/b.safetensors", [1.0, 6.0]);
    std::fs::write(dir.path().join("w.json"), r#"{"a.safetensors": 1, "b.safetensors": 3}"#).unwrap();
    let run = |more: &[&str]| {
        let mut command = aivillage();
        command.current_dir(dir.path()).args(["aggregate", "--model", "m.safetensors", "--updates", "u"]);
        command.args(["--weights", "w.json", "-o", "out.safetensors"]).args(more);
        say(command)
    };
    let said: Value = serde_json::from_str(&run(&["--strategy", "fedavg", "--json"]).ok()).unwrap();
    let bytes = std::fs::read(dir.path().join("out.safetensors")).unwrap();
    assert_eq!(said["blake3"], Digest::of(&bytes).to_string());
    let old = std::fs::read(dir.path().join("m.safetensors")).unwrap();
    assert_eq!(bytes[..bytes.len() - 8], old[..old.len() - 8], "same tensors, same order, same metadata");
    assert_eq!(bytes[bytes.len() - 8..], [1.25_f32.to_le_bytes(), 5.0_f32.to_le_bytes()].concat());
    let refused = run(&["--strategy", "fedagv"]).refused(2);
    assert!(refused.contains("fedavg"), "{refused}");
    let refused = run(&["--strategy", "trimmed_mean", "--set", "beat=0.1"]).refused(2);
    assert!(refused.contains("beta"), "{refused}");
    let refused = run(&["--strategy", "krum", "--set", "byzantine=1"]).refused(1);
    assert!(refused.contains("n >= 2f + 3"), "{refused}");
    model("u/c.safetensors", [1.0, 1.0]);
    let refused = run(&["--strategy", "fedavg"]).refused(1);
    assert!(refused.contains("c.safetensors") && refused.contains("has no weight"), "{refused}");
    model("u/a.safetensors", [f32::NAN, 2.0]);
    std::fs::remove_file(dir.path().join("u/c.safetensors")).unwrap();
    let refused = run(&["--strategy", "fedavg"]).refused(1);
    assert!(refused.contains("a.safetensors") && refused.contains("not finite"), "{refused}");
}
