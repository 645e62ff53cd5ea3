//! The command line as people type it.

use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn the_commands_of_the_documentation_are_understood() {
    let lines = [
        "aivillage demo --dataset breast_cancer --nodes 3 --rounds 5 --seed 2 --json --chaos",
        "aivillage up --data d --http 127.0.0.1:0 --link 127.0.0.1:0 --json",
        "aivillage status --json --wait 30",
        "aivillage token create --role node --owner clinic-a --ttl 2h",
        "aivillage token create --role node --owner a --quiet",
        "aivillage token ls",
        "aivillage token revoke tok_1",
        "aivillage node join 127.0.0.1:8001 --token t --dir d",
        "aivillage node join --dir d --exit-with-parent --crash-at after:3",
        "aivillage node leave --dir d",
        "aivillage node preview job_1 --dir d",
        "aivillage node pins --dir d --json",
        "aivillage node pins --dir d --forget clinic-a",
        "aivillage roster create -o r.yaml --data d",
        "aivillage roster sign r.yaml --dir d",
        "aivillage roster sign r.yaml --key identity.key",
        "aivillage roster show r.yaml --json",
        "aivillage node ls --url http://h:1 --key k",
        "aivillage node revoke clinic-a",
        "aivillage data inspect d/node.yaml --json",
        "aivillage data sample digits --rows 3",
        "aivillage node ls --wait 4",
        "aivillage train submit job.yaml --watch",
        "aivillage train ls",
        "aivillage train watch job_1",
        "aivillage train pull job_1 -o m.safetensors",
        "aivillage models register m.safetensors --id m",
        "aivillage infer m --input rows.json --wait",
        "aivillage infer m --input rows.json --wait 100 --json",
        "aivillage config check --config f.yaml",
        "aivillage config schema",
        "aivillage bench round --nodes 10 --params 1000 --json",
        "aivillage bench train --json",
        "aivillage completions bash",
    ];
    for line in lines {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    for line in [
        "aivillage",
        "aivillage trian",
        "aivillage token create --role king --owner a",
        "aivillage token create --role node --owner a/b",
        "aivillage demo --nodes 1",
        "aivillage up --http 8000",
        "aivillage roster create -o r.yaml --node north",
        "aivillage roster sign r.yaml",
        "aivillage node join --dir d --crash-at now",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn a_document_that_cannot_be_read_is_shown_with_line_and_caret() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job.yaml");
    std::fs::write(&path, "job_name: a\nmodel_architecture: [mlp\nseed: 1\n").unwrap();
    let error = read_document(&path).unwrap_err();
    assert_eq!(error.code, ExitCode::Configuration);
    let shown = error.to_string();
    assert!(shown.contains("job.yaml:") && shown.contains(" | ") && shown.contains('^'), "{shown}");
    assert_eq!(read_document(&dir.path().join("none")).unwrap_err().code, ExitCode::NotFound);
}

#[test]
fn ids_that_would_be_another_path_are_refused_before_they_are_sent() {
    assert!(segment("job's id", "job_1a.b-c").is_ok());
    for bad in ["", "a/b", "a?b", "a b", "ä"] {
        assert_eq!(segment("job's id", bad).unwrap_err().code, ExitCode::Usage, "{bad}");
    }
}
