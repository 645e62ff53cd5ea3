//! Processes of the program under test: each dies with its test, every wait is bounded.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything: far above what a loaded machine needs, so that only a real fault reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at something that changes by itself.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Variables that the program reads besides `AIVILLAGE_*`.
const VARIABLES: [&str; 5] = ["API_KEY", "SECRET_KEY", "ENVIRONMENT", "ENABLE_FEDERATED", "RUST_LOG"];

/// The program under test, with a clean environment.
pub(crate) fn aivillage() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_aivillage")))
}

/// Takes everything that the program reads out of a command's environment.
pub(crate) fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("AIVILLAGE_") || VARIABLES.contains(&&*name) {
            command.env_remove(name);
        }
    }
    command
}

/// A child that dies with the test.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command whose standard error goes to `log`.
    pub(crate) fn start(mut command: Command, log: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    /// The first line of standard output; None if it ended before.
    pub(crate) fn first_line(&mut self) -> Option<String> {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (!line.is_empty()).then_some(line)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop (SIGTERM).
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops it in its tracks: it lives, holds its connections, and does nothing (SIGSTOP).
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        ended_within(&mut self.child, PATIENCE).unwrap_or_else(|| panic!("still running:\n{}", self.log()))
    }

    /// Waits until it has written this to standard error.
    pub(crate) fn until_said(&self, text: &str) {
        let started = Instant::now();
        while !self.log().contains(text) {
            assert!(started.elapsed() < PATIENCE, "it has not said `{text}`:\n{}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    /// What it wrote to standard error so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn ended_within(child: &mut Child, time: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < time {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(LOOK);
    }
    None
}

/// What a command that ends by itself said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Exit code; -1 for a signal.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// Standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Standard error of a command that must have failed with this exit code.
    #[track_caller]
    pub(crate) fn refused(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        self.stderr
    }
}

/// Runs a command to its end.
pub(crate) fn say(mut command: Command) -> Said {
    // Files and not pipes: nothing can block on a reader, however much is said.
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let status = ended_within(&mut child, PATIENCE);
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let text = |file: &mut File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    let (stdout, stderr) = (text(&mut out), text(&mut err));
    let status = status.unwrap_or_else(|| panic!("{command:?} did not end:\n{stdout}\n{stderr}"));
    Said { code: status.code().unwrap_or(-1), stdout, stderr }
}

/// Runs the program with these arguments to its end.
pub(crate) fn run(arguments: &[&str]) -> Said {
    let mut command = aivillage();
    command.args(arguments);
    say(command)
}
