//! Feeds without a coordinator: any sequence of events, cuts and returns.

use aivillage_training::view::JobStatus;
use proptest::prelude::*;
use tokio::sync::broadcast;

use super::*;

fn event(data: impl Into<String>) -> Happened {
    Happened { name: "status", data: data.into().into(), last: false }
}

fn status(status: JobStatus) -> JobEvent {
    JobEvent { sequence: 0, kind: EventKind::Status { status, reason: None } }
}

fn job(number: usize) -> JobId {
    JobId::new(format!("job-{number}")).unwrap()
}

/// The data of all events that a reader is told until there is nothing more at the moment.
fn read(recent: &Recent, number: &mut u64) -> Vec<Result<String, u64>> {
    match recent.after(*number) {
        Next::Nothing | Next::Over => Vec::new(),
        Next::Missed(missed, newest) => {
            *number = newest;
            vec![Err(missed)]
        }
        Next::Events(events, newest) => {
            *number = newest;
            events.iter().map(|e| Ok(e.data.to_string())).collect()
        }
    }
}

proptest! {
    #[test]
    fn every_event_is_told_once_in_order_or_counted_as_missed(
        steps in proptest::collection::vec((1usize..400, 0u64..3, prop::bool::weighted(0.1)), 1..30),
    ) {
        let (mut recent, mut number, mut happened, mut told) = (Recent::default(), 0, 0u64, 0u64);
        for (more, lag, reads) in steps {
            for _ in 0..more {
                happened += 1;
                recent.push(event(happened.to_string()));
            }
            if lag == 2 {
                recent.skip(lag);
                happened += lag;
            }
            prop_assert!(recent.events.len() <= EVENTS_MAX);
            if !reads {
                continue;
            }
            for piece in read(&recent, &mut number) {
                match piece {
                    Ok(data) => prop_assert_eq!(data, { told += 1; told.to_string() }),
                    Err(missed) => told += missed,
                }
            }
            prop_assert_eq!(told, happened);
            prop_assert_eq!(recent.after(number), Next::Nothing);
        }
    }

    #[test]
    fn places_are_read_as_they_are_written(feed in any::<[u8; 4]>(), number in any::<u64>(), junk in ".{0,20}") {
        let place = Place { feed, number };
        prop_assert_eq!(place.to_string().parse(), Ok(place));
        if let Ok(read) = junk.parse::<Place>() {
            prop_assert_eq!(read.to_string().parse(), Ok(read));
        }
    }
}

#[test]
fn large_events_are_bounded_by_their_bytes_and_the_newest_is_always_there() {
    let mut recent = Recent::default();
    for _ in 0..5 {
        recent.push(event("x".repeat(BYTES_MAX / 2)));
    }
    assert_eq!((recent.events.len(), recent.bytes), (2, BYTES_MAX));
    recent.push(event("y".repeat(BYTES_MAX * 2)));
    assert_eq!(recent.events.len(), 1);
    assert!(matches!(recent.after(5), Next::Events(events, 6) if events.len() == 1));
    assert_eq!(recent.after(4), Next::Missed(2, 6));
}

#[tokio::test]
async fn a_reader_that_comes_back_goes_on_and_the_end_is_an_end() {
    let feeds = Feeds::default();
    let (sender, receiver) = broadcast::channel(16);
    let mut reader = feeds.follow(&job(1), receiver);
    sender.send(status(JobStatus::Running)).unwrap();
    let Some(Told::Events(first)) = reader.next().await else { panic!("an event") };
    drop(reader);
    sender.send(status(JobStatus::Completed)).unwrap();
    // The sender goes with its job; what was sent before is still told.
    drop(sender);
    let mut again = feeds.resume(&job(1), first[0].0).expect("the place is known");
    let Some(Told::Events(second)) = again.next().await else { panic!("an event") };
    assert!(second[0].1.last && second[0].1.data.contains("completed"), "{second:?}");
    assert_eq!(again.next().await, None);
    // Not this job's, or of a time to come.
    assert!(feeds.resume(&job(2), first[0].0).is_none());
    assert!(feeds.resume(&job(1), Place { number: 9, ..first[0].0 }).is_none());
}

#[tokio::test]
async fn remembered_jobs_are_bounded_ended_ones_go_first_and_their_tasks_with_them() {
    let feeds = Feeds::default();
    let mut senders = Vec::new();
    let mut places = Vec::new();
    for number in 0..FEEDS_MAX {
        let (sender, receiver) = broadcast::channel(16);
        places.push(feeds.follow(&job(number), receiver).place());
        senders.push(sender);
    }
    let mut ended = feeds.resume(&job(7), places[7]).unwrap();
    senders[7].send(status(JobStatus::Cancelled)).unwrap();
    assert!(matches!(ended.next().await, Some(Told::Events(_))));
    let (sender, receiver) = broadcast::channel(16);
    feeds.follow(&job(100), receiver);
    assert!(feeds.resume(&job(7), places[7]).is_none(), "the ended one made room");
    assert!(feeds.resume(&job(0), places[0]).is_some());
    let (_other, receiver) = broadcast::channel(16);
    feeds.follow(&job(101), receiver);
    assert!(feeds.resume(&job(0), places[0]).is_none(), "no ended one is left: the oldest made room");
    assert_eq!(feeds.0.lock().unwrap().len(), FEEDS_MAX);
    // Nobody reads the forgotten one: its task lets go of the job's channel.
    while senders[0].receiver_count() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(sender.receiver_count(), 1);
}
