//! The participant's log: nothing leaves that it does not hold.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use aivillage_base::ports::Uplink;
use aivillage_base::time::SystemClock;
use aivillage_base::wire::{DataSummary, Declined, LocalMetrics, LocalRule, UpdateHeader, UpdateReply};
use aivillage_base::{Recipe, Task, bundle};
use async_trait::async_trait;

use aivillage_privacy::secagg::signed::KeyInMemory;

use super::*;
use crate::trainer::{LocalOutcome, LocalTerms, TrainError};

mod leaving;

/// A line to the coordinator that counts what goes over it.
#[derive(Debug)]
struct Line {
    model: Bytes,
    sent: AtomicU32,
    done: tokio::sync::Notify,
}

#[async_trait]
impl Uplink for Line {
    async fn send(&self, _: &Up) -> Result<(), UplinkError> {
        self.sent.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn upload(&self, _: &UpdateHeader, _: Bytes) -> Result<UpdateReply, UplinkError> {
        self.sent.fetch_add(1, Ordering::SeqCst);
        self.done.notify_one();
        Ok(UpdateReply::Accepted)
    }

    async fn fetch(&self, _: &BlobRef) -> Result<Bytes, UplinkError> {
        Ok(self.model.clone())
    }
}

/// A log on a disk that can be full.
#[derive(Debug, Default)]
struct Disk {
    full: AtomicBool,
    lines: Mutex<Vec<&'static str>>,
    asked: tokio::sync::Notify,
}

impl SentLog for Disk {
    fn record(&self, entry: &SentEntry) -> Result<(), String> {
        self.asked.notify_one();
        if self.full.load(Ordering::SeqCst) {
            return Err("no space left".into());
        }
        self.lines.lock().unwrap().push(entry.kind);
        Ok(())
    }
}

/// Leaves the model as it is.
#[derive(Debug)]
struct Idle;

impl Trainer for Idle {
    fn data(&self) -> Vec<DataSummary> {
        Vec::new()
    }

    fn train(&self, _: &Invitation, _: &str, values: Vec<f32>, _: LocalTerms<'_>) -> Result<LocalOutcome, TrainError> {
        Ok(LocalOutcome::plain(values, 1, 1, LocalMetrics::default()))
    }
}

fn invited(policy: NodePolicy, full: bool) -> (Participant, Arc<Line>, Arc<Disk>, Invitation) {
    let architecture = Recipe::LinearRegression.build(&[2], Task::Regression).unwrap();
    let model = Bytes::from(bundle::write(&architecture, &[0.0; 3]).unwrap());
    let invitation = Invitation {
        architecture,
        model: BlobRef { digest: Digest::of(&model), bytes: model.len() as u64 },
        ..crate::testing::invitation()
    };
    let line = Arc::new(Line { model, sent: AtomicU32::new(0), done: tokio::sync::Notify::new() });
    let disk = Arc::new(Disk { full: AtomicBool::new(full), ..Disk::default() });
    let deps = ParticipantDeps {
        keys: keys(),
        uplink: line.clone(),
        trainer: Arc::new(Idle),
        name: NodeName::new("node").unwrap(),
        policy,
        log: disk.clone(),
        clock: Arc::new(SystemClock::new()),
        state: Arc::<MemoryState>::default(),
    };
    (Participant::new(deps, CancellationToken::new()), line, disk, invitation)
}

#[tokio::test]
async fn a_yes_and_an_update_are_logged_before_they_are_sent() {
    let (participant, line, disk, invitation) = invited(NodePolicy::default(), false);
    participant.handle(&Down::Invite(Box::new(invitation)));
    tokio::time::timeout(Duration::from_secs(60), line.done.notified()).await.unwrap();
    assert_eq!(*disk.lines.lock().unwrap(), ["answer", "update"]);
    assert_eq!(line.sent.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn nothing_is_sent_that_cannot_be_logged() {
    let refusing = NodePolicy { require_secure_aggregation: true, ..NodePolicy::default() };
    for policy in [NodePolicy::default(), refusing] {
        let (participant, line, disk, invitation) = invited(policy, true);
        participant.handle(&Down::Invite(Box::new(invitation)));
        tokio::time::timeout(Duration::from_secs(60), disk.asked.notified()).await.unwrap();
        // The attempt has ended when nothing of it is active any more.
        while !participant.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(line.sent.load(Ordering::SeqCst), 0);
    }
}

/// A line that cuts the node off as its update leaves, so that nobody knows whether it arrived.
#[derive(Debug, Default)]
struct Cut {
    model: Bytes,
    payloads: Mutex<Vec<Receipt>>,
    failures: Mutex<Vec<String>>,
    done: tokio::sync::Notify,
}

#[async_trait]
impl Uplink for Cut {
    async fn send(&self, message: &Up) -> Result<(), UplinkError> {
        match message {
            Up::TrainingFailed { reason, .. } => self.failures.lock().unwrap().push(reason.clone()),
            Up::Answer { declined: Some(Declined { rule, reason, .. }), .. } => {
                self.failures.lock().unwrap().push(format!("declined by {rule}: {reason}"));
            }
            Up::Report(_) | Up::Secure { .. } | Up::Answer { .. } | Up::Prediction { .. } | Up::Leave => return Ok(()),
        }
        self.done.notify_one();
        Ok(())
    }

    async fn upload(&self, header: &UpdateHeader, _: Bytes) -> Result<UpdateReply, UplinkError> {
        self.payloads.lock().unwrap().push(Receipt { key: header.key.clone(), digest: header.payload.digest });
        self.done.notify_one();
        std::future::pending().await
    }

    async fn fetch(&self, _: &BlobRef) -> Result<Bytes, UplinkError> {
        Ok(self.model.clone())
    }
}

/// Moves the model by what it is told to add, and a tenth.
#[derive(Debug)]
struct Moving;

impl Trainer for Moving {
    fn data(&self) -> Vec<DataSummary> {
        Vec::new()
    }

    fn train(
        &self,
        _: &Invitation,
        _: &str,
        mut values: Vec<f32>,
        terms: LocalTerms<'_>,
    ) -> Result<LocalOutcome, TrainError> {
        for (i, w) in values.iter_mut().enumerate() {
            *w -= 0.1 + terms.correction.get(i).copied().unwrap_or(0.0);
        }
        Ok(LocalOutcome::plain(values, 1, 1, LocalMetrics::default()))
    }
}

/// A node whose process lives for one invitation; its disk stays.
async fn one_life(line: &Arc<Cut>, disk: &Arc<MemoryState>, invitation: &Invitation) {
    let deps = ParticipantDeps {
        keys: keys(),
        uplink: line.clone(),
        trainer: Arc::new(Moving),
        name: NodeName::new("node").unwrap(),
        policy: NodePolicy::default(),
        log: Arc::<Disk>::default(),
        clock: Arc::new(SystemClock::new()),
        state: disk.clone(),
    };
    let stop = CancellationToken::new();
    Participant::new(deps, stop.clone()).handle(&Down::Invite(Box::new(invitation.clone())));
    tokio::time::timeout(Duration::from_secs(60), line.done.notified()).await.unwrap();
    stop.cancel();
}

#[tokio::test]
async fn a_node_that_is_killed_as_its_update_leaves_goes_on_with_the_same_bits() {
    let (_, line, _, mut invitation) = invited(NodePolicy::default(), false);
    let (line, disk) = (Arc::new(Cut { model: line.model.clone(), ..Cut::default() }), Arc::<MemoryState>::default());
    invitation.local = LocalRule::Scaffold { control: None };
    one_life(&line, &disk, &invitation).await;
    one_life(&line, &disk, &invitation).await;
    let sent = line.payloads.lock().unwrap().clone();
    assert_eq!((sent.len(), &sent[0]), (2, &sent[1]), "the same update twice");
    // It counted: the next round starts from its state, again the same in each life.
    invitation.key.round = 2;
    invitation.receipt = Some(sent[0].clone());
    one_life(&line, &disk, &invitation).await;
    one_life(&line, &disk, &invitation).await;
    let sent = line.payloads.lock().unwrap().clone();
    assert_eq!(sent[2], sent[3]);
    assert_ne!(sent[2].digest, sent[0].digest, "the control variate is felt");
    // It did not count: an attempt later the node starts from the same state once more.
    invitation.key.attempt = 2;
    one_life(&line, &disk, &invitation).await;
    assert_eq!(line.payloads.lock().unwrap()[4].digest, sent[2].digest);
    // A node whose disk was lost says so, and leaves the job to the others.
    one_life(&line, &Arc::default(), &invitation).await;
    assert_eq!(line.payloads.lock().unwrap().len(), 5);
    let failures = line.failures.lock().unwrap().clone();
    assert!(
        failures.len() == 1 && failures[0].starts_with("declined by state:") && failures[0].contains("lost"),
        "{failures:?}"
    );
}

#[tokio::test]
async fn a_personal_model_is_ready_when_the_job_has_ended() {
    let (_, line, _, mut invitation) = invited(NodePolicy::default(), false);
    let (line, disk) = (Arc::new(Cut { model: line.model.clone(), ..Cut::default() }), Arc::<MemoryState>::default());
    invitation.personal = vec!["layer000.bias".into()];
    one_life(&line, &disk, &invitation).await;
    assert_eq!(*line.failures.lock().unwrap(), [""; 0]);
    let receipt = line.payloads.lock().unwrap()[0].clone();
    let job = receipt.key.job.clone();
    let deps = ParticipantDeps {
        keys: keys(),
        uplink: line,
        trainer: Arc::new(Moving),
        name: NodeName::new("node").unwrap(),
        policy: NodePolicy::default(),
        log: Arc::<Disk>::default(),
        clock: Arc::new(SystemClock::new()),
        state: disk.clone(),
    };
    let participant = Participant::new(deps, CancellationToken::new());
    participant.handle(&Down::JobEnded { job: job.clone(), status: "completed".into(), receipt: Some(receipt) });
    let ended = async {
        while !disk.kept(&job).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    assert_eq!(disk.published(&job).unwrap().own, [-0.1, 0.0, 0.0]);
}

/// Keys that a plain round never uses.
fn keys() -> Keys {
    Keys {
        signer: Arc::new(KeyInMemory::new(&[1; 32])),
        pins: Arc::<MemoryPins>::default(),
        contexts: Arc::<MemoryContexts>::default(),
        registry: Arc::new(NoRegistry),
        draws: Arc::new(Draws::new(Arc::new(SystemClock::new()))),
    }
}
