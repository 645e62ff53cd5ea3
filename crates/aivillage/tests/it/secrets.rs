//! Secrets stay where they belong: no log and no file holds a token, a key or an identity beside its own file.

use std::path::{Path, PathBuf};

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
