//! Messages, updates and blobs, with their refusals.

use aivillage_base::Digest;
use aivillage_base::ports::{Blobs, INLINE_MAX, Payload, Uplink, UplinkError};
use aivillage_base::wire::{BlobRef, LocalMetrics, PredictOutcome, RoundKey, Up, UpdateHeader, UpdateReply};
use aivillage_link::{Chain, LinkError, MESSAGE_MAX, Reason};
use bytes::Bytes;

use crate::middleman::Middleman;
use crate::village::{Heard, Node, Village, soon};

pub(crate) fn header(payload: &Bytes) -> UpdateHeader {
    let key = RoundKey { job: "job_1".parse().unwrap(), round: 3, attempt: 1 };
    let payload = BlobRef { digest: Digest::of(payload), bytes: payload.len() as u64 };
    let metrics = LocalMetrics { loss: 0.5, accuracy: Some(0.75), train_ms: 12 };
    UpdateHeader { clipped: 2, ..UpdateHeader::new(key, payload, 17, metrics) }
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect::<Vec<_>>().into()
}

fn prediction(values: usize) -> Up {
    Up::Prediction {
        request: aivillage_base::RequestId::from_bits(7),
        attempt: 1,
        outcome: PredictOutcome::Done { outputs: vec![vec![0.125; values]], compute_us: 3 },
    }
}

#[tokio::test]
async fn messages_small_and_large_arrive_as_they_were_sent() {
    let village = Village::start().await;
    let node = village.node("a").await;
    for message in [prediction(10), prediction(200_000)] {
        node.link.send(&message).await.unwrap();
        assert_eq!(village.heard_said().await, Heard::Message(message));
    }
}

#[tokio::test]
async fn a_message_beyond_the_bound_is_refused_and_the_next_one_works() {
    let village = Village::start().await;
    let node = village.node("a").await;
    let refused = node.link.send(&prediction(MESSAGE_MAX / 5)).await;
    assert!(matches!(refused, Err(UplinkError::Refused(_))), "{refused:?}");
    node.link.send(&prediction(1)).await.unwrap();
    assert_eq!(village.heard_said().await, Heard::Message(prediction(1)));
}

#[tokio::test]
async fn a_busy_inbox_asks_to_come_back_later() {
    let village = Village::start().await;
    let node = village.node("a").await;
    *village.ear.busy.lock().unwrap() = true;
    let busy = node.link.send(&prediction(1)).await;
    assert!(matches!(busy, Err(UplinkError::Busy { after_ms: 1.. })), "{busy:?}");
}

#[tokio::test]
async fn small_updates_come_inline_and_large_ones_are_stored_first() {
    let village = Village::start().await;
    let node = village.node("a").await;
    for length in [0, 4, INLINE_MAX, INLINE_MAX + 4, 3_000_000] {
        let payload = bytes(length);
        let header = header(&payload);
        let reply = soon(node.link.upload(&header, payload.clone())).await.unwrap();
        assert_eq!(reply, UpdateReply::Accepted);
        let Heard::Update(got, arrived) = village.heard_said().await else { panic!("an update") };
        assert_eq!(got, header);
        if length <= INLINE_MAX {
            assert_eq!(arrived, Payload::Inline(payload));
        } else {
            assert_eq!(arrived, Payload::Stored(header.payload));
            let stored = village.blobs.read(&header.payload.digest).await.unwrap();
            assert_eq!(stored, Some(payload));
        }
    }
}

#[tokio::test]
async fn an_update_whose_bytes_are_not_what_it_claims_reaches_nobody() {
    let village = Village::start().await;
    let node = village.node("a").await;
    for length in [1000, 100_000] {
        let payload = bytes(length);
        let mut wrong_digest = header(&payload);
        wrong_digest.payload.digest = Digest([1; 32]);
        let mut too_short = header(&payload);
        too_short.payload.bytes += 1;
        let mut too_long = header(&payload);
        too_long.payload.bytes -= 1;
        for header in [wrong_digest, too_short, too_long] {
            let reply = soon(node.link.upload(&header, payload.clone())).await.unwrap();
            let UpdateReply::Refused { reason, .. } = reply else { panic!("{reply:?}") };
            assert_eq!(reason, "digest_mismatch");
        }
    }
    assert!(village.blobs.list().await.unwrap().is_empty());
    node.link.send(&prediction(1)).await.unwrap();
    assert_eq!(village.heard_said().await, Heard::Message(prediction(1)), "no update before it");
}

#[tokio::test]
async fn an_unwanted_update_is_refused_before_its_bytes_are_sent() {
    let village = Village::start().await;
    let middleman = Middleman::before(&village).await;
    let (identity, mut enrolment) = village.join("a").await;
    enrolment.link.clone_from(&middleman.address);
    let node = Node::start(enrolment, identity, village.clock());
    let payload = bytes(1_000_000);
    let large = header(&payload);
    let late = UpdateReply::Refused { reason: "late".to_owned(), detail: "over".to_owned() };
    *village.ear.offers.lock().unwrap() = Some(late.clone());
    assert_eq!(soon(node.link.upload(&large, payload.clone())).await.unwrap(), late);
    assert!(middleman.up() < 100_000, "{} bytes went up", middleman.up());
    let small = bytes(1000);
    assert_eq!(soon(node.link.upload(&header(&small), small)).await.unwrap(), late);
    *village.ear.offers.lock().unwrap() = None;
    assert_eq!(soon(node.link.upload(&large, payload)).await.unwrap(), UpdateReply::Accepted);
    assert!(middleman.up() > 1_000_000, "and now they did");
    assert!(matches!(village.heard_said().await, Heard::Update(got, _) if got == large));
}

#[tokio::test]
async fn blobs_are_fetched_whole_and_verified_if_the_inbox_allows() {
    let village = Village::start().await;
    let node = village.node("a").await;
    for length in [0, 1, 256 * 1024, 1_000_003] {
        let content = bytes(length);
        let blob = village.blob(content.clone()).await;
        assert_eq!(soon(node.link.fetch(&blob)).await.unwrap(), content);
    }
    let content = bytes(500);
    let blob = village.blob(content).await;
    let mislabelled = BlobRef { bytes: 499, ..blob };
    assert!(soon(node.link.fetch(&mislabelled)).await.is_err());
    village.ear.fetchable.lock().unwrap().clear();
    let refused = node.link.fetch(&blob).await;
    assert!(matches!(refused, Err(UplinkError::Refused(_))), "{refused:?}");
    let absent = BlobRef { digest: Digest([5; 32]), bytes: 3 };
    village.ear.fetchable.lock().unwrap().push(absent.digest);
    let refused = node.link.fetch(&absent).await;
    assert!(matches!(refused, Err(UplinkError::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn calls_work_again_after_the_gateway_closed_the_kept_connections() {
    let mut village = Village::start().await;
    let node = village.node("a").await;
    for n in 1..=3 {
        node.link.send(&prediction(n)).await.unwrap();
        assert_eq!(village.heard_said().await, Heard::Message(prediction(n)));
        village.restart().await;
    }
    village.stop().await;
    let gone = node.link.send(&prediction(1)).await;
    assert!(matches!(gone, Err(UplinkError::Unreachable(_))), "{gone:?}");
}

#[tokio::test]
async fn many_calls_at_once_all_arrive() {
    let village = Village::start().await;
    let node = village.node("a").await;
    let calls = (0..50).map(|n| {
        let link = node.link.clone();
        async move { link.send(&prediction(n)).await }
    });
    let all = soon(futures_util::future::join_all(calls)).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    for _ in 0..50 {
        assert!(matches!(village.heard_said().await, Heard::Message(_)));
    }
}

#[tokio::test]
async fn a_node_reads_the_chain_of_enrolments_part_by_part_and_it_holds() {
    let village = Village::start().await;
    let node = village.node("a").await;
    for n in 0..120 {
        village.join(&format!("n{n}")).await;
    }
    village.registry.revoke(&node.id).await.unwrap();
    let reader = village.node("reader").await;
    let mut chain = Chain::default();
    let mut parts = 0;
    loop {
        let entries = reader.link.registry(chain.head().sequence).await.unwrap();
        if entries.is_empty() {
            break;
        }
        parts += 1;
        entries.into_iter().for_each(|entry| chain.push(entry).unwrap());
    }
    assert!(parts > 1, "one answer holds a part");
    assert_eq!((chain.head(), chain.head().sequence), (village.registry.head(), 123));
    let refused = node.link.registry(0).await;
    assert!(matches!(refused, Err(LinkError::Refused { reason: Reason::Revoked, .. })), "{refused:?}");
}
