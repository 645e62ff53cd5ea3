//! A village of real processes for tests: one gateway, some nodes, an HTTP client with the admin key.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use aivillage::client::{Address, Client};
use serde_json::{Value, json};

/// Longest wait for anything: far above what a loaded machine needs, so that only a real fault reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test, with a clean environment.
pub fn aivillage() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aivillage"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("AIVILLAGE_") || ["API_KEY", "SECRET_KEY", "ENVIRONMENT", "ENABLE_FEDERATED"].contains(&&*name) {
            command.env_remove(name);
        }
    }
    command.env("RUST_LOG", "info");
    command
}

/// A child that dies with the test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command whose standard error goes to `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    /// The first line of standard output; None if it ended before.
    pub fn first_line(&mut self) -> Option<String> {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (!line.is_empty()).then_some(line)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop (SIGTERM).
    pub fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "still running after {PATIENCE:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The rest of its standard output.
    pub fn rest(&mut self) -> String {
        let mut text = String::new();
        self.child.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A gateway with its nodes.
#[derive(Debug)]
pub struct Village {
    pub dir: PathBuf,
    pub gateway: Process,
    pub http: String,
    pub link: String,
    pub nodes: Vec<Process>,
    pub client: Client,
}

impl Village {
    /// Starts a gateway in `dir/gateway` on free ports.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &["--http", "127.0.0.1:0", "--link", "127.0.0.1:0"]).expect("the gateway starts")
    }

    /// Starts a gateway with further arguments; None if it died before it was up.
    pub fn start_with(dir: &Path, arguments: &[&str]) -> Option<Self> {
        std::fs::create_dir_all(dir).unwrap();
        let data = dir.join("gateway");
        let mut command = aivillage();
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

    /// Folder of the gateway.
    pub fn data(&self) -> PathBuf {
        self.dir.join("gateway")
    }

    /// Joins a new node with a shard of the digits.
    pub async fn join(&mut self, name: &str, index: u32, of: u32) {
        let token: Value = self
            .client
            .post("tokens", &json!({"role": "node", "owner": name}))
            .await
            .unwrap_or_else(|e| panic!("token: {e}"));
        let folder = self.dir.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let yaml = format!(
            "data:\n  - kind: shard\n    name: digits\n    dataset: digits\n    index: {index}\n    of: {of}\n    alpha: 0.3\n    seed: 1\n"
        );
        std::fs::write(folder.join("node.yaml"), yaml).unwrap();
        self.run_node(name, &[&self.link.clone(), "--token", token["token"].as_str().unwrap()]);
    }

    /// Runs a node of this village's folder.
    pub fn run_node(&mut self, name: &str, arguments: &[&str]) {
        let mut command = aivillage();
        command.args(["node", "join"]).args(arguments).arg("--dir").arg(self.dir.join(name));
        let log = self.dir.join(format!("{name}.log"));
        self.nodes.push(Process::start(command, log));
    }

    /// Asks until `done` says so.
    pub async fn until(&self, path: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < PATIENCE {
            match self.client.get::<Value>(path).await {
                Ok(value) if done(&value) => return value,
                Ok(value) => last = value.to_string(),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let logs: Vec<String> = self.nodes.iter().map(Process::log).collect();
        panic!("{what} did not happen within {PATIENCE:?}: {last}\ngateway:\n{}\nnodes:\n{}", self.gateway.log(), logs.join("\n--\n"));
    }

    /// Submits a plain job over the digits and returns its id.
    pub async fn submit(&self, id: &str, rounds: u32, participants: u32) -> String {
        let body = json!({
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
        });
        let created: Value = self.client.post("training/create", &body).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(created["status"], "created");
        created["job_id"].as_str().unwrap().to_owned()
    }

    /// Waits for the job's end and returns its status document.
    pub async fn ended(&self, job: &str) -> Value {
        let ended = |v: &Value| ["completed", "failed", "cancelled"].contains(&v["status"].as_str().unwrap_or(""));
        self.until(&format!("training/status/{job}"), "the end of the job", ended).await
    }
}
