//! A village of real processes of this same program on free loopback ports: what the demo and the benchmarks run on.
//!
//! ```text
//! DIR/gateway/        data folder of `up`            DIR/gateway.log    what it said
//! DIR/node-1/ …       folders of `node join`         DIR/node-1.log …
//! ```
//!
//! Promise: nothing survives this process, not even when it is killed with SIGKILL: every child stops when its standard
//! input ends, and this process holds the other end. Children see nothing of this process's environment, so a demo runs
//! alike everywhere. Must not know: what the village is for.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::select_all;
use serde_json::{Value, json};
use tokio::process::{Child, ChildStdin, Command};

use crate::cli::args::Connection;
use crate::client::{Client, find};
use crate::config::Environment;
use crate::crash::CrashPlan;
use crate::exit::{CliError, ExitCode};
use crate::folder::{DataFolder, Endpoint};

/// Longest wait until a process is ready: a start takes milliseconds, on a loaded machine a second or two.
const READY_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks at something that gets ready.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for a clean stop before SIGKILL.
const STOP_MAX: Duration = Duration::from_secs(8);
/// Lines of a log that an error quotes.
const LOG_LINES: usize = 6;

/// What a village consists of.
#[derive(Debug)]
pub struct Plan {
    /// Folder for everything.
    pub dir: PathBuf,
    /// Text of each node's node.yaml; their number is the number of nodes.
    pub nodes: Vec<String>,
    /// Hidden flag `--bench-params` of every node.
    pub bench_params: Option<usize>,
}

/// A gateway and its nodes, running.
#[derive(Debug)]
pub struct Village {
    dir: PathBuf,
    gateway: Process,
    nodes: Vec<Process>,
    endpoint: Endpoint,
    client: Client,
}

/// Which process of a village.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The gateway.
    Gateway,
    /// A node, from 0.
    Node(usize),
}

/// A process that has ended although nobody asked it to.
#[derive(Debug)]
pub struct Gone {
    /// Which.
    pub who: Who,
    /// Its process id.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// Was it killed with SIGKILL?
    pub killed: bool,
    /// What it said about its planned death, else the last line of its log.
    pub last_words: String,
}

#[derive(Debug)]
struct Process {
    name: String,
    arguments: Vec<OsString>,
    log: PathBuf,
    dir: PathBuf,
    child: Child,
    pid: u32,
    /// The child stops when this end is closed.
    lifeline: Option<ChildStdin>,
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> CliError {
    CliError::new(ExitCode::Failed, format!("{what}: {error}"))
}

impl Process {
    fn start(name: &str, arguments: Vec<OsString>, dir: &Path, crash: Option<CrashPlan>) -> Result<Self, CliError> {
        let program = std::env::current_exe().map_err(|e| failed("this program cannot find its own file", &e))?;
        let log = dir.join(format!("{name}.log"));
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(&log);
        let log_file = opened.map_err(|e| failed(&format!("cannot write {}", log.display()), &e))?;
        let mut command = Command::new(program);
        command.args(&arguments).arg("--exit-with-parent");
        if let Some(plan) = crash {
            command.arg("--crash-at").arg(plan.to_string());
        }
        let mut child = command
            .env_clear()
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log_file))
            // Its own group: Ctrl-C reaches this process alone, which then stops its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| {
                failed(&format!("cannot start the process `{name}`"), &e).hint("are there too many processes?")
            })?;
        let lifeline = child.stdin.take();
        let pid = child.id().unwrap_or(0);
        Ok(Self { name: name.to_owned(), arguments, log, dir: dir.to_owned(), child, pid, lifeline })
    }

    fn again(&mut self, crash: Option<CrashPlan>) -> Result<(), CliError> {
        *self = Self::start(&self.name, self.arguments.clone(), &self.dir, crash)?;
        Ok(())
    }

    /// An error if it has ended.
    fn check(&mut self) -> Result<(), CliError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(status)),
            Err(e) => Err(failed(&format!("the process `{}`", self.name), &e)),
        }
    }

    fn ended(&self, status: ExitStatus) -> CliError {
        let lines = last_lines(&self.log, LOG_LINES).join("\n    ");
        CliError::new(ExitCode::Failed, format!("the process `{}` has ended ({status}):\n    {lines}", self.name))
            .hint(format!("all it said is in {}", self.log.display()))
    }

    async fn stop(&mut self) {
        self.lifeline = None;
        if tokio::time::timeout(STOP_MAX, self.child.wait()).await.is_err() {
            // It ends with this process at the latest; a failure here changes nothing.
            let _killed = self.child.kill().await;
        }
    }
}

fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|l| (*l).to_owned()).collect()
}

fn last_words(log: &Path) -> String {
    let mut lines = last_lines(log, LOG_LINES);
    let planned = lines.iter().rposition(|l| l.starts_with("crash-at "));
    let index = planned.or(lines.len().checked_sub(1));
    index.map(|i| lines.swap_remove(i)).unwrap_or_default()
}

impl Village {
    /// Starts a gateway and its nodes, which join with one-time tokens exactly as on machines of their own.
    ///
    /// # Errors
    /// A folder that cannot be written, a process that ends or does not get ready.
    pub async fn start(plan: Plan) -> Result<Self, CliError> {
        let Plan { dir, nodes, bench_params } = plan;
        let made = std::fs::create_dir_all(&dir);
        made.map_err(|e| {
            failed(&format!("cannot create {}", dir.display()), &e).hint("run this in a folder that you may write to")
        })?;
        let dir = dir.canonicalize().map_err(|e| failed(&dir.display().to_string(), &e))?;
        let config = dir.join("federated.yaml");
        write(&config, "# Everything as in the built-in values.\nfederated_systems: {}\n")?;
        let mut gateway =
            Process::start("gateway", gateway_arguments(&dir, &config, "127.0.0.1:0", "127.0.0.1:0"), &dir, None)?;
        let endpoint = ready(&mut gateway, &dir).await?;
        // A restart must find the ports that the nodes know.
        let authority = endpoint.http.trim_start_matches("http://");
        gateway.arguments = gateway_arguments(&dir, &config, authority, &endpoint.link);
        let connection = Connection { data: Some(dir.join("gateway")), ..Connection::default() };
        let client = find(&connection, &Environment::default())?;
        let mut village = Self { dir, gateway, nodes: Vec::new(), endpoint, client };
        for (i, yaml) in nodes.iter().enumerate() {
            village.join(i, yaml, bench_params).await?;
        }
        village.connected().await?;
        Ok(village)
    }

    /// The API of its gateway, with its admin key.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Process ids of the gateway and the nodes.
    #[must_use]
    pub fn pids(&self) -> (u32, Vec<u32>) {
        (self.gateway.pid, self.nodes.iter().map(|n| n.pid).collect())
    }

    /// Name of a process: `gateway`, `node-1` …
    #[must_use]
    pub fn name(&self, who: Who) -> &str {
        match who {
            Who::Gateway => &self.gateway.name,
            Who::Node(i) => &self.nodes[i].name,
        }
    }

    async fn join(&mut self, index: usize, yaml: &str, bench_params: Option<usize>) -> Result<(), CliError> {
        let name = format!("node-{}", index + 1);
        let folder = self.dir.join(&name);
        std::fs::create_dir_all(&folder).map_err(|e| failed(&format!("cannot create {}", folder.display()), &e))?;
        write(&folder.join("node.yaml"), yaml)?;
        let token: Value = self.client.post("tokens", &json!({ "role": "node", "owner": name })).await?;
        let token = token["token"].as_str().unwrap_or_default();
        let mut arguments: Vec<OsString> = ["node", "join"].map(Into::into).to_vec();
        arguments.extend(["--dir".into(), folder.into_os_string()]);
        if let Some(parameters) = bench_params {
            arguments.extend(["--bench-params".into(), parameters.to_string().into()]);
        }
        let mut first = arguments.clone();
        first.extend([self.endpoint.link.clone().into(), "--token".into(), token.into()]);
        let mut process = Process::start(&name, first, &self.dir, None)?;
        // Once joined, the folder knows the rest.
        process.arguments = arguments;
        self.nodes.push(process);
        Ok(())
    }

    /// Waits until every node is connected and has told what data it has.
    async fn connected(&mut self) -> Result<(), CliError> {
        let mut waited = Duration::ZERO;
        loop {
            let list: Value = self.client.get("nodes").await?;
            let nodes = list["nodes"].as_array().map_or(&[][..], Vec::as_slice);
            let there = nodes.iter().filter(|n| n["status"] == "connected" && !n["version"].is_null()).count();
            if there >= self.nodes.len() {
                return Ok(());
            }
            for node in &mut self.nodes {
                node.check()?;
            }
            if waited > READY_MAX {
                let message = format!(
                    "only {there} of {} nodes have connected within {} s",
                    self.nodes.len(),
                    READY_MAX.as_secs()
                );
                return Err(CliError::new(ExitCode::Unavailable, message)
                    .hint(format!("see the logs in {}; a slow machine may need fewer --nodes", self.dir.display())));
            }
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
    }

    /// The next process that ends. Safe to drop and call again.
    pub async fn gone(&mut self) -> Gone {
        let all = std::iter::once(&mut self.gateway).chain(&mut self.nodes);
        let waits: Vec<_> = all.map(|p| Box::pin(p.child.wait())).collect();
        let (status, index, _) = select_all(waits).await;
        let who = if index == 0 { Who::Gateway } else { Who::Node(index - 1) };
        let process = self.process(who);
        // Waiting for one's own child fails only if somebody else has waited for it: then it has ended as well.
        let status = status.unwrap_or_else(|_| ExitStatus::from_raw(0));
        Gone { who, pid: process.pid, status, killed: status.signal() == Some(9), last_words: last_words(&process.log) }
    }

    /// Starts a process again in its folder, on its ports; `crash` plans its next death.
    ///
    /// # Errors
    /// It cannot be started; a gateway that does not get ready.
    pub async fn restart(&mut self, who: Who, crash: Option<CrashPlan>) -> Result<(), CliError> {
        let planned = crash.is_some();
        self.process(who).again(crash)?;
        match who {
            // With a planned death it may be gone again before anybody sees it ready.
            Who::Gateway if !planned => ready(&mut self.gateway, &self.dir).await.map(drop),
            Who::Gateway | Who::Node(_) => Ok(()),
        }
    }

    /// Ends a process that goes on well, to start it again with a plan for its death.
    ///
    /// # Errors
    /// As [`Self::restart`].
    pub async fn replace(&mut self, who: Who, crash: CrashPlan) -> Result<(), CliError> {
        self.process(who).stop().await;
        self.restart(who, Some(crash)).await
    }

    /// What an ended process means when nobody planned it.
    #[must_use]
    pub fn fault(&mut self, gone: &Gone) -> CliError {
        self.process(gone.who).ended(gone.status)
    }

    fn process(&mut self, who: Who) -> &mut Process {
        match who {
            Who::Gateway => &mut self.gateway,
            Who::Node(i) => &mut self.nodes[i],
        }
    }

    /// Stops everything: first the nodes, then the gateway.
    pub async fn stop(mut self) {
        let nodes = self.nodes.iter_mut().map(Process::stop);
        futures_util::future::join_all(nodes).await;
        self.gateway.stop().await;
    }
}

fn gateway_arguments(dir: &Path, config: &Path, http: &str, link: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["up".into(), "--json".into(), "--no-node".into()];
    arguments.extend(["--data".into(), dir.join("gateway").into_os_string()]);
    arguments.extend(["--config".into(), config.as_os_str().to_owned()]);
    arguments.extend(["--http".into(), http.into(), "--link".into(), link.into()]);
    arguments
}

/// Waits until the gateway has written where it answers, and answers there.
async fn ready(gateway: &mut Process, dir: &Path) -> Result<Endpoint, CliError> {
    let folder = dir.join("gateway");
    let mut waited = Duration::ZERO;
    loop {
        // The file of a process that was killed stays: its process id tells.
        if let Ok(Some(endpoint)) = DataFolder::endpoint(&folder)
            && endpoint.pid == gateway.pid
        {
            return Ok(endpoint);
        }
        gateway.check()?;
        if waited > READY_MAX {
            let message = format!("the gateway is not ready after {} s", READY_MAX.as_secs());
            return Err(CliError::new(ExitCode::Unavailable, message).hint(format!("see {}", gateway.log.display())));
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text).map_err(|e| failed(&format!("cannot write {}", path.display()), &e))
}
