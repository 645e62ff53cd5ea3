//! A job as it happens, over server-sent events that may break and come back.
//!
//! Promise: every ended attempt at a round is told once and in order, whatever happens to the connection or the gateway
//! in between; the last thing told of an ended job is its terminal status. Must not know: how it is shown.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::client::{Client, Event, EventStream};
use crate::exit::{CliError, ExitCode};

/// Pause before the stream is opened again.
const PAUSE: Duration = Duration::from_millis(200);

/// Something worth telling.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// The job's status has changed.
    Status {
        /// `created`, `running`, `completed`, `failed`, `cancelled`.
        status: String,
        /// Why, if there is a why.
        reason: Option<String>,
    },
    /// The round waits for nodes.
    Waiting {
        /// Round.
        round: u32,
        /// What it waits for.
        reason: String,
    },
    /// Nodes were invited.
    Opened {
        /// Round.
        round: u32,
        /// Attempt at it.
        attempt: u32,
        /// How many nodes.
        invited: usize,
    },
    /// A member's state has changed.
    Member {
        /// Round.
        round: u32,
        /// The member.
        member: Member,
    },
    /// A round has ended.
    Round(Round),
    /// The gateway is out of reach; it is asked again.
    Lost {
        /// Why.
        reason: String,
    },
}

/// One attempt at a round, as far as people are told.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Round {
    /// Counts from 1.
    pub round: u32,
    /// Counts from 1 within the round.
    pub attempt: u32,
    /// `done` or `abandoned` once it has ended.
    pub phase: String,
    /// Why it was abandoned.
    pub reason: Option<String>,
    /// Who was invited.
    pub participants: Vec<Member>,
    /// Mean training loss.
    pub loss: Option<f64>,
    /// Mean accuracy on the nodes' own data of the model they received.
    pub accuracy: Option<f64>,
    /// Bytes of updates and models.
    pub bytes: u64,
    /// The model that came out.
    pub model: Option<Blob>,
    /// From opening to end.
    pub elapsed_ms: u64,
}

/// One member of a round.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Member {
    /// Enrolled name.
    pub name: String,
    /// `invited`, `training`, `counted`, `declined` …
    pub status: String,
    /// Why, where there is a why.
    pub reason: Option<String>,
}

/// Bytes by their hash.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Blob {
    /// BLAKE3.
    pub blake3: String,
    /// Length.
    pub bytes: u64,
}

impl Round {
    /// Members whose update counted.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.participants.iter().filter(|m| m.status == "counted").count()
    }

    /// Members that did not count, with the reason: `node-3 (silent)`.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let missing = self.participants.iter().filter(|m| m.status != "counted");
        missing.map(|m| format!("{} ({})", m.name, m.reason.as_deref().unwrap_or(&m.status))).collect()
    }

    fn is_published(&self) -> bool {
        self.phase == "done"
    }
}

impl News {
    /// One line for people, or nothing where every line would be noise.
    #[must_use]
    pub fn line(&self, total_rounds: u32) -> Option<String> {
        match self {
            Self::Status { status, reason: Some(reason) } => Some(format!("{status}: {reason}")),
            Self::Status { status, reason: None } => Some(status.clone()),
            Self::Waiting { round, reason } => Some(format!("round {round} waits for {reason}")),
            Self::Round(round) if round.is_published() => {
                let mut line = format!(
                    "round {}/{total_rounds}  {} nodes  accuracy {}  loss {}  {}  {} ms",
                    round.round,
                    round.counted(),
                    super::out::percent(round.accuracy),
                    super::out::number(round.loss),
                    super::out::bytes(round.bytes),
                    round.elapsed_ms,
                );
                let missing = round.missing();
                if !missing.is_empty() {
                    line.push_str(&format!("  without {}", missing.join(", ")));
                }
                Some(line)
            }
            Self::Round(round) => Some(format!(
                "round {} attempt {} abandoned: {}",
                round.round,
                round.attempt,
                round.reason.as_deref().unwrap_or("no reason given")
            )),
            Self::Lost { reason } => Some(format!("the gateway is out of reach, trying again: {reason}")),
            Self::Opened { .. } | Self::Member { .. } => None,
        }
    }
}

/// The part of a job's document that is needed here.
#[derive(Debug, Deserialize)]
struct State {
    status: String,
    reason: Option<String>,
    current_round: Option<Round>,
    rounds: Vec<Round>,
}

/// Follows one job.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    path: String,
    stream: Option<EventStream>,
    told: Told,
    patience: Duration,
    waited: Duration,
}

/// What has been told, and what waits to be.
#[derive(Debug, Default)]
struct Told {
    rounds: BTreeSet<(u32, u32)>,
    status: String,
    ready: VecDeque<News>,
}

fn is_terminal(status: &str) -> bool {
    matches!(status, "completed" | "failed" | "cancelled")
}

impl Watch {
    /// Follows `job`; a gateway that is out of reach is asked again for `patience`.
    #[must_use]
    pub fn new(client: Client, job: &str, patience: Duration) -> Self {
        let path = format!("training/{job}/events");
        Self { client, path, stream: None, told: Told::default(), patience, waited: Duration::ZERO }
    }

    /// The next piece of news; `None` after the terminal status.
    ///
    /// # Errors
    /// The job is not there, the key is refused, or the gateway stays out of reach for longer than the patience.
    pub async fn next(&mut self) -> Result<Option<News>, CliError> {
        loop {
            if let Some(news) = self.told.ready.pop_front() {
                return Ok(Some(news));
            }
            if is_terminal(&self.told.status) {
                return Ok(None);
            }
            let Some(stream) = &mut self.stream else {
                if let Some(lost) = self.open().await? {
                    return Ok(Some(lost));
                }
                continue;
            };
            match stream.next().await {
                Ok(Some(event)) => {
                    self.waited = Duration::ZERO;
                    self.told.take(&event);
                }
                // The gateway ends the stream of an ended job, and of every job when it stops.
                Ok(None) | Err(_) => self.stream = None,
            }
        }
    }

    async fn open(&mut self) -> Result<Option<News>, CliError> {
        match self.client.events(&self.path).await {
            Ok(stream) => {
                self.stream = Some(stream);
                Ok(None)
            }
            Err(error) if error.code == ExitCode::Unavailable && self.waited < self.patience => {
                let first = self.waited.is_zero();
                tokio::time::sleep(PAUSE).await;
                self.waited += PAUSE;
                Ok(first.then_some(News::Lost { reason: error.message }))
            }
            Err(error) => Err(error),
        }
    }
}

impl Told {
    fn take(&mut self, event: &Event) {
        let Ok(data) = serde_json::from_str::<Value>(&event.data) else { return };
        match event.name.as_str() {
            "state" => {
                if let Ok(state) = serde_json::from_value::<State>(data) {
                    self.state(state);
                }
            }
            "status" => {
                let text = |name: &str| data[name].as_str().map(str::to_owned);
                self.status(text("status").unwrap_or_default(), text("reason"));
            }
            "recruiting" => {
                let reason = data["waiting_for"].as_str().unwrap_or_default().to_owned();
                self.ready.push_back(News::Waiting { round: number(&data["round"]), reason });
            }
            "round_opened" => {
                let invited = data["invited"].as_array().map_or(0, Vec::len);
                self.opened(number(&data["round"]), number(&data["attempt"]), invited);
            }
            "member" => {
                if let Ok(member) = serde_json::from_value(data["member"].clone()) {
                    self.ready.push_back(News::Member { round: number(&data["round"]), member });
                }
            }
            "round_ended" => {
                if let Ok(round) = serde_json::from_value(data) {
                    self.ended(round);
                }
            }
            // `lagged` is followed by a state; a newer gateway may say more.
            _ => {}
        }
    }

    fn state(&mut self, state: State) {
        for round in state.rounds {
            self.ended(round);
        }
        if let Some(round) = state.current_round.filter(|r| r.phase != "recruiting") {
            self.opened(round.round, round.attempt, round.participants.len());
        }
        self.status(state.status, state.reason);
    }

    fn opened(&mut self, round: u32, attempt: u32, invited: usize) {
        if !self.rounds.contains(&(round, attempt)) {
            self.ready.push_back(News::Opened { round, attempt, invited });
        }
    }

    fn ended(&mut self, round: Round) {
        if self.rounds.insert((round.round, round.attempt)) {
            self.ready.push_back(News::Round(round));
        }
    }

    fn status(&mut self, status: String, reason: Option<String>) {
        if self.status != status {
            self.status.clone_from(&status);
            self.ready.push_back(News::Status { status, reason });
        }
    }
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|v| u32::try_from(v).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn round(round: u32, phase: &str) -> Value {
        json!({
            "round": round, "attempt": 1, "phase": phase, "reason": null, "loss": 0.5, "accuracy": 0.25, "bytes": 2_000,
            "model": null, "elapsed_ms": 7,
            "participants": [
                {"name": "a", "status": "counted", "reason": null, "weight": 3},
                {"name": "b", "status": "silent", "reason": null},
            ],
        })
    }

    fn told(events: &[(&str, Value)]) -> Vec<String> {
        let mut told = Told::default();
        for (name, data) in events {
            told.take(&Event { name: (*name).into(), data: data.to_string() });
        }
        told.ready.iter().filter_map(|news| news.line(3)).collect()
    }

    #[test]
    fn a_round_that_a_new_connection_tells_again_is_told_once() {
        let state = json!({"status": "running", "reason": null, "current_round": null, "rounds": [round(1, "done"), round(2, "done")]});
        let lines = told(&[
            (
                "state",
                json!({"status": "running", "reason": null, "current_round": round(1, "collecting"), "rounds": []}),
            ),
            ("round_ended", round(1, "done")),
            ("state", state),
            ("status", json!({"status": "completed", "reason": null})),
        ]);
        let first = "round 1/3  1 nodes  accuracy 25.0 %  loss 0.5000  2.0 kB  7 ms  without b (silent)";
        assert_eq!(lines, ["running", first, &first.replace("1/3", "2/3"), "completed"]);
    }

    #[test]
    fn waiting_and_failure_say_why() {
        let lines = told(&[
            ("recruiting", json!({"round": 1, "waiting_for": "2 more nodes"})),
            ("unheard_of", json!({})),
            ("status", json!({"status": "failed", "reason": "no data"})),
        ]);
        assert_eq!(lines, ["round 1 waits for 2 more nodes", "failed: no data"]);
    }
}
