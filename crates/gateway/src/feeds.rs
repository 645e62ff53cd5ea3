//! What has happened lately to the jobs that somebody watches, so that a stream that broke goes on where it was.
//!
//! ```text
//! training ──> pump, one task a watched job ──> recent events, numbered and bounded ──> any number of streams, by cursor
//! ```
//!
//! Promises: a stream that comes back before its place is forgotten gets every event after it once and in order; one that
//! is behind by more learns how many it missed; jobs and events that are remembered are bounded. A feed begins with a
//! job's first watcher and knows nothing of before, nor does it outlive the process: [`Place`] tells feeds apart. Must not
//! know: HTTP.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use aivillage_base::JobId;
use aivillage_training::view::{EventKind, JobEvent};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::dto::training::EventBody;

/// Jobs remembered. Beyond, the one whose feed is the oldest is forgotten, ended ones first: its streams go on, but one of
/// them that breaks begins with the state again.
const FEEDS_MAX: usize = 32;
/// Events remembered of a job: minutes of a lively one, while browsers come back after some seconds.
const EVENTS_MAX: usize = 1024;
/// Bytes remembered of a job: the end of a round with a thousand members takes about 300 KB.
const BYTES_MAX: usize = 1 << 20;

/// An event as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Happened {
    /// Kind of the event.
    pub(crate) name: &'static str,
    /// JSON.
    pub(crate) data: Arc<str>,
    /// The job has ended with it.
    pub(crate) last: bool,
}

impl From<EventKind> for Happened {
    fn from(kind: EventKind) -> Self {
        let last = matches!(&kind, EventKind::Status { status, .. } if status.is_terminal());
        let (name, body) = EventBody::named(kind);
        let data = serde_json::to_string(&body).expect("invariant: strings and numbers serialise");
        Self { name, data: data.into(), last }
    }
}

/// The place of an event: its feed and its number there, `<8 hex>-<number>`; 0 is the place before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    feed: [u8; 4],
    number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", hex::encode(self.feed), self.number)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (feed, number) = text.split_once('-').ok_or(())?;
        let mut place = Self { feed: [0; 4], number: number.parse().map_err(|_| ())? };
        hex::decode_to_slice(feed, &mut place.feed).map_err(|_| ())?;
        Ok(place)
    }
}

/// What a stream reads next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Events, oldest first; the last of them has this number.
    Events(Vec<Happened>, u64),
    /// So many are not remembered any more or skipped with them; on after this number.
    Missed(u64, u64),
    /// Nothing yet.
    Nothing,
    /// Nothing ever again.
    Over,
}

#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<Happened>,
    bytes: usize,
    /// Number of the newest event; they count from 1.
    newest: u64,
    over: bool,
}

impl Recent {
    fn push(&mut self, event: Happened) {
        self.newest += 1;
        self.over |= event.last;
        self.bytes += event.data.len();
        self.events.push_back(event);
        while self.events.len() > EVENTS_MAX || (self.bytes > BYTES_MAX && self.events.len() > 1) {
            let oldest = self.events.pop_front();
            self.bytes -= oldest.map_or(0, |event| event.data.len());
        }
    }

    /// The feed itself has missed events: nobody can go on from before them.
    fn skip(&mut self, missed: u64) {
        self.events.clear();
        self.bytes = 0;
        self.newest += missed;
    }

    fn after(&self, number: u64) -> Next {
        let behind = self.newest.saturating_sub(number);
        match usize::try_from(behind) {
            Ok(0) if self.over => Next::Over,
            Ok(0) => Next::Nothing,
            Ok(n) if n <= self.events.len() => {
                Next::Events(self.events.iter().skip(self.events.len() - n).cloned().collect(), self.newest)
            }
            Ok(_) | Err(_) => Next::Missed(behind, self.newest),
        }
    }
}

/// The recent events of one job.
#[derive(Debug)]
struct Feed {
    tag: [u8; 4],
    recent: watch::Sender<Recent>,
    /// Ends the pump when nobody holds the feed any more.
    _pump: DropGuard,
}

impl Feed {
    fn start(receiver: Receiver<JobEvent>) -> Arc<Self> {
        let mut tag = [0; 4];
        aivillage_base::rng::os_bytes(&mut tag);
        let stop = CancellationToken::new();
        let pump = stop.clone().drop_guard();
        let feed = Arc::new(Self { tag, recent: watch::Sender::new(Recent::default()), _pump: pump });
        tokio::spawn(fill(Arc::downgrade(&feed), receiver, stop));
        feed
    }

    fn is_over(&self) -> bool {
        self.recent.borrow().over
    }
}

/// Moves a job's events into its feed until the job ends or nobody is left who would read them.
async fn fill(feed: Weak<Feed>, mut receiver: Receiver<JobEvent>, stop: CancellationToken) {
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = receiver.recv() => event,
        };
        let Some(feed) = feed.upgrade() else { return };
        feed.recent.send_modify(|recent| match event {
            Ok(event) => recent.push(event.kind.into()),
            Err(RecvError::Lagged(missed)) => recent.skip(missed),
            Err(RecvError::Closed) => recent.over = true,
        });
        if feed.is_over() {
            return;
        }
    }
}

/// The feeds of the jobs that somebody watches or has watched, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Feeds(Mutex<VecDeque<(JobId, Arc<Feed>)>>);

impl Feeds {
    /// A reader from `place` on, if the feed it belongs to is still remembered.
    pub(crate) fn resume(&self, job: &JobId, place: Place) -> Option<Reader> {
        let feeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, feed) = feeds.iter().find(|(id, feed)| id == job && feed.tag == place.feed)?;
        let known = place.number <= feed.recent.borrow().newest;
        known.then(|| Reader::new(feed.clone(), place.number))
    }

    /// A reader of what happens from now on; `receiver` is used if the job has no feed that runs.
    pub(crate) fn follow(&self, job: &JobId, receiver: Receiver<JobEvent>) -> Reader {
        let mut feeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = feeds.iter().position(|(id, _)| id == job);
        if let Some(running) = known.and_then(|at| feeds.get(at)).filter(|(_, feed)| !feed.is_over()) {
            return Reader::at_newest(running.1.clone());
        }
        if let Some(over) = known {
            feeds.remove(over);
        }
        if feeds.len() >= FEEDS_MAX {
            let ended = feeds.iter().position(|(_, feed)| feed.is_over());
            feeds.remove(ended.unwrap_or(0));
        }
        let feed = Feed::start(receiver);
        feeds.push_back((job.clone(), feed.clone()));
        Reader::at_newest(feed)
    }
}

/// What a reader is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Events with their places, oldest first.
    Events(Vec<(Place, Happened)>),
    /// So many events were missed; the reader goes on after them.
    Missed(u64),
}

/// A cursor into a feed.
#[derive(Debug)]
pub(crate) struct Reader {
    feed: Arc<Feed>,
    recent: watch::Receiver<Recent>,
    number: u64,
}

impl Reader {
    fn new(feed: Arc<Feed>, number: u64) -> Self {
        let recent = feed.recent.subscribe();
        Self { feed, recent, number }
    }

    fn at_newest(feed: Arc<Feed>) -> Self {
        let newest = feed.recent.borrow().newest;
        Self::new(feed, newest)
    }

    /// Where it stands: after the event of this place.
    pub(crate) fn place(&self) -> Place {
        Place { feed: self.feed.tag, number: self.number }
    }

    /// Waits for what comes next; None when nothing will.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        loop {
            let next = self.recent.borrow_and_update().after(self.number);
            match next {
                Next::Over => return None,
                Next::Nothing => self.recent.changed().await.ok()?,
                Next::Missed(missed, number) => {
                    self.number = number;
                    return Some(Told::Missed(missed));
                }
                Next::Events(events, newest) => {
                    self.number = newest;
                    let first = newest - events.len() as u64 + 1;
                    let places = (first..).map(|number| Place { feed: self.feed.tag, number });
                    return Some(Told::Events(places.zip(events).collect()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
