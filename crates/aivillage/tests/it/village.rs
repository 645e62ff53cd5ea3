//! A village of real processes for tests: one gateway, some nodes, an HTTP client with the admin key.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use aivillage::client::{Address, Client};
use serde_json::{Value, json};

use crate::process::{LOOK, PATIENCE, Process, Said, aivillage, say};

/// Any free ports.
pub(crate) const FREE: [&str; 4] = ["--http", "127.0.0.1:0", "--link", "127.0.0.1:0"];

/// A gateway with its nodes.
#[derive(Debug)]
pub(crate) struct Village {
    pub(crate) dir: PathBuf,
    pub(crate) gateway: Process,
    pub(crate) http: String,
    pub(crate) link: String,
    pub(crate) nodes: Vec<Process>,
    pub(crate) client: Client,
}

impl Village {
    /// Starts a gateway in `dir/gateway` on free ports.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, &FREE).expect("the gateway starts")
    }

    /// Starts a gateway without its built-in node on free ports.
    pub(crate) fn without_node(dir: &Path) -> Self {
        Self::start_with(dir, &[&FREE[..], &["--no-node"]].concat()).expect("the gateway starts")
    }

    /// Starts a gateway with a configuration file, without its built-in node, on free ports.
    pub(crate) fn configured(dir: &Path, yaml: &str) -> Self {
        let file = dir.join("federated.yaml");
        std::fs::write(&file, yaml).unwrap();
        let arguments = [&FREE[..], &["--no-node", "--config", file.to_str().unwrap()]].concat();
        Self::start_with(dir, &arguments).expect("the gateway starts")
    }

    /// Starts a gateway with these arguments; None if it died before it was up.
    pub(crate) fn start_with(dir: &Path, arguments: &[&str]) -> Option<Self> {
        Self::start_by(aivillage(), dir, arguments)
    }

    /// Starts a gateway by a command with an environment of its own.
    pub(crate) fn start_by(mut command: Command, dir: &Path, arguments: &[&str]) -> Option<Self> {
        std::fs::create_dir_all(dir).unwrap();
        let data = dir.join("gateway");
        command.args(["up", "--json", "--data"]).arg(&data).args(arguments);
        let mut gateway = Process::start(command, dir.join("gateway.log"));
        let Some(line) = gateway.first_line() else {
            gateway.wait();
            return None;
        };
        let addresses: Value = serde_json::from_str(&line).unwrap();
        let http = addresses["http"].as_str().unwrap().to_owned();
        let link = addresses["link"].as_str().unwrap().to_owned();
        let key = std::fs::read_to_string(data.join("admin.key")).unwrap();
        let address = Address::parse(&http, None, "test".into(), String::new()).unwrap();
        let client = Client::new(address, Some(key.trim()));
        Some(Self { dir: dir.to_owned(), gateway, http, link, nodes: Vec::new(), client })
    }

    /// Starts the gateway again, which has ended, on its old ports; the nodes go on.
    pub(crate) fn again(mut self, arguments: &[&str]) -> Self {
        let (nodes, dir) = (std::mem::take(&mut self.nodes), self.dir.clone());
        let (http, link) = (self.http.clone(), self.link.clone());
        drop(self);
        let all = [&addresses(&http, &link)[..], arguments].concat();
        let mut village = Self::start_with(&dir, &all).expect("the gateway starts again");
        village.nodes = nodes;
        village
    }

    /// Folder of the gateway.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("gateway")
    }

    /// Runs a client command against this gateway to its end.
    pub(crate) fn say(&self, arguments: &[&str]) -> Said {
        let mut command = aivillage();
        command.current_dir(&self.dir).args(arguments).arg("--data").arg(self.data());
        say(command)
    }

    /// A one-time token for a node.
    pub(crate) async fn token(&self, owner: &str) -> String {
        let token: Value = self
            .client
            .post("tokens", &json!({"role": "node", "owner": owner}))
            .await
            .unwrap_or_else(|e| panic!("token: {e}"));
        token["token"].as_str().unwrap().to_owned()
    }

    /// Joins a new node with a shard of the digits.
    pub(crate) async fn join(&mut self, name: &str, index: u32, of: u32) {
        self.join_with(name, &shard(index, of)).await;
    }

    /// Joins a new node with this node.yaml.
    pub(crate) async fn join_with(&mut self, name: &str, yaml: &str) {
        let token = self.token(name).await;
        let folder = self.dir.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("node.yaml"), yaml).unwrap();
        self.run_node(name, &[&self.link.clone(), "--token", &token]);
    }

    /// Joins `site-0` … and waits until all are connected.
    pub(crate) async fn join_sites(&mut self, count: u32) {
        for index in 0..count {
            self.join(&format!("site-{index}"), index, count).await;
        }
        self.connected(&(0..count).map(|index| format!("site-{index}")).collect::<Vec<_>>()).await;
    }

    /// Runs a node of this village's folder.
    pub(crate) fn run_node(&mut self, name: &str, arguments: &[&str]) {
        let node = self.node(name, arguments);
        self.nodes.push(node);
    }

    /// A node's process.
    pub(crate) fn node(&self, name: &str, arguments: &[&str]) -> Process {
        let mut command = aivillage();
        command.args(["node", "join"]).args(arguments).arg("--dir").arg(self.dir.join(name));
        Process::start(command, self.dir.join(format!("{name}.log")))
    }

    /// Asks until `done` says so.
    pub(crate) async fn until(&self, path: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < PATIENCE {
            match self.client.get::<Value>(path).await {
                Ok(value) if done(&value) => return value,
                Ok(value) => last = value.to_string(),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(LOOK).await;
        }
        let logs: Vec<String> = self.nodes.iter().map(Process::log).collect();
        panic!(
            "{what} did not happen within {PATIENCE:?}: {last}\ngateway:\n{}\nnodes:\n{}",
            self.gateway.log(),
            logs.join("\n--\n")
        );
    }

    /// Waits until these nodes are connected and have said what they have.
    pub(crate) async fn connected<S: AsRef<str>>(&self, names: &[S]) {
        let there = |v: &Value| {
            let nodes = v["nodes"].as_array().unwrap();
            let ready = |n: &&Value| n["status"] == "connected" && !n["version"].is_null();
            names.iter().all(|name| nodes.iter().filter(ready).any(|n| n["name"] == name.as_ref()))
        };
        self.until("nodes", "all nodes connected", there).await;
    }

    /// What the listing says of a node.
    pub(crate) async fn listed(&self, name: &str) -> Value {
        let list: Value = self.client.get("nodes").await.unwrap();
        list["nodes"].as_array().unwrap().iter().find(|n| n["name"] == name).cloned().unwrap_or_default()
    }

    /// Submits a plain job over the digits for all `participants` and returns its id.
    pub(crate) async fn submit(&self, id: &str, rounds: u32, participants: u32) -> String {
        self.create(&job(id, rounds, participants)).await
    }

    /// Creates a job and returns its id.
    pub(crate) async fn create(&self, body: &Value) -> String {
        let created: Value = self.client.post("training/create", body).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(created["status"], "created");
        created["job_id"].as_str().unwrap().to_owned()
    }

    /// Waits for the job's end and returns its status document.
    pub(crate) async fn ended(&self, job: &str) -> Value {
        let ended = |v: &Value| ["completed", "failed", "cancelled"].contains(&v["status"].as_str().unwrap_or(""));
        self.until(&format!("training/status/{job}"), "the end of the job", ended).await
    }

    /// As [`Self::ended`], for a job that must succeed.
    pub(crate) async fn completed(&self, job: &str) -> Value {
        let status = self.ended(job).await;
        assert_eq!(status["status"], "completed", "{status:#}");
        status
    }
}

/// Arguments for fixed ports.
pub(crate) fn addresses<'a>(http: &'a str, link: &'a str) -> [&'a str; 4] {
    ["--http", http.trim_start_matches("http://"), "--link", link]
}

/// A node.yaml with a shard of the digits.
pub(crate) fn shard(index: u32, of: u32) -> String {
    format!(
        "data:\n  - {{kind: shard, name: digits, dataset: digits, index: {index}, of: {of}, alpha: 0.3, seed: 1}}\n"
    )
}

/// A small plain job over the digits.
pub(crate) fn job(id: &str, rounds: u32, participants: u32) -> Value {
    json!({
        "job_id": id,
        "job_name": "digits",
        "model_architecture": "mlp",
        "total_rounds": rounds,
        "min_participants": participants,
        "max_participants": participants,
        "privacy_techniques": [],
        "strategy": {"name": "fedavg"},
        "hyperparameters": {"hidden": [16], "learning_rate": 0.3, "local_epochs": 1},
        "seed": 7,
    })
}
