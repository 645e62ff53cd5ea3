//! `aivillage node preview JOB`: the next update of a job, computed here and not sent.
//!
//! Promise: policy, training and quantising are those of a round (`training::participant`), so what is shown is what
//! would leave this machine, byte by byte; only the measured time differs. Nothing is sent but questions about the job.

use std::path::Path;
use std::sync::Arc;

use aivillage_base::fixed::Grid;
use aivillage_base::time::{Clock, SystemClock};
use aivillage_base::wire::secure::{SecureTerms, Withstands};
use aivillage_base::wire::{BlobRef, DataRequirements, Invitation, LocalRule, LocalTraining, RoundKey};
use aivillage_base::{Digest, JobId, bundle};
use aivillage_training::participant::{LocalState, NodeState as _, Prepared, Received, prepare};
use aivillage_training::strategy::{self, Chosen, LocalDemands, Weighting};
use aivillage_training::{secure, spec};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::rules::Rules;
use crate::cli::args::PreviewArgs;
use crate::cli::{out, segment};
use crate::client::{Client, find};
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};
use crate::node::{self, FolderState, NodeFolder, NodeOptions};

/// What a job's document says of its rounds.
#[derive(Debug, Deserialize)]
struct Job {
    job_id: JobId,
    job_name: String,
    publisher: String,
    job_type: String,
    status: String,
    rounds_completed: u32,
    total_rounds: u32,
    model_architecture: String,
    privacy_techniques: Vec<String>,
    privacy: Privacy,
    min_participants: u32,
    max_participants: u32,
    hyperparameters: Hyperparameters,
    #[serde(default)]
    dataset_requirements: DataRequirements,
    seed: u64,
    strategy: String,
    strategy_config: Map<String, Value>,
    retain_updates: bool,
}

#[derive(Debug, Deserialize)]
struct Privacy {
    corrupt: Option<f64>,
    dropout: Option<f64>,
    adversary: Option<String>,
    neighbours: Option<u32>,
    clip: Option<f64>,
    #[serde(default)]
    helper: Option<String>,
}

impl Job {
    /// The terms of a round of all the nodes that the job takes: the real ones say how many are there.
    fn terms(&self, chosen: &Chosen) -> Result<Option<SecureTerms>, CliError> {
        if !self.privacy_techniques.iter().any(|name| name == secure::TECHNIQUE) {
            return Ok(None);
        }
        let Privacy { corrupt, dropout, adversary, neighbours, .. } = &self.privacy;
        let withstands = Withstands {
            corrupt: corrupt.unwrap_or(secure::WITHSTANDS.corrupt),
            dropout: dropout.unwrap_or(secure::WITHSTANDS.dropout),
            lying_coordinator: adversary.as_deref() != Some("curious"),
            neighbours: *neighbours,
        };
        let weighting = chosen.strategy.rule().weighting().unwrap_or(Weighting::Equal);
        let cohort = (self.min_participants, self.max_participants);
        secure::terms(withstands, cohort, weighting, self.hyperparameters.max_examples)
            .map(Some)
            .map_err(|e| CliError::new(ExitCode::Failed, format!("the job's sums: {e}")))
    }
}

#[derive(Debug, Deserialize)]
struct Hyperparameters {
    local_epochs: u32,
    batch_size: u32,
    learning_rate: f64,
    momentum: f64,
    weight_decay: f64,
    max_examples: u32,
}

pub(super) async fn run(args: &PreviewArgs, environment: &Environment) -> Result<(), CliError> {
    let folder = NodeFolder::open(&args.dir)?;
    let enrolment = folder.enrolment()?.ok_or_else(|| {
        CliError::new(ExitCode::NotFound, format!("{} has not joined any gateway", args.dir.display())).hint(
            "a preview needs the name that the gateway knows the node by: join first (--enrol-only does just that)",
        )
    })?;
    let client = find(&args.connection, environment)?;
    let (invitation, model, helped) = invitation(&client, segment("job's id", &args.job)?).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let wall_ms = clock.now().wall_ms;
    let options = NodeOptions { folder, crash: None, bench_params: None, clock };
    let name = enrolment.name.clone();
    let work = move || -> Result<_, CliError> {
        let abilities = node::abilities(&options)?;
        let rules = Rules::of(&abilities.config.privacy, &invitation, helped, wall_ms);
        if rules.refusing().next().is_some() {
            return Ok((invitation, rules, None));
        }
        let cannot = |e: String| CliError::new(ExitCode::Failed, format!("this node cannot train the job: {e}"));
        let state = kept(options.folder.path(), &invitation).map_err(cannot)?;
        let received = Received { model: &model, control: None, state: &state };
        let prepared = prepare(&*abilities.trainer, &name, &abilities.config.privacy, &invitation, received);
        Ok((invitation, rules, Some(prepared.map_err(cannot)?)))
    };
    let worked = tokio::task::spawn_blocking(work).await;
    let (invitation, rules, prepared) =
        worked.map_err(|e| CliError::new(ExitCode::Bug, format!("training stopped: {e}")))??;
    let to = (enrolment.link.as_str(), enrolment.name.as_str());
    match prepared {
        Some(prepared) => show(args, to, &invitation, &rules, &prepared),
        None => Err(rules.show_refusal(args, to, &invitation)),
    }
}

/// What the node keeps of the job after the newest published round that it knows of: which of its updates counted, only the
/// next invitation will say.
fn kept(folder: &Path, invitation: &Invitation) -> Result<LocalState, String> {
    if !LocalState::needed(invitation) {
        return Ok(LocalState::default());
    }
    let store = FolderState::new(folder);
    let marks = store.kept(&invitation.key.job)?;
    let newest = marks.into_iter().filter(|m| m.key.round < invitation.key.round).max();
    newest.map_or_else(|| Ok(LocalState::default()), |mark| store.read(&mark, &invitation.architecture))
}

/// What the strategy asks of the node, as far as the gateway publishes it.
fn local_rule(job: &Job, demands: LocalDemands) -> Result<LocalRule, CliError> {
    if demands.control_variates && job.rounds_completed > 0 {
        let message = format!(
            "no preview of `{}` after its first round: it trains with a vector that the gateway gives to invited nodes only",
            job.strategy
        );
        return Err(CliError::new(ExitCode::Refused, message)
            .hint("sent.log in the node's folder tells size and digest of each update that was sent"));
    }
    if demands.control_variates {
        return Ok(LocalRule::Scaffold { control: None });
    }
    Ok(demands.personal_lambda.map_or(LocalRule::Plain, |lambda| LocalRule::Ditto { lambda }))
}

/// The strategy of the job, by its published name and settings.
fn chosen(job: &Job) -> Result<Chosen, CliError> {
    strategy::named(&job.strategy, &job.strategy_config).map_err(|fault| {
        let message = format!("this version cannot preview strategy `{}`: {fault:?}", job.strategy);
        CliError::new(ExitCode::Failed, message)
            .hint("use the version of the gateway: `aivillage --version` tells both")
    })
}

/// The invitation to the job's next round, from what the gateway publishes of the job, and the model it starts from.
async fn invitation(client: &Client, id: &str) -> Result<(Invitation, Bytes, bool), CliError> {
    let job: Job = client.get(&format!("training/status/{id}?rounds=0")).await?;
    let model = client.download(&format!("training/{id}/model")).await.map_err(|e| match e.code {
        ExitCode::NotFound => e.hint("a job has its first model as soon as it runs: try again then"),
        ExitCode::Failed
        | ExitCode::Usage
        | ExitCode::Configuration
        | ExitCode::Authentication
        | ExitCode::Conflict
        | ExitCode::Unavailable
        | ExitCode::Refused
        | ExitCode::Bug => e,
    })?;
    let damaged = |e: bundle::BundleError| CliError::new(ExitCode::Failed, format!("the job's model: {e}"));
    let (architecture, _) = bundle::read(&model.bytes).map_err(damaged)?;
    let tensors = architecture.layout().map_err(|e| CliError::new(ExitCode::Failed, e.to_string()))?.len();
    if job.status != "running" && job.status != "created" {
        out::note(&format!("the job is {}: no round follows; this is what one more would send", job.status));
    }
    let chosen = chosen(&job)?;
    let demands = chosen.strategy.rule().local();
    let local = local_rule(&job, demands)?;
    let terms = job.terms(&chosen)?;
    let (helped, hyper) = (job.privacy.helper.is_some(), job.hyperparameters);
    let invitation = Invitation {
        key: RoundKey { job: job.job_id, round: job.rounds_completed + 1, attempt: 1 },
        job_name: job.job_name,
        publisher: job.publisher,
        job_type: job.job_type,
        recipe: job.model_architecture,
        personal: spec::personal(&chosen.personal_tensors, &architecture),
        architecture,
        model: BlobRef { digest: Digest::of(&model.bytes), bytes: model.bytes.len() as u64 },
        training: LocalTraining {
            epochs: hyper.local_epochs,
            batch_size: hyper.batch_size,
            learning_rate: hyper.learning_rate,
            momentum: hyper.momentum,
            weight_decay: hyper.weight_decay,
            proximal_mu: demands.proximal_mu,
        },
        data: job.dataset_requirements,
        seed: job.seed,
        // The grid of this version's rounds is the default for every tensor.
        grids: vec![Grid::default(); tensors],
        max_examples: hyper.max_examples,
        local,
        initial_loss: demands.initial_loss,
        receipt: None,
        retain_updates: job.retain_updates,
        clip: job.privacy.clip,
        secure: terms,
        privacy_techniques: job.privacy_techniques,
        total_rounds: job.total_rounds,
        deadline_ms: 0,
    };
    Ok((invitation, model.bytes, helped))
}

/// What the gateway would learn of the update.
fn seen_by_gateway(invitation: &Invitation) -> &'static str {
    match invitation.secure {
        Some(_) => {
            "the sum of the cohort's updates, weights and measurements; of this one its size and its clipped values"
        }
        None => "every value of the update",
    }
}

fn show(
    args: &PreviewArgs,
    (link, name): (&str, &str),
    invitation: &Invitation,
    rules: &Rules,
    prepared: &Prepared,
) -> Result<(), CliError> {
    if let Some(path) = &args.output {
        crate::folder::write_whole(path, &prepared.payload)
            .map_err(|e| CliError::new(ExitCode::Failed, format!("cannot write {}: {e}", path.display())))?;
    }
    let header = &prepared.header;
    if args.json {
        out::document(&json!({
            "to": link,
            "from": name,
            "job_name": invitation.job_name,
            "rules": rules.json(),
            "header": header,
            "seen_by_gateway": seen_by_gateway(invitation),
            "file": args.output,
        }));
        return Ok(());
    }
    out::line(&out::fields(&[
        ("to", format!("{link} (over mutual TLS)")),
        ("about", format!("{}, \"{}\"", header.key, invitation.job_name)),
        ("update", format!("{} integers of 4 bytes: {}", prepared.payload.len() / 4, out::bytes(header.payload.bytes))),
        ("BLAKE3", header.payload.digest.to_string()),
        ("weight", format!("{} (the number of rows trained on)", header.weight)),
        ("steps", format!("{} steps of the optimiser", header.steps)),
        ("initial loss", out::number(header.initial_loss)),
        ("kept", if header.retain { "may be kept after its round" } else { "deleted with its round" }.to_owned()),
        ("clipped", format!("{} values", header.clipped)),
        ("loss", out::number(Some(header.metrics.loss))),
        ("accuracy", format!("{} on own rows, before training", out::percent(header.metrics.accuracy))),
        ("train_ms", header.metrics.train_ms.to_string()),
        ("seen by", format!("{}; no row of data is in it", seen_by_gateway(invitation))),
    ]));
    out::line(&rules.table());
    out::line("nothing was sent");
    Ok(())
}
