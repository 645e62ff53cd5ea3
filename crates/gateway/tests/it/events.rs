//! A job's events: what a stream tells, and what it tells to a client that comes back.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::Records;
use aivillage_base::time::SystemClock;
use aivillage_gateway::GatewayConfig;
use aivillage_storage::MemoryRecords;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::client::{Ask, PATIENCE};
use crate::village::{Plan, Village};

const CREATE: &str = "/v1/federated/training/create";
const EVENTS: &str = "/v1/federated/training/j/events";

/// An event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) data: Value,
}

/// The whole events in a piece of an event stream.
pub(crate) fn parse(text: &str) -> Vec<Event> {
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
    whole
        .split("\n\n")
        .filter_map(|block| {
            let field = |name: &str| block.lines().find_map(|l| l.strip_prefix(name).map(str::trim));
            let name = field("event:")?.to_owned();
            let data = serde_json::from_str(field("data:")?).unwrap();
            Some(Event { id: field("id:").unwrap_or("").to_owned(), name, data })
        })
        .collect()
}

/// Reads a stream until its events are enough; the rest of it is not read.
async fn until(mut body: Incoming, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let mut text = String::new();
    loop {
        let events = parse(&text);
        if enough(&events) {
            return events;
        }
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("an event in time");
        let frame = frame.unwrap_or_else(|| panic!("the stream has ended: {events:?}")).unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
}

async fn create(village: &Village) {
    let job = json!({"job_name": "x", "job_id": "j", "model_architecture": "logistic_regression",
        "total_rounds": 3, "min_participants": 1, "privacy_techniques": [], "strategy": {"name": "fedavg"}});
    village.post(CREATE).json(&job).send().await.ok();
}

/// Opens the stream, as a browser that has seen `last` if it says so.
fn stream(village: &Village, last: &str) -> Ask {
    let ask = village.get(EVENTS);
    if last.is_empty() { ask } else { ask.header("last-event-id", last) }
}

/// The events of a stream that ends.
async fn all(village: &Village, last: &str) -> Vec<Event> {
    parse(&stream(village, last).send().await.text())
}

async fn cancel(village: &Village) {
    village.post("/v1/federated/training/j/cancel").send().await.ok();
}

#[tokio::test]
async fn events_begin_with_the_state_follow_what_happens_and_end_with_the_job() {
    let village = Village::start().await;
    create(&village).await;
    let answer = stream(&village, "").open().await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.into_body();
    let first = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
    let mut text = String::from_utf8(first.into_data().unwrap().to_vec()).unwrap();
    assert_eq!(parse(&text)[0].name, "state");
    assert_eq!(parse(&text)[0].data["job_id"], "j");
    cancel(&village).await;
    let rest = tokio::time::timeout(PATIENCE, body.collect()).await.expect("the stream ends").unwrap();
    text.push_str(std::str::from_utf8(&rest.to_bytes()).unwrap());
    let events = parse(&text);
    let last = events.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["status"]), ("status", &json!("cancelled")), "{events:?}");
    // Of an ended job there is only the state.
    let late = all(&village, "").await;
    assert_eq!((late.len(), late[0].name.as_str()), (1, "state"), "{late:?}");
}

#[tokio::test]
async fn a_stream_that_is_cut_again_and_again_tells_what_an_unbroken_one_tells() {
    let village = Village::start().await;
    create(&village).await;
    let unbroken = stream(&village, "").open().await.into_body();
    let first = until(stream(&village, "").open().await.into_body(), |events| !events.is_empty()).await;
    let worked = async {
        village.node.arrive().await;
        village.node.work().await;
    };
    let watched = async {
        let mut told = first.clone();
        while told.last().is_some_and(|last| last.id != "end") {
            // Each stream is cut after one event; what was on its way with it must come again.
            let last = told.last().unwrap().id.clone();
            let more = until(stream(&village, &last).open().await.into_body(), |events| !events.is_empty()).await;
            told.push(more[0].clone());
        }
        told
    };
    let ((), told) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(worked, watched) }).await.expect("the job ends");
    let whole = until(unbroken, |events| events.last().is_some_and(|last| last.id == "end")).await;
    assert!(whole.len() > 8 && whole.iter().filter(|e| e.name == "round_ended").count() == 3, "{whole:?}");
    let since = whole.iter().position(|e| e.id == told[0].id).unwrap();
    assert_eq!(told[1..], whole[since + 1..]);
}

#[tokio::test]
async fn what_happened_while_nobody_watched_is_told_on_return() {
    let village = Village::start().await;
    create(&village).await;
    let before = until(stream(&village, "").open().await.into_body(), |events| !events.is_empty()).await;
    cancel(&village).await;
    let missed = all(&village, &before.last().unwrap().id).await;
    let last = missed.last().unwrap();
    assert_eq!((last.name.as_str(), last.id.as_str()), ("status", "end"), "{missed:?}");
    assert!(missed.iter().all(|e| e.name != "state"), "{missed:?}");
}

#[tokio::test]
async fn whoever_knows_the_end_is_told_204_and_whoever_does_not_gets_it_once_more() {
    let records: Arc<dyn Records> = Arc::new(MemoryRecords::new(Arc::new(SystemClock::new())));
    let plan = || Plan { records: Some(records.clone()), ..Plan::default() };
    let village = Village::planned(plan()).await;
    create(&village).await;
    // The end of a job that goes on is no place.
    let begun = until(stream(&village, "end").open().await.into_body(), |events| !events.is_empty()).await;
    assert_eq!(begun[0].name, "state");
    cancel(&village).await;
    let done = async |village: &Village| {
        let answer = stream(village, "end").send().await;
        assert_eq!((answer.status.as_u16(), answer.bytes.len()), (204, 0));
    };
    done(&village).await;
    // Another process does not know the places of the first, but it knows the end.
    let again = Village::planned(plan()).await;
    done(&again).await;
    for unknown in [begun[0].id.as_str(), "", "7", "00000000-3", "zz", "END"] {
        let events = all(&again, unknown).await;
        assert_eq!(events.len(), 1, "{unknown}: {events:?}");
        assert_eq!((events[0].name.as_str(), events[0].id.as_str()), ("state", "end"), "{unknown}");
        assert_eq!(events[0].data["status"], "cancelled");
    }
    again.get("/v1/federated/training/nobody/events").header("last-event-id", "end").send().await.problem(404);
}

#[tokio::test]
async fn a_silent_event_stream_shows_that_it_lives() {
    let config = GatewayConfig { sse_heartbeat: Duration::from_millis(20), ..GatewayConfig::default() };
    let village = Village::configured(config).await;
    create(&village).await;
    let mut body = stream(&village, "").open().await.into_body();
    let mut text = String::new();
    while !text.contains(": heartbeat") {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
}
