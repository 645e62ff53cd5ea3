//! Joining, renewing, and every way in which they are refused.

use std::time::Duration;

use aivillage_base::ports::{Uplink, UplinkError};
use aivillage_base::wire::Up;
use aivillage_link::{Identity, LinkError, Pin, Reason, Token, join, join_within, renew};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::village::{Heard, Node, PATIENCE, ShiftedClock, Village, config, soon};

fn reason(error: &LinkError) -> Option<Reason> {
    if let LinkError::Refused { reason, .. } = error { Some(*reason) } else { None }
}

#[tokio::test]
async fn a_join_whose_answer_was_lost_can_be_repeated_by_its_key_only() {
    let village = Village::start().await;
    let (token, clock) = (village.token("hospital-a").await, village.clock());
    let identity = Identity::generate().unwrap();
    let first = join(&village.address(), &token, &identity, &clock).await.unwrap();
    let again = join(&village.address(), &token, &identity, &clock).await.unwrap();
    assert_eq!((first.name.as_str(), again.name.as_str()), ("hospital-a", "hospital-a"));
    let other = Identity::generate().unwrap();
    let error = join(&village.address(), &token, &other, &clock).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::TokenUsed), "{error}");
}

#[tokio::test]
async fn a_join_waits_for_a_gateway_that_is_not_up_yet() {
    let mut village = Village::start().await;
    let (token, clock, address) = (village.token("early").await, village.clock(), village.server.address());
    village.stop().await;
    let identity = Identity::generate().unwrap();
    // At first something is there that hangs up: the first try has failed before the gateway comes.
    let nobody = TcpListener::bind(address).await.unwrap();
    let text = address.to_string();
    let joining = join_within(PATIENCE, &text, &token, &identity, &clock);
    let coming = async {
        drop(nobody.accept().await.unwrap());
        drop(nobody);
        village.restart_stopped().await;
    };
    let (joined, ()) = soon(async { tokio::join!(joining, coming) }).await;
    assert_eq!(joined.unwrap().name.as_str(), "early");
}

#[tokio::test]
async fn a_join_does_not_wait_where_waiting_cannot_help() {
    let (village, other) = (Village::start().await, Village::start().await);
    let (identity, clock, address) = (Identity::generate().unwrap(), village.clock(), village.address());
    // Far longer than the test may take: an answer in time is an answer at once.
    let patience = PATIENCE * 10;
    let within =
        async |address: &str, token: &str| soon(join_within(patience, address, token, &identity, &clock)).await;
    let unknown = Token::random(village.authority.pin()).reveal();
    assert_eq!(reason(&within(&address, &unknown).await.unwrap_err()), Some(Reason::TokenUnknown));
    let error = within(&address, &other.token("a").await).await.unwrap_err();
    assert!(matches!(error, LinkError::NotTheIssuer { .. }), "{error}");
    assert!(matches!(within(&address, "rubbish").await, Err(LinkError::BadToken(_))));
    assert!(matches!(within("host:port", &unknown).await, Err(LinkError::BadAddress(_))));
    // Nobody is there, and no patience either.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let error = soon(join_within(Duration::ZERO, &free, &unknown, &identity, &clock)).await.unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
    let error = soon(join_within(Duration::from_millis(300), &free, &unknown, &identity, &clock)).await.unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn an_enrolment_reads_back_from_json_and_holds_no_secret() {
    let village = Village::start().await;
    let (_, enrolment) = village.join("a").await;
    let text = serde_json::to_string(&enrolment).unwrap();
    assert_eq!(serde_json::from_str::<aivillage_link::Enrolment>(&text).unwrap(), enrolment);
    assert!(!text.contains("PRIVATE"));
}

#[tokio::test]
async fn wrong_expired_and_withdrawn_tokens_are_told_apart() {
    let village = Village::start().await;
    let (identity, clock) = (Identity::generate().unwrap(), village.clock());
    let address = village.address();
    let error = join(&address, "rubbish", &identity, &clock).await.unwrap_err();
    assert!(matches!(error, LinkError::BadToken(_)), "{error}");

    let unknown = Token::random(village.authority.pin()).reveal();
    let error = join(&address, &unknown, &identity, &clock).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::TokenUnknown), "{error}");

    let withdrawn = village.token("a").await;
    let id = village.registry.tokens().await.unwrap()[0].id.clone();
    village.registry.revoke_token(&id).await.unwrap();
    let error = join(&address, &withdrawn, &identity, &clock).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::TokenRevoked), "{error}");

    let late = village.token("a").await;
    village.clock.shift(601_000);
    let error = join(&address, &late, &identity, &clock).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::TokenExpired), "{error}");
    assert!(village.registry.nodes().is_empty());
}

#[tokio::test]
async fn a_gateway_that_did_not_issue_the_token_learns_nothing() {
    let (ours, other) = (Village::start().await, Village::start().await);
    let token = ours.token("a").await;
    let identity = Identity::generate().unwrap();
    let error = join(&other.address(), &token, &identity, &ours.clock()).await.unwrap_err();
    assert!(matches!(error, LinkError::NotTheIssuer { .. }), "{error}");
    assert!(error.to_string().contains("not the gateway that issued the token"));
    let forged = Token::random(Pin([9; 32])).reveal();
    let error = join(&ours.address(), &forged, &identity, &ours.clock()).await.unwrap_err();
    assert!(matches!(error, LinkError::NotTheIssuer { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_clock_is_named_as_the_cause() {
    let village = Village::start().await;
    let token = village.token("a").await;
    let identity = Identity::generate().unwrap();
    for days in [-400i64, 400] {
        let wrong = ShiftedClock::default();
        wrong.shift(days * 86_400_000);
        let clock: std::sync::Arc<dyn aivillage_base::time::Clock> = std::sync::Arc::new(wrong);
        let error = join(&village.address(), &token, &identity, &clock).await.unwrap_err();
        assert!(matches!(error, LinkError::ClockSkew { .. }), "{days}: {error}");
    }
}

#[tokio::test]
async fn nobody_there_and_somebody_else_there_are_told_apart() {
    let village = Village::start().await;
    let (token, clock) = (village.token("a").await, village.clock());
    let identity = Identity::generate().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let http = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut some = [0u8; 64];
        let _ = stream.read(&mut some).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        stream
    };
    let (joined, _stream) = tokio::join!(join(&address, &token, &identity, &clock), http);
    let error = joined.unwrap_err();
    assert!(matches!(error, LinkError::NotALinkPort { .. }), "{error}");
    drop(listener);
    let error = join(&address, &token, &identity, &clock).await.unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
    let error = join("http://127.0.0.1:8000", &token, &identity, &clock).await.unwrap_err();
    assert!(matches!(error, LinkError::BadAddress(_)), "{error}");
}

#[tokio::test]
async fn a_certificate_that_ran_out_while_the_laptop_slept_is_renewed_by_the_key() {
    let village = Village::start().await;
    let (identity, enrolment) = village.join("a").await;
    village.clock.shift(3 * 86_400_000);
    let mut node = Node::start(enrolment.clone(), identity, village.clock());
    node.welcomed().await;
    node.link.send(&Up::Leave).await.unwrap();
    let kept = node.kept.lock().unwrap().clone();
    assert_eq!(kept.len(), 1, "renewed once, and kept");
    assert!(kept[0].not_after_ms > enrolment.not_after_ms);
    assert_eq!(node.link.enrolment(), kept[0]);
}

#[tokio::test]
async fn certificates_renew_before_they_run_out_and_the_link_stays_up() {
    let life = Duration::from_secs(3);
    let village = Village::with(aivillage_link::LinkConfig { certificate_life: life, ..config() }).await;
    let mut node = village.node("a").await;
    node.welcomed().await;
    soon(async {
        while node.kept.lock().unwrap().len() < 2 {
            node.link.send(&Up::Answer { key: key(), declined: None }).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let kept = node.kept.lock().unwrap().clone();
    assert!(kept[1].issued_at_ms < kept[0].not_after_ms, "in time");
    // The stream ends with the certificate it was opened with, and comes back at once.
    node.welcomed().await;
}

#[tokio::test]
async fn a_node_whose_clock_is_slow_renews_when_the_gateway_says_so() {
    let life = Duration::from_secs(60);
    let village = Village::with(aivillage_link::LinkConfig { certificate_life: life, ..config() }).await;
    let (identity, enrolment) = village.join("a").await;
    let slow: std::sync::Arc<dyn aivillage_base::time::Clock> = std::sync::Arc::new(ShiftedClock::default());
    village.clock.shift(120_000);
    let mut node = Node::start(enrolment, identity, slow);
    node.welcomed().await;
    assert_eq!(node.kept.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_revoked_node_loses_its_stream_and_every_call_at_once() {
    let village = Village::start().await;
    let (identity, enrolment) = village.join("a").await;
    let mut node = Node::start(enrolment.clone(), identity.clone(), village.clock());
    node.welcomed().await;
    assert_eq!(village.heard().await, Heard::Connected(node.id));
    node.link.send(&Up::Answer { key: key(), declined: None }).await.unwrap();
    village.registry.revoke(&node.id).await.unwrap();
    let refused = node.link.send(&Up::Answer { key: key(), declined: None }).await;
    assert!(matches!(refused, Err(UplinkError::Refused(_))), "{refused:?}");
    let error = node.ended().await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::Revoked), "{error}");
    assert!(matches!(village.heard().await, Heard::Message(_)));
    assert_eq!(village.heard().await, Heard::Disconnected(node.id));
    let error = renew(&enrolment, &identity, &village.clock()).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::Revoked), "{error}");
}

#[tokio::test]
async fn a_node_that_leaves_is_heard_once_and_never_again() {
    let village = Village::start().await;
    let mut node = village.node("a").await;
    node.welcomed().await;
    node.link.send(&Up::Leave).await.unwrap();
    assert_eq!(village.heard_said().await, Heard::Message(Up::Leave));
    let error = node.ended().await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::Revoked), "{error}");
}

fn key() -> aivillage_base::wire::RoundKey {
    aivillage_base::wire::RoundKey { job: "job".parse().unwrap(), round: 1, attempt: 1 }
}
