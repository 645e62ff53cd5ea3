//! The event stream: order, heartbeats, replacement, goodbye, coming back.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::{Sent, Transport};
use aivillage_base::wire::Down;

use crate::middleman::Middleman;
use crate::village::{Heard, Node, Village, config, ended, soon};

#[tokio::test]
async fn messages_arrive_in_order_after_the_welcome() {
    let village = Village::start().await;
    let mut node = village.node("a").await;
    node.welcomed().await;
    let peers = village.streams.connected();
    assert_eq!((peers.len(), peers[0].name.as_str()), (1, "a"));
    for n in 0..200 {
        assert_eq!(village.server.send(&node.id, Arc::new(ended(&format!("job-{n}")))), Sent::Queued);
    }
    for n in 0..200 {
        assert_eq!(node.next().await, ended(&format!("job-{n}")));
    }
    let stranger = aivillage_base::NodeId([3; 32]);
    assert_eq!(village.streams.send(&stranger, Arc::new(Down::Heartbeat)), Sent::NotConnected);
}

#[tokio::test]
async fn a_quiet_stream_stays_up_by_its_heartbeats() {
    let village = Village::start().await;
    let mut node = village.node("a").await;
    node.welcomed().await;
    // Ten heartbeats: five times the silence that would make the node reconnect.
    tokio::time::sleep(village.config.heartbeat * 10).await;
    village.streams.send(&node.id, Arc::new(ended("job")));
    assert_eq!(node.next().await, ended("job"), "no second welcome in between");
}

#[tokio::test]
async fn a_node_that_does_not_read_fills_its_own_queue_only() {
    let village = Village::with(aivillage_link::LinkConfig { queue: 4, ..config() }).await;
    let mut reader = village.node("reader").await;
    reader.welcomed().await;
    let deaf = village.node("deaf").await;
    let connected = async {
        while village.streams.connected().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(connected).await;
    let large = Arc::new(Down::JobEnded { job: "j".parse().unwrap(), status: "x".repeat(100_000), receipt: None });
    let filled = async {
        while village.streams.send(&deaf.id, large.clone()) != Sent::Full {
            tokio::task::yield_now().await;
        }
    };
    soon(filled).await;
    assert_eq!(village.streams.send(&reader.id, Arc::new(ended("job"))), Sent::Queued);
    assert_eq!(reader.next().await, ended("job"));
}

#[tokio::test]
async fn a_newer_stream_of_a_node_replaces_the_older_without_a_disconnect() {
    let village = Village::start().await;
    let (identity, enrolment) = village.join("a").await;
    let mut old = Node::start(enrolment.clone(), identity.clone(), village.clock());
    old.welcomed().await;
    let mut new = Node::start(enrolment, identity, village.clock());
    new.welcomed().await;
    village.streams.send(&new.id, Arc::new(ended("job")));
    assert_eq!(new.next().await, ended("job"));
    assert_eq!(village.heard().await, Heard::Connected(new.id));
    assert_eq!(village.heard().await, Heard::Connected(new.id));
    let id = new.id;
    drop((old, new));
    assert_eq!(village.heard().await, Heard::Disconnected(id));
}

#[tokio::test]
async fn stopping_sends_what_is_queued_then_goodbye_and_nodes_come_back() {
    let mut village = Village::start().await;
    let mut node = village.node("a").await;
    node.welcomed().await;
    village.streams.send(&node.id, Arc::new(ended("last")));
    village.restart().await;
    assert_eq!(node.next().await, ended("last"));
    node.welcomed().await;
    village.streams.send(&node.id, Arc::new(ended("first")));
    assert_eq!(node.next().await, ended("first"));
    assert_eq!(village.heard().await, Heard::Connected(node.id));
    assert_eq!(village.heard().await, Heard::Disconnected(node.id));
    assert_eq!(village.heard().await, Heard::Connected(node.id));
}

#[tokio::test]
async fn a_gateway_that_falls_silent_is_left_and_found_again() {
    let village = Village::start().await;
    let middleman = Middleman::before(&village).await;
    let (identity, mut enrolment) = village.join("a").await;
    enrolment.link.clone_from(&middleman.address);
    let mut node = Node::start(enrolment, identity, village.clock());
    node.welcomed().await;
    middleman.swallow(1);
    node.welcomed().await;
    village.streams.send(&node.id, Arc::new(ended("job")));
    assert_eq!(node.next().await, ended("job"));
}

#[tokio::test]
async fn a_revoked_node_that_does_not_read_is_cut_all_the_same() {
    let village = Village::start().await;
    let middleman = Middleman::before(&village).await;
    let (identity, mut enrolment) = village.join("deaf").await;
    enrolment.link.clone_from(&middleman.address);
    let mut node = Node::start(enrolment, identity, village.clock());
    node.welcomed().await;
    middleman.swallow(1);
    let large = Arc::new(Down::JobEnded { job: "j".parse().unwrap(), status: "x".repeat(100_000), receipt: None });
    let filled = async {
        while village.streams.send(&node.id, large.clone()) != Sent::Full {
            tokio::task::yield_now().await;
        }
    };
    soon(filled).await;
    village.registry.revoke(&node.id).await.unwrap();
    loop {
        if village.heard().await == Heard::Disconnected(node.id) {
            break;
        }
    }
    assert!(village.streams.connected().is_empty());
}

#[tokio::test]
async fn whatever_the_order_of_comings_and_goings_the_last_word_is_true() {
    let village = Village::start().await;
    let (identity, enrolment) = village.join("a").await;
    let mut open = Vec::new();
    for n in 0..30 {
        let mut node = Node::start(enrolment.clone(), identity.clone(), village.clock());
        node.welcomed().await;
        if n % 3 == 0 {
            open.clear();
        }
        open.push(node);
    }
    drop(open);
    let (mut comings, mut last) = (0, None);
    // Replaced streams end without a word, so there are 30 comings and as many goings as the inbox was left alone.
    while comings < 30 || last != Some(Heard::Disconnected(identity.id())) {
        let heard = village.heard().await;
        comings += usize::from(heard == Heard::Connected(identity.id()));
        last = Some(heard);
    }
    assert!(village.streams.connected().is_empty());
}
