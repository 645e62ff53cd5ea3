//! The federated run: a job over the public API, watched live; the model of each round is measured on the test set.

use std::time::Duration;

use aivillage_base::{Digest, bundle};
use bytes::Bytes;
use serde_json::Value;

use super::chaos::Chaos;
use super::story::Story;
use super::{Setting, compare};
use crate::cli::watch::{News, Watch};
use crate::client::Client;
use crate::exit::{CliError, ExitCode};
use crate::processes::{Gone, Village};

/// How long the gateway may be out of reach: a restart takes a second or two.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for the model in the catalogue after the last round.
const CATALOGUE_MAX: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// What came out of a job.
#[derive(Debug)]
pub(crate) struct Run {
    /// Catalogue entry.
    pub(crate) model_id: String,
    /// BLAKE3 of the model.
    pub(crate) blake3: String,
    /// Its bundle.
    pub(crate) model: Bytes,
    /// On the test set.
    pub(crate) accuracy: f64,
    /// On the test set, by round; rounds whose model was gone before it could be fetched are missing.
    pub(crate) curve: Vec<(u32, f64)>,
    /// Updates and models that travelled.
    pub(crate) bytes: u64,
}

/// Trains in `village`; with `chaos`, processes that die as planned are started again.
pub(crate) async fn train(
    setting: &Setting,
    village: &mut Village,
    story: &Story,
    mut chaos: Option<&mut Chaos>,
) -> Result<Run, CliError> {
    let id = format!("demo-{}", setting.recipe.data.name());
    let client = village.client().clone();
    submit(setting, village, &client, &id, &mut chaos).await?;
    let mut watch = Watch::new(client.clone(), &id, PATIENCE);
    let live = story.live(setting.args.rounds);
    let mut curve = Vec::new();
    loop {
        let news = tokio::select! {
            news = watch.next() => news?,
            gone = village.gone() => {
                survive(village, &gone, &mut chaos).await?;
                continue;
            }
        };
        let Some(news) = news else { break };
        let mut more = String::new();
        if let News::Round(round) = &news
            && round.phase == "done"
            && chaos.is_none()
            && let Some(accuracy) = measure(setting, &client, &id, round.round).await?
        {
            more = format!("  test {:.1} %", 100.0 * accuracy);
            curve.push((round.round, accuracy));
        }
        if let News::Status { status, reason } = &news
            && matches!(status.as_str(), "failed" | "cancelled")
        {
            let why = reason.as_deref().unwrap_or("no reason given");
            return Err(CliError::new(ExitCode::Failed, format!("the job has {status}: {why}"))
                .hint(format!("see the logs in {}", village.dir().display())));
        }
        live.tell(&news, &more);
    }
    live.end();
    finish(setting, village, &client, &id, curve, &mut chaos).await
}

/// A process has ended: planned deaths are survived, others are errors.
async fn survive(village: &mut Village, gone: &Gone, chaos: &mut Option<&mut Chaos>) -> Result<(), CliError> {
    match chaos {
        Some(chaos) => chaos.survive(village, gone).await,
        None => Err(village.fault(gone)),
    }
}

/// Creates the job. Repeated until it is known to be there: the gateway may die before it can say so.
async fn submit(
    setting: &Setting,
    village: &mut Village,
    client: &Client,
    id: &str,
    chaos: &mut Option<&mut Chaos>,
) -> Result<(), CliError> {
    let job = setting.recipe.job(&setting.args, id);
    loop {
        let answer: Result<Value, CliError> = tokio::select! {
            answer = client.post("training/create", &job) => answer,
            gone = village.gone() => {
                survive(village, &gone, chaos).await?;
                continue;
            }
        };
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if chaos.is_some() && error.code == ExitCode::Conflict => return Ok(()),
            Err(error) if chaos.is_some() && error.code == ExitCode::Unavailable => tokio::time::sleep(LOOK).await,
            Err(error) => return Err(error),
        }
    }
}

/// Accuracy of a round's model; `None` if the model is not kept any more.
async fn measure(setting: &Setting, client: &Client, id: &str, round: u32) -> Result<Option<f64>, CliError> {
    match client.download(&format!("training/{id}/model?round={round}")).await {
        Ok(download) => accuracy(setting, &download.bytes).map(Some),
        Err(error) if error.code == ExitCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn accuracy(setting: &Setting, model: &[u8]) -> Result<f64, CliError> {
    let damaged = |e: bundle::BundleError| CliError::new(ExitCode::Failed, format!("the model is damaged: {e}"));
    let (architecture, values) = bundle::read(model).map_err(damaged)?;
    compare::accuracy(&architecture, &values, &setting.split.test)
}

/// Waits for the catalogue entry and fetches the model.
async fn finish(
    setting: &Setting,
    village: &mut Village,
    client: &Client,
    id: &str,
    curve: Vec<(u32, f64)>,
    chaos: &mut Option<&mut Chaos>,
) -> Result<Run, CliError> {
    let mut waited = Duration::ZERO;
    loop {
        let found = tokio::select! {
            found = published(client, id) => found,
            gone = village.gone() => {
                survive(village, &gone, chaos).await?;
                continue;
            }
        };
        match found {
            Ok(Some((model_id, bytes, model))) => {
                return Ok(Run {
                    model_id,
                    blake3: Digest::of(&model).to_string(),
                    accuracy: accuracy(setting, &model)?,
                    model,
                    curve,
                    bytes,
                });
            }
            Ok(None) => {}
            Err(error) if chaos.is_some() && error.code == ExitCode::Unavailable => {}
            Err(error) => return Err(error),
        }
        if waited > CATALOGUE_MAX {
            let message = format!("the model is not in the catalogue after {} s", CATALOGUE_MAX.as_secs());
            return Err(
                CliError::new(ExitCode::Failed, message).hint(format!("see the logs in {}", village.dir().display()))
            );
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
}

/// Catalogue entry, bytes that travelled and model of a completed job, once they are there.
async fn published(client: &Client, id: &str) -> Result<Option<(String, u64, Bytes)>, CliError> {
    let job: Value = client.get(&format!("training/status/{id}")).await?;
    let Some(model_id) = job["model_id"].as_str() else { return Ok(None) };
    let entry: Value = client.get(&format!("models/{model_id}")).await?;
    if entry["state"] != "ready" {
        return Ok(None);
    }
    let download = client.download(&format!("models/{model_id}/content")).await?;
    let found = Digest::of(&download.bytes).to_string();
    if entry["blake3"] != found.as_str() {
        let message = format!("the catalogue's bytes are not its model: BLAKE3 {found}, announced {}", entry["blake3"]);
        return Err(CliError::new(ExitCode::Bug, message));
    }
    Ok(Some((model_id.to_owned(), job["metrics"]["bytes"].as_u64().unwrap_or(0), download.bytes)))
}
