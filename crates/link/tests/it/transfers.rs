//! Large updates and models over lines that break: what travels again, what is kept, and when it is let go.

use std::time::Duration;

use aivillage_base::ports::{Blobs, Payload, Uplink, UplinkError};
use aivillage_base::wire::{UpdateHeader, UpdateReply};
use aivillage_link::LinkConfig;
use bytes::Bytes;

use crate::calls::header;
use crate::middleman::Middleman;
use crate::village::{Heard, Node, Village, config, soon};

const MB: usize = 1 << 20;

/// Bytes that repeat with a period that no block has.
fn noise(length: usize) -> Bytes {
    let period: Vec<u8> = (0..65_521u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    let mut bytes = period.repeat(length.div_ceil(period.len()));
    bytes.truncate(length);
    bytes.into()
}

fn impatient() -> LinkConfig {
    LinkConfig { upload_check: Duration::from_millis(20), ..config() }
}

async fn node_behind(middleman: &Middleman, village: &Village) -> Node {
    let (identity, mut enrolment) = village.join("a").await;
    enrolment.link.clone_from(&middleman.address);
    Node::start(enrolment, identity, village.clock())
}

/// Polls until it holds, but never for ever.
async fn until<F: Future<Output = bool>>(holds: impl Fn() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(wait).await;
}

/// Sends more than a MiB of an update, and then the sender is gone.
async fn begin(middleman: &Middleman, node: &Node, header: &UpdateHeader, payload: &Bytes) {
    let sent = middleman.up();
    let (link, header, payload) = (node.link.clone(), header.clone(), payload.clone());
    let sending = tokio::spawn(async move { link.upload(&header, payload).await });
    until(|| async { middleman.up() > sent + 2 * MB as u64 }).await;
    sending.abort();
    assert!(sending.await.is_err(), "it was still under way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_of_400_mb_that_is_cut_five_times_sends_no_range_twice() {
    let village = Village::start().await;
    let middleman = Middleman::before(&village).await;
    let node = node_behind(&middleman, &village).await;
    let payload = noise(400_000_000);
    let front = header(&payload);
    middleman.cut([70_000_001, 40_000_000, 5_000_000, 90_000_000, 60_000_000]);
    let sending = node.link.upload(&front, payload.clone());
    let reply = tokio::time::timeout(Duration::from_secs(60), sending).await.expect("in time").unwrap();
    assert_eq!((reply, middleman.cuts_left()), (UpdateReply::Accepted, 0));
    assert_eq!(village.heard_said().await, Heard::Update(front.clone(), Payload::Stored(front.payload)));
    // Beside the payload: 22 bytes a record of 16 KiB, heads, handshakes, and at each cut less than a record.
    let extra = middleman.up() - front.payload.bytes;
    assert!(extra < 400_000_000 / 700 + 6 * 40_000, "{extra} bytes more than the update has");
    assert_eq!(village.blobs.read(&front.payload.digest).await.unwrap(), Some(payload));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_whose_line_is_cut_five_times_comes_down_once() {
    let village = Village::start().await;
    let middleman = Middleman::before(&village).await;
    let node = node_behind(&middleman, &village).await;
    let content = noise(50_000_000);
    let blob = village.blob(content.clone()).await;
    middleman.cut([7_000_001, 4_000_000, 500_000, 9_000_000, 6_000_000]);
    assert!(soon(node.link.fetch(&blob)).await.unwrap() == content);
    assert_eq!(middleman.cuts_left(), 0);
    let extra = middleman.down() - blob.bytes;
    assert!(extra < 50_000_000 / 700 + 6 * 100_000, "{extra} bytes more than the model has");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_brings_nothing_on_ends_the_call() {
    let village = Village::start().await;
    let middleman = Middleman::before(&village).await;
    let node = node_behind(&middleman, &village).await;
    let payload = noise(2 * MB);
    // Every connection breaks before the first byte of the body.
    middleman.cut([10; 1000]);
    let reply = soon(node.link.upload(&header(&payload), payload)).await;
    assert!(matches!(reply, Err(UplinkError::Unreachable(_))), "{reply:?}");
    assert!(middleman.cuts_left() > 900);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_goes_on_where_it_was() {
    let village = Village::with(impatient()).await;
    let middleman = Middleman::before(&village).await;
    let (identity, mut enrolment) = village.join("a").await;
    enrolment.link.clone_from(&middleman.address);
    let payload = noise(64 * MB);
    let mut front = header(&payload);
    let node = Node::start(enrolment.clone(), identity.clone(), village.clock());
    begin(&middleman, &node, &front, &payload).await;
    drop(node);
    let again = Node::start(enrolment, identity, village.clock());
    // It trained once more and measured another time: the bytes are the same.
    front.metrics.train_ms += 1;
    assert_eq!(soon(again.link.upload(&front, payload)).await.unwrap(), UpdateReply::Accepted);
    assert_eq!(village.heard_said().await, Heard::Update(front.clone(), Payload::Stored(front.payload)));
    // What the first had handed to its kernel and the gateway did not see is sent again.
    assert!(middleman.up() < front.payload.bytes + 8 * MB as u64, "{} bytes went up", middleman.up());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_whose_round_ends_meanwhile_stops_early_and_leaves_nothing() {
    let village = Village::with(impatient()).await;
    let middleman = Middleman::before(&village).await;
    let node = node_behind(&middleman, &village).await;
    let room = village.blobs.available().await.unwrap();
    let payload = noise(400 * MB);
    let late = UpdateReply::Refused { reason: "late".to_owned(), detail: "over".to_owned() };
    let front = header(&payload);
    let (sending, ending) = tokio::join!(soon(node.link.upload(&front, payload)), async {
        until(|| async { middleman.up() > MB as u64 }).await;
        *village.ear.offers.lock().unwrap() = Some(late.clone());
        middleman.up()
    });
    assert_eq!(sending.unwrap(), late);
    assert!(middleman.up() < 300 * MB as u64, "{} bytes went up, {ending} when it ended", middleman.up());
    until(|| async { village.blobs.available().await.unwrap() == room }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_goes_on_with_is_let_go_when_it_is_unwanted_or_old() {
    for (kept, refuse) in [(Duration::from_secs(600), true), (Duration::from_millis(300), false)] {
        let village = Village::with(LinkConfig { upload_kept: kept, ..impatient() }).await;
        let middleman = Middleman::before(&village).await;
        let node = node_behind(&middleman, &village).await;
        let room = village.blobs.available().await.unwrap();
        let payload = noise(64 * MB);
        begin(&middleman, &node, &header(&payload), &payload).await;
        if refuse {
            until(|| async { village.blobs.available().await.unwrap() < room }).await;
            let late = UpdateReply::Refused { reason: "late".to_owned(), detail: "over".to_owned() };
            *village.ear.offers.lock().unwrap() = Some(late);
        }
        until(|| async { village.blobs.available().await.unwrap() == room }).await;
        assert!(village.blobs.list().await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_one_update_a_job_and_four_in_all() {
    let village = Village::with(LinkConfig { upload_check: Duration::from_secs(600), ..config() }).await;
    let middleman = Middleman::before(&village).await;
    let node = node_behind(&middleman, &village).await;
    let room = village.blobs.available().await.unwrap();
    let size = |n: usize| 64 * MB + n;
    for n in 0..3 {
        let payload = noise(size(n));
        begin(&middleman, &node, &header(&payload), &payload).await;
        let held = room - size(n) as u64;
        until(|| async { village.blobs.available().await.unwrap() == held }).await;
    }
    for n in 0..6 {
        let payload = noise(64 * MB);
        let mut front = header(&payload);
        front.key.job = format!("job_other_{n}").parse().unwrap();
        begin(&middleman, &node, &front, &payload).await;
    }
    let held = room - 4 * 64 * MB as u64;
    until(|| async { village.blobs.available().await.unwrap() == held }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_place_to_receive_a_node_is_asked_to_come_back() {
    let village = Village::with(LinkConfig { uploads: 1, body_pause: Duration::from_secs(5), ..impatient() }).await;
    let middleman = Middleman::before(&village).await;
    let slow = node_behind(&middleman, &village).await;
    let quick = village.node("quick").await;
    let payload = noise(64 * MB);
    let front = header(&payload);
    let (sent, link) = (middleman.up(), slow.link.clone());
    let (his_front, his_payload) = (front.clone(), payload.clone());
    let sending = tokio::spawn(async move { link.upload(&his_front, his_payload).await });
    until(|| async { middleman.up() > sent + MB as u64 }).await;
    // His line falls silent, and he holds the only place.
    middleman.swallow(u64::MAX);
    let reply = soon(quick.link.upload(&front, payload.clone())).await.unwrap();
    assert!(matches!(reply, UpdateReply::Retry { after_ms: 1.. }), "{reply:?}");
    sending.abort();
    // The gateway notices the silence, and the place is free.
    let accepted = || async {
        let reply = quick.link.upload(&front, payload.clone()).await.unwrap();
        reply == UpdateReply::Accepted
    };
    until(accepted).await;
}
