//! Secrets stay where they belong: no log and no file holds a token, a key or an identity beside its own file.

use std::path::{Path, PathBuf};

use aivillage_base::fixed::Grid;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::process::aivillage;
use crate::village::{FREE, Village};

/// A secret by its bytes, and the files that may hold it.
struct Secret {
    what: &'static str,
    bytes: Vec<u8>,
    homes: Vec<PathBuf>,
}

impl Secret {
    fn new(what: &'static str, bytes: impl Into<Vec<u8>>, homes: &[PathBuf]) -> Self {
        Self { what, bytes: bytes.into(), homes: homes.to_vec() }
    }

    /// The forms in which it might lie about: as it is, as hex, and as base64 at each of the three alignments.
    fn forms(&self) -> Vec<Vec<u8>> {
        let hex: String = self.bytes.iter().map(|b| format!("{b:02x}")).collect();
        let mut forms = vec![self.bytes.clone(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
        for skip in 0..3 {
            let whole = (self.bytes.len() - skip) / 3 * 3;
            let middle = &self.bytes[skip..skip + whole];
            forms.push(STANDARD_NO_PAD.encode(middle).into_bytes());
            forms.push(URL_SAFE_NO_PAD.encode(middle).into_bytes());
        }
        forms
    }
}

/// The seed inside a PKCS#8 PEM file of an Ed25519 key (RFC 8410): the 32 bytes after `04 20`.
fn seed(pem: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(pem).unwrap();
    let body: String = text.lines().filter(|l| !l.starts_with("-----")).collect();
    let der = STANDARD.decode(body).unwrap();
    let at = der.windows(4).position(|w| w == [0x04, 0x22, 0x04, 0x20]).expect("an Ed25519 key") + 4;
    der[at..at + 32].to_vec()
}

/// The body of a PEM file, as it stands there without line breaks.
fn pem_body(pem: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(pem).unwrap();
    let line = text.lines().filter(|l| !l.starts_with("-----")).max_by_key(|l| l.len()).unwrap();
    line.as_bytes().to_vec()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten().map(|e| e.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Fails if a secret lies where it does not belong; returns how often one was found where it does.
fn search(files: &[PathBuf], secrets: &[Secret]) -> u32 {
    let mut homes = 0;
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        for secret in secrets {
            let found = secret.forms().iter().any(|form| bytes.windows(form.len()).any(|w| w == form));
            let home = secret.homes.contains(file);
            assert!(!found || home, "{} lies in {}", secret.what, file.display());
            homes += u32::from(found && home);
        }
    }
    homes
}

#[tokio::test]
async fn no_log_and_no_file_holds_a_secret_that_does_not_belong_there() {
    let dir = tempfile::tempdir().unwrap();
    let api_key = "planted-key-of-the-environment";
    let mut command = aivillage();
    command.env("API_KEY", api_key);
    let mut village = Village::start_by(command, dir.path(), &FREE).unwrap();
    let node_token = village.token("north").await;
    let client_key = village.say(&["token", "create", "--role", "client", "--owner", "someone"]).ok();
    village.say(&["token", "ls"]).ok();
    std::fs::create_dir_all(dir.path().join("north")).unwrap();
    std::fs::write(dir.path().join("north/node.yaml"), crate::village::shard(0, 2)).unwrap();
    village.run_node("north", &[&village.link.clone(), "--token", &node_token]);
    village.join("south", 1, 2).await;
    village.connected(&["built-in", "north", "south"]).await;
    village.submit("digits", 1, 2).await;
    village.completed("digits").await;
    let mut row = vec![0.0; 64];
    row[7] = 0.731_625_1;
    let question = serde_json::json!({"model_id": "digits", "input_data": {"inputs": [row]}, "max_latency_ms": 20_000});
    let answer: Value = village.client.post("inference/submit?wait=20000", &question).await.unwrap();
    assert_eq!(answer["status"], "completed", "{answer:#}");
    // Wrong uses are logged as well, and must not repeat what they were given.
    let wrong = village.say(&["status", "--key", "planted-key-that-is-wrong"]).refused(4);
    assert!(!wrong.contains("planted-key-that-is-wrong"), "{wrong}");
    let refused = village.node("thief", &[&village.link.clone(), "--token", &node_token]).wait();
    assert!(!refused.success());
    village.say(&["node", "revoke", "south"]).ok();
    village.nodes[1].wait();
    village.gateway.terminate();
    village.gateway.wait();
    village.nodes[0].terminate();
    village.nodes[0].wait();

    let data = village.data();
    let identity = dir.path().join("north/identity.key");
    let built_in = data.join("node/identity.key");
    let authority = data.join("ca/ca.key");
    let token_secret = URL_SAFE_NO_PAD.decode(node_token.split('.').nth(1).unwrap()).unwrap();
    let admin = std::fs::read_to_string(data.join("admin.key")).unwrap();
    let secrets = [
        Secret::new("the environment's API key", api_key, &[]),
        Secret::new("a row of a question", "0.7316251", &[]),
        Secret::new("a wrong key", "planted-key-that-is-wrong", &[]),
        Secret::new("the node's token", token_secret, &[]),
        Secret::new("the client's key", client_key.trim(), &[]),
        Secret::new("the admin's key", admin.trim(), &[data.join("admin.key")]),
        Secret::new("the node's identity", seed(&identity), std::slice::from_ref(&identity)),
        Secret::new("the built-in node's identity", seed(&built_in), std::slice::from_ref(&built_in)),
        Secret::new("the authority's key", pem_body(&authority), std::slice::from_ref(&authority)),
    ];
    let all = files(dir.path());
    assert!(all.iter().any(|f| f.ends_with("gateway.log")) && all.iter().any(|f| f.ends_with("sent.log")), "{all:?}");
    let homes = search(&all, &secrets);
    assert_eq!(homes, 4, "each is found where it belongs, so the search works");
    let line = std::fs::read_to_string(dir.path().join("north/sent.log")).unwrap();
    let update: Value = serde_json::from_str(line.lines().find(|l| l.contains("\"update\"")).unwrap()).unwrap();
    assert!(update["digest"].is_string() && update["bytes"].as_u64().unwrap() > 0, "{update}");
}

/// Three nodes that let their updates be kept where a job asks for it, and the model of one round of this job.
async fn round_of(dir: &Path, settings: &[(&str, Value)]) -> (Village, Value) {
    let mut village = Village::without_node(dir);
    for index in 0..3 {
        let yaml = format!("{}privacy:\n  retain_updates: if_asked\n", crate::village::shard(index, 3));
        village.join_with(&format!("site-{index}"), &yaml).await;
    }
    village.connected(&["site-0", "site-1", "site-2"]).await;
    let mut body = crate::village::job("digits", 1, 3);
    for (key, value) in settings {
        body[*key] = value.clone();
    }
    village.create(&body).await;
    let status = village.completed("digits").await;
    (village, status["model"]["blake3"].clone())
}

/// Some pieces of 16 values of an exported update, where most are not zero: as it was exported, and as it travels.
fn pieces(exported: &Path) -> Vec<[Vec<u8>; 2]> {
    let bytes = std::fs::read(exported).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let values: Vec<f32> = rest[usize::try_from(u64::from_le_bytes(*length)).unwrap()..]
        .as_chunks::<4>()
        .0
        .iter()
        .map(|value| f32::from_le_bytes(*value))
        .collect();
    let full = |piece: &&[f32]| piece.iter().filter(|value| **value != 0.0).count() > 12;
    let all: Vec<&[f32]> = values.chunks_exact(16).filter(full).collect();
    let some = all.iter().step_by((all.len() / 3).max(1));
    #[expect(clippy::cast_possible_truncation, reason = "the grid's values have 24 bits")]
    let units = |value: &f32| ((f64::from(*value) / Grid::default().step()).round() as i32).to_le_bytes();
    let forms = |piece: &&[f32]| {
        [piece.iter().flat_map(|value| value.to_le_bytes()).collect(), piece.iter().flat_map(units).collect()]
    };
    some.map(forms).collect()
}

#[tokio::test]
async fn an_update_of_a_secure_round_lies_nowhere_in_the_clear() {
    let (plain, secure) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (village, model) = round_of(plain.path(), &[("retain_updates", true.into())]).await;
    crate::export::export(&village, "digits");
    let exported = files(&plain.path().join("digits/round-0001/updates"));
    assert_eq!(exported.len(), 3, "{exported:?}");
    // The payloads as they travelled: kept by the gateway, and nowhere else.
    let kept: Vec<PathBuf> = files(&village.data());
    let pieces: Vec<[Vec<u8>; 2]> = exported.iter().flat_map(|file| pieces(file)).collect();
    let needle = |[shown, travelled]: &[Vec<u8>; 2]| {
        [
            Secret::new("an exported update", shown.clone(), &exported),
            Secret::new("an update", travelled.clone(), &kept),
        ]
    };
    let needles: Vec<Secret> = pieces.iter().flat_map(needle).collect();
    assert!(search(&exported, &needles) >= 9, "each is found where it lies, so the search works");
    assert!(search(&kept, &needles) >= 9, "so it does in the store");
    drop(village);

    let techniques = serde_json::json!(["secure_aggregation"]);
    let (mut village, same) = round_of(secure.path(), &[("privacy_techniques", techniques)]).await;
    assert_eq!(model, same, "the updates are the same ones");
    village.gateway.terminate();
    village.gateway.wait();
    for node in &mut village.nodes {
        node.terminate();
        node.wait();
    }
    let identities: Vec<Secret> = (0..3)
        .map(|index| secure.path().join(format!("site-{index}/identity.key")))
        .map(|home| Secret::new("a node's identity", seed(&home), std::slice::from_ref(&home)))
        .collect();
    let all = files(secure.path());
    for name in ["store.sqlite", "gateway.log", "site-0.log", "sent.log", "contexts", "openings", "pins.json"] {
        assert!(all.iter().any(|file| file.ends_with(name)), "{name} is not among {all:?}");
    }
    assert_eq!(search(&all, &needles), 0);
    assert_eq!(search(&all, &identities), 3);
}

#[tokio::test]
async fn keys_are_sealed_once_there_is_a_secret_key_and_open_with_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::start(dir.path());
    village.connected(&["built-in"]).await;
    village.gateway.terminate();
    village.gateway.wait();
    let data = village.data();
    let (identity, authority) = (data.join("node/identity.key"), data.join("ca/ca.key"));
    let secret_key = "planted-secret-of-the-environment";
    let secrets = [
        Secret::new("the built-in node's identity", seed(&identity), &[]),
        Secret::new("the authority's key", pem_body(&authority), &[]),
        Secret::new("the secret key", secret_key, &[]),
    ];
    drop(village);
    let up = |key: Option<&str>| {
        let mut command = aivillage();
        command.envs(key.map(|key| ("SECRET_KEY", key)));
        Village::start_by(command, dir.path(), &FREE)
    };
    let mut village = up(Some(secret_key)).expect("the plain keys are sealed in place");
    village.connected(&["built-in"]).await;
    village.gateway.terminate();
    village.gateway.wait();
    assert_eq!(search(&files(dir.path()), &secrets), 0);
    drop(village);
    for wrong in [None, Some("another-secret-of-somebody")] {
        assert!(up(wrong).is_none(), "{wrong:?}");
        let log = std::fs::read_to_string(dir.path().join("gateway.log")).unwrap();
        let last = log.lines().rfind(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("{log}"));
        assert!(last.contains("ca.key") && last.contains("SECRET_KEY"), "{last}");
    }
    up(Some(secret_key)).expect("the right one still opens it").connected(&["built-in"]).await;
}
