//! A node's view of the registry, against gateways that tell the truth and others.

use std::sync::atomic::{AtomicU32, Ordering};

use aivillage_base::wire::Peer;
use aivillage_base::wire::secure::Hex;
use aivillage_base::{NodeId, NodeName};
use aivillage_link::Event;

use super::*;

fn name(key: u8) -> NodeName {
    NodeName::new(format!("n{key}")).unwrap()
}

/// A gateway that shows these entries; None = it knows no such path. It cannot be reached so many times.
#[derive(Debug)]
struct Shows(Mutex<Option<Chain>>, AtomicU32);

#[async_trait]
impl Source for Shows {
    async fn entries(&self, after: u64) -> Result<Vec<Entry>, LinkError> {
        if self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(LinkError::Unreachable { address: "here".into(), cause: "it restarts".into() });
        }
        let chain = self.0.lock().unwrap().clone();
        let none = LinkError::Refused { reason: Reason::NotFound, detail: String::new() };
        // Two at a time: reading goes on part by part.
        chain.map(|chain| chain.after(after).iter().take(2).cloned().collect()).ok_or(none)
    }
}

/// The enrolments of these keys.
fn chain(keys: &[u8]) -> Chain {
    let mut chain = Chain::default();
    for key in keys {
        chain.push(chain.next(Event::Enrolled, &name(*key), NodeId([*key; 32]), 1)).unwrap();
    }
    chain
}

fn advert(key: u8, registry: RegistryHead) -> Advert {
    let peer = Peer { id: NodeId([key; 32]), name: name(key) };
    let none = Hex([0; 32]);
    Advert { peer, box_key: none, mask_key: none, nonce: none, registry, signature: Hex([0; 64]) }
}

struct Bench {
    dir: tempfile::TempDir,
    gateway: Arc<Shows>,
}

impl Bench {
    fn new(keys: &[u8]) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            gateway: Arc::new(Shows(Mutex::new(Some(chain(keys))), AtomicU32::new(0))),
        }
    }

    fn shows(&self, chain: Option<Chain>) {
        *self.gateway.0.lock().unwrap() = chain;
    }

    fn open(&self) -> FolderRegistry {
        FolderRegistry::open(self.dir.path(), "ca", self.gateway.clone()).unwrap()
    }
}

#[tokio::test]
async fn it_reads_on_where_it_was_and_knows_every_head_there_was() {
    let bench = Bench::new(&[1, 2, 3, 4, 5]);
    let registry = bench.open();
    registry.refresh().await.unwrap();
    assert_eq!(registry.head(), chain(&[1, 2, 3, 4, 5]).head());
    bench.shows(Some(chain(&[1, 2, 3, 4, 5, 6])));
    let again = bench.open();
    assert_eq!(again.head().sequence, 5, "kept over a restart");
    again.refresh().await.unwrap();
    assert_eq!(known_head(bench.dir.path(), "ca").unwrap(), chain(&[1, 2, 3, 4, 5, 6]).head());
    assert_eq!(known_head(bench.dir.path(), "another ca").unwrap(), RegistryHead::default());
    again.check(&advert(2, chain(&[1, 2, 3]).head())).unwrap();
    again.check(&advert(6, again.head())).unwrap();
}

#[tokio::test]
async fn a_gateway_that_changes_shortens_or_hides_what_it_has_shown_is_a_fork() {
    let later = [Some(chain(&[1, 9, 3])), Some(chain(&[1, 9, 3, 4])), Some(chain(&[1, 2])), Some(chain(&[])), None];
    for shown in later {
        let bench = Bench::new(&[1, 2, 3]);
        bench.open().refresh().await.unwrap();
        bench.shows(shown.clone());
        let registry = bench.open();
        assert_eq!(registry.refresh().await.unwrap_err().check, "fork", "{shown:?}");
        assert_eq!(registry.head(), chain(&[1, 2, 3]).head(), "what is known stays");
        // Control.
        bench.shows(Some(chain(&[1, 2, 3])));
        registry.refresh().await.unwrap();
    }
}

#[tokio::test]
async fn a_participant_who_was_shown_another_history_is_a_fork() {
    let bench = Bench::new(&[1, 2, 3]);
    let registry = bench.open();
    registry.refresh().await.unwrap();
    let ahead = chain(&[1, 2, 3, 4]).head();
    for shown in [chain(&[1, 9]).head(), chain(&[1, 9, 3]).head(), RegistryHead::default(), ahead] {
        assert_eq!(registry.check(&advert(2, shown)).unwrap_err().check, "fork", "{shown:?}");
    }
    assert_eq!(registry.check(&advert(9, registry.head())).unwrap_err().check, "not_enrolled");
    registry.check(&advert(2, registry.head())).unwrap();
}

#[tokio::test]
async fn under_an_older_gateway_nobody_may_have_seen_a_registry() {
    let bench = Bench::new(&[]);
    bench.shows(None);
    let registry = bench.open();
    registry.refresh().await.unwrap();
    registry.check(&advert(1, RegistryHead::default())).unwrap();
    assert_eq!(registry.check(&advert(1, chain(&[1]).head())).unwrap_err().check, "fork");
}

#[tokio::test]
async fn a_gateway_that_restarts_is_asked_again() {
    let bench = Bench::new(&[1, 2, 3]);
    bench.gateway.1.store(2, Ordering::SeqCst);
    let registry = bench.open();
    registry.refresh().await.unwrap();
    assert_eq!((registry.head().sequence, bench.gateway.1.load(Ordering::SeqCst)), (3, 0), "it failed twice");
}

#[tokio::test]
async fn a_torn_line_is_read_again_and_a_damaged_one_refused() {
    let bench = Bench::new(&[1, 2, 3]);
    bench.open().refresh().await.unwrap();
    let file = path(bench.dir.path(), "ca");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() - 9]).unwrap();
    let registry = bench.open();
    assert_eq!(registry.head().sequence, 2);
    registry.refresh().await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    std::fs::write(&file, text.replace("\"n2\"", "\"n9\"")).unwrap();
    let refused = FolderRegistry::open(bench.dir.path(), "ca", bench.gateway.clone()).unwrap_err();
    assert!(refused.contains("damaged"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_a_moment_ago_is_not_asked_for_again() {
    let bench = Bench::new(&[1, 2]);
    let registry = bench.open();
    registry.freshen().await.unwrap();
    bench.shows(Some(chain(&[1, 2, 3])));
    registry.freshen().await.unwrap();
    assert_eq!(registry.head().sequence, 2, "fresh");
    tokio::time::advance(FRESH).await;
    registry.freshen().await.unwrap();
    assert_eq!(registry.head().sequence, 3, "old");
    bench.shows(Some(chain(&[1, 2, 9])));
    registry.freshen().await.unwrap();
    registry.expire();
    assert_eq!(registry.freshen().await.unwrap_err().check, "fork", "a gateway that came back is asked at once");
    bench.shows(Some(chain(&[1, 2, 3, 4])));
    registry.refresh().await.unwrap();
    assert_eq!(registry.head().sequence, 4, "asked for whatever its age");
}
