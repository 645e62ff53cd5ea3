//! docs/quickstart.md does what it says: its commands run here, in one shell, in the order of the page.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::process::{Process, clean};

const PAGE: &str = include_str!("../../../../docs/quickstart.md");

/// A block below a line that begins like this is for people only.
const SKIP: &str = "<!-- not run by the test of this page";

/// The page's shell commands.
fn commands() -> String {
    let mut script = String::new();
    let mut inside = false;
    let mut before = "";
    for line in PAGE.lines() {
        match (inside, line) {
            (false, "```sh") => inside = !before.starts_with(SKIP),
            (true, "```") => inside = false,
            (true, _) => script.push_str(&format!("{line}\n")),
            (false, _) => {}
        }
        before = line;
    }
    script
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The shell with all that it started, as one process group that dies with the test.
struct Shell(Process);

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // Nobody left in the group is what a good end looks like.
            let _empty = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

impl Shell {
    /// Is anybody of the group still there?
    fn alive(&self) -> bool {
        let group = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::test_kill_process_group(group).is_ok()
    }
}

/// Lines of `text` after the one that begins with `header`, as cells.
fn table(text: &str, header: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|l| !l.starts_with(header));
    lines.next().unwrap_or_else(|| panic!("no table {header}:\n{text}"));
    let rows = lines.take_while(|l| l.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    rows.map(|l| l.split_whitespace().map(str::to_owned).collect()).collect()
}

fn shell(dir: &Path) -> (Shell, u16) {
    let (http, link) = (free_port(), free_port());
    let page = commands();
    assert!(page.contains("127.0.0.1:8000") && page.contains("127.0.0.1:8001"), "{page}");
    let page = page.replace("127.0.0.1:8000", &format!("127.0.0.1:{http}"));
    let page = page.replace("127.0.0.1:8001", &format!("127.0.0.1:{link}"));
    let program = Path::new(env!("CARGO_BIN_EXE_aivillage")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut command = clean(Command::new("bash"));
    // Before the page cleans up, what it leaves is kept for the test to look at.
    let script = format!(
        "set -euo pipefail\n{}",
        page.replacen("cd .. && rm", "cp -r north/sent.log digits.safetensors ..\ncd .. && rm", 1)
    );
    assert!(script.contains("cp -r north/sent.log"), "the page ends by removing its folder:\n{script}");
    std::fs::write(dir.join("page.sh"), script).unwrap();
    let out = std::fs::File::create(dir.join("out.txt")).unwrap();
    command.arg("-c").arg("exec bash page.sh > out.txt").current_dir(dir).env("PATH", path).process_group(0);
    drop(out);
    (Shell(Process::start(command, dir.join("err.txt"))), http)
}

#[test]
fn the_quickstart_page_does_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shell, http) = shell(dir.path());
    let status = shell.0.wait();
    let said = std::fs::read_to_string(dir.path().join("out.txt")).unwrap();
    let notes = shell.0.log();
    assert!(status.success(), "{status}:\n{said}\n{notes}");

    // The job has completed, and every site counted in its last round.
    assert!(said.contains("model digits BLAKE3 "), "{said}");
    let rounds = table(&said, "ROUND");
    assert_eq!(rounds.last().unwrap()[..4], ["10", "1", "done", "3/3"], "{said}");
    // The predictions are the labels of rows that no site has trained on.
    let truth = notes.lines().find_map(|l| l.strip_prefix("true labels: ")).expect("data sample tells the labels");
    let predicted: Vec<String> = table(&said, "ROW").into_iter().map(|row| row[1].clone()).collect();
    assert_eq!(predicted, truth.split(' ').collect::<Vec<_>>(), "{said}");
    // A site knows what it has sent: who it is, then, a round, its keys, their shares, a masked update, its word for the
    // survivors, and what opens their sum.
    let sent = std::fs::read_to_string(dir.path().join("sent.log")).unwrap();
    let lines = |what: &str| sent.lines().filter(|l| l.contains(what)).count();
    assert_eq!(lines(r#""kind":"update""#), 10, "{sent}");
    for word in ["advert", "shares", "agreement", "opening"] {
        assert!(lines(&format!(r#""kind":"{word}""#)) >= 10, "{word}: {sent}");
    }
    assert_eq!(lines("weight"), 0, "{sent}");
    assert!(lines(r#""kind":"report""#) >= 1, "{sent}");
    let model = std::fs::read(dir.path().join("digits.safetensors")).unwrap();
    assert!(said.contains(&aivillage_base::Digest::of(&model).to_string()), "{said}");
    // Nothing is left: no process, no port, no folder.
    assert!(!shell.alive(), "a process is left:\n{notes}");
    assert!(std::net::TcpStream::connect(("127.0.0.1", http)).is_err());
    assert!(!dir.path().join("quickstart").exists());
}
