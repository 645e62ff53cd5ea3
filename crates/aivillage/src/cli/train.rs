//! `aivillage train`: jobs.

mod export;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::args::ClientArgs;
use super::out::{self, cell, items};
use super::watch::{News, Watch};
use super::{models, read_document, segment};
use crate::client::{Client, find};
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};

/// How long a gateway may be out of reach while a job is watched: a restart takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Train one model on data that stays where it is
#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// Create a job from a YAML or JSON file: the body of POST training/create
    Submit(SubmitArgs),
    /// List the jobs
    #[command(alias = "list")]
    Ls(ClientArgs),
    /// Show a job and its rounds
    Show(JobArgs),
    /// Follow a job until it ends
    Watch(JobArgs),
    /// End a job
    Cancel(JobArgs),
    /// Fetch a job's model, verified
    Pull(PullArgs),
    /// Write what an auditor needs to recompute a job's models: its record, and the updates that were kept
    Export(export::ExportArgs),
}

/// What to train.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// job.yaml
    file: PathBuf,
    /// Follow the job until it ends
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Which job.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// Its id
    job: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Which model, and where to.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The job's id
    job: String,
    /// Where to write it [default: JOB.safetensors]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The model of this round, while it is kept [default: the newest]
    #[arg(long, value_name = "N")]
    round: Option<u32>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: TrainCommand, environment: &Environment) -> Result<(), CliError> {
    match command {
        TrainCommand::Submit(args) => submit(&args, environment).await,
        TrainCommand::Ls(args) => list(&args, environment).await,
        TrainCommand::Show(args) => {
            let client = find(&args.client.connection, environment)?;
            let job = job(&client, segment("job's id", &args.job)?).await?;
            if args.client.json {
                out::document(&job)
            } else {
                out::line(&describe(&job))
            }
            Ok(())
        }
        TrainCommand::Watch(args) => {
            let client = find(&args.client.connection, environment)?;
            watch(&client, segment("job's id", &args.job)?, args.client.json).await
        }
        TrainCommand::Cancel(args) => {
            let client = find(&args.client.connection, environment)?;
            let path = format!("training/{}/cancel", segment("job's id", &args.job)?);
            let answer: Value = client.post(&path, &json!({})).await?;
            if args.client.json {
                out::document(&answer)
            } else {
                out::line(&format!("{} is cancelled", args.job))
            }
            Ok(())
        }
        TrainCommand::Export(args) => export::run(&args, environment).await,
        TrainCommand::Pull(args) => {
            let client = find(&args.client.connection, environment)?;
            let job = segment("job's id", &args.job)?;
            let query = args.round.map(|r| format!("?round={r}")).unwrap_or_default();
            let output = args.output.unwrap_or_else(|| format!("{job}.safetensors").into());
            models::pull(&client, &format!("training/{job}/model{query}"), &output, args.client.json).await
        }
    }
}

/// A job's document.
async fn job(client: &Client, id: &str) -> Result<Value, CliError> {
    client.get(&format!("training/status/{id}")).await
}

async fn submit(args: &SubmitArgs, environment: &Environment) -> Result<(), CliError> {
    let body = read_document(&args.file)?;
    if !body.is_object() {
        let message = format!("{} is not a job: keys like `job_name:` are expected", args.file.display());
        return Err(CliError::new(ExitCode::Configuration, message).hint(
            "job_name, model_architecture and privacy_techniques are a good start; docs/quickstart.md has an example",
        ));
    }
    let client = find(&args.client.connection, environment)?;
    let answer: Value = client.post("training/create", &body).await?;
    let id = cell(&answer["job_id"]);
    if !args.client.json {
        for warning in items(&answer, "warnings") {
            out::note(&format!("warning: {}", cell(&warning["detail"])));
        }
    }
    if args.watch {
        if !args.client.json {
            out::note(&format!("created {id}"));
        }
        return watch(&client, &id, args.client.json).await;
    }
    if args.client.json {
        out::document(&answer);
    } else {
        // The id alone goes to stdout, so that JOB=$(aivillage train submit job.yaml) works.
        out::line(&id);
        out::note(&format!("created; follow it with `aivillage train watch {id}`"));
    }
    Ok(())
}

async fn list(args: &ClientArgs, environment: &Environment) -> Result<(), CliError> {
    let list: Value = find(&args.connection, environment)?.get("training/jobs").await?;
    let row = |j: &Value| {
        let rounds = format!("{}/{}", cell(&j["rounds_completed"]), cell(&j["total_rounds"]));
        vec![cell(&j["job_id"]), cell(&j["job_name"]), cell(&j["status"]), rounds, cell(&j["created_at"])]
    };
    let rows = items(&list, "jobs").iter().map(row).collect();
    let header = ["ID", "NAME", "STATUS", "ROUNDS", "CREATED"];
    out::listing(args.json, &list, &header, rows, "no jobs yet: create one with `aivillage train submit job.yaml`");
    Ok(())
}

/// A job in words, with the newest rounds.
fn describe(job: &Value) -> String {
    let metrics = &job["metrics"];
    let why = out::present(&job["reason"]).map(|reason| format!(": {}", cell(reason))).unwrap_or_default();
    let status = format!("{}{why}", cell(&job["status"]));
    let mut pairs = vec![
        ("job", format!("{}, \"{}\"", cell(&job["job_id"]), cell(&job["job_name"]))),
        ("status", status),
        ("rounds", format!("{} of {}", cell(&job["rounds_completed"]), cell(&job["total_rounds"]))),
        ("architecture", cell(&job["model_architecture"])),
        ("strategy", cell(&job["strategy"])),
        (
            "privacy",
            match items(job, "privacy_techniques") {
                [] => "none: the gateway sees each node's update".to_owned(),
                _ => cell(&job["privacy_techniques"]),
            },
        ),
        ("seed", cell(&job["seed"])),
        ("loss", out::number(metrics["loss"].as_f64())),
        ("accuracy", format!("{} (nodes' own data)", out::percent(metrics["accuracy"].as_f64()))),
        ("traffic", metrics["bytes"].as_u64().map_or_else(|| "-".into(), out::bytes)),
        ("best round", cell(&job["best_round"])),
        ("model", cell(&job["model"]["blake3"])),
        ("catalogue", cell(&job["model_id"])),
    ];
    pairs.retain(|(_, value)| value != "-");
    let rounds: Vec<_> = items(job, "rounds").iter().rev().take(10).collect();
    let mut text = out::fields(&pairs);
    if !rounds.is_empty() {
        let row = |r: &Value| {
            let counted = items(r, "participants").iter().filter(|m| m["status"] == "counted").count();
            vec![
                cell(&r["round"]),
                cell(&r["attempt"]),
                cell(&r["phase"]),
                format!("{counted}/{}", items(r, "participants").len()),
                out::percent(r["accuracy"].as_f64()),
                out::number(r["loss"].as_f64()),
                cell(&r["elapsed_ms"]),
                cell(&r["reason"]),
            ]
        };
        let header = ["ROUND", "TRY", "PHASE", "COUNTED", "ACCURACY", "LOSS", "MS", "WHY"];
        let rows = rounds.into_iter().rev().map(row).collect();
        text.push_str(&format!("\n\n{}", out::table(&header, rows)));
    }
    text
}

/// Follows a job: a bar on a terminal, else one line an event; the last document with `--json`.
async fn watch(client: &Client, id: &str, json: bool) -> Result<(), CliError> {
    let total: u32 = job(client, id).await?["total_rounds"].as_u64().and_then(|t| u32::try_from(t).ok()).unwrap_or(0);
    let mut watch = Watch::new(client.clone(), id, PATIENCE);
    let live = Live::new(total, json);
    while let Some(news) = watch.next().await? {
        live.tell(&news, "");
    }
    live.end();
    let last = job(client, id).await?;
    if json {
        out::document(&last);
    }
    match last["status"].as_str() {
        Some("completed") => {
            if !json {
                out::line(&format!("model {} BLAKE3 {}", cell(&last["model_id"]), cell(&last["model"]["blake3"])));
            }
            Ok(())
        }
        other => {
            let why = cell(&last["reason"]);
            let message = format!("job {id} is {}: {why}", other.unwrap_or("unknown"));
            Err(CliError::new(ExitCode::Failed, message).hint(format!("aivillage train show {id}")))
        }
    }
}

/// Progress for people: a bar on a terminal, else lines (on stderr when stdout is for a document).
#[derive(Debug)]
pub(crate) struct Live {
    bar: Option<ProgressBar>,
    total: u32,
    json: bool,
}

impl Live {
    pub(crate) fn new(total: u32, json: bool) -> Self {
        let terminal = out::is_terminal() && console::Term::stderr().is_term() && !json;
        let bar = terminal.then(|| {
            let style = ProgressStyle::with_template("{bar:16} round {pos}/{len}  {wide_msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ");
            ProgressBar::new(u64::from(total)).with_style(style)
        });
        Self { bar, total, json }
    }

    /// Tells one piece of news; `more` follows what is said of a published round,
    /// and stands for its accuracy where there is little room.
    pub(crate) fn tell(&self, news: &News, more: &str) {
        let Some(bar) = &self.bar else {
            return match news.line(self.total) {
                Some(line) if self.json => out::note(&format!("{line}{more}")),
                Some(line) => out::line(&format!("{line}{more}")),
                None => {}
            };
        };
        match news {
            News::Round(round) if round.phase == "done" => {
                bar.set_position(u64::from(round.round));
                // 80 columns hold one accuracy: the one that the caller knows better, if it knows one.
                let accuracy = if more.is_empty() {
                    format!("  accuracy {}", out::percent(round.accuracy))
                } else {
                    more.to_owned()
                };
                let (loss, bytes) = (out::number(round.loss), out::bytes(round.bytes));
                bar.set_message(format!("{} nodes{accuracy}  loss {loss}  {bytes}", round.counted()));
            }
            News::Waiting { .. } | News::Lost { .. } => bar.set_message(news.line(self.total).unwrap_or_default()),
            News::Round(_) => bar.println(news.line(self.total).unwrap_or_default()),
            News::Status { .. } | News::Opened { .. } | News::Member { .. } => {}
        }
    }

    pub(crate) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish();
        }
    }
}
