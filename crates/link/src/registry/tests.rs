//! The registry through its door, over memory records and a clock that the test moves.

use super::*;
use aivillage_base::ports::Row;
use aivillage_base::time::Now;
use aivillage_storage::MemoryRecords;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
struct HandClock(AtomicU64);

impl Clock for HandClock {
    fn now(&self) -> Now {
        let ms = self.0.load(Ordering::SeqCst);
        Now { monotonic_ms: ms, wall_ms: 1_700_000_000_000 + ms }
    }
}

struct Bench {
    clock: Arc<HandClock>,
    records: Arc<MemoryRecords>,
    registry: Registry,
}

async fn bench() -> Bench {
    let clock = Arc::new(HandClock::default());
    let records = Arc::new(MemoryRecords::new(clock.clone()));
    let registry = Registry::open(records.clone(), Pin([1; 32]), clock.clone()).await.unwrap();
    Bench { clock, records, registry }
}

impl Bench {
    async fn token(&self, owner: &str) -> Issued {
        let ttl = Duration::from_secs(60);
        let owner = NodeName::new(owner).unwrap();
        self.registry.create_token(NewToken { owner, ttl }).await.unwrap()
    }
    async fn reopened(&self) -> Registry {
        Registry::open(self.records.clone(), Pin([1; 32]), self.clock.clone()).await.unwrap()
    }
}

fn key(n: u8) -> NodeId {
    NodeId([n; 32])
}

#[tokio::test]
async fn a_token_enrols_one_key_and_that_key_again() {
    let bench = bench().await;
    let issued = bench.token("hospital-a").await;
    let first = bench.registry.redeem(&issued.token, key(1)).await.unwrap();
    assert_eq!(first.name.as_str(), "hospital-a");
    assert_eq!(bench.registry.redeem(&issued.token, key(1)).await.unwrap(), first);
    let other = bench.registry.redeem(&issued.token, key(2)).await;
    assert!(matches!(other, Err(RegistryError::TokenUsed { .. })), "{other:?}");
    assert_eq!(bench.registry.tokens().await.unwrap()[0].used_by, Some(key(1)));
    assert_eq!(bench.reopened().await.nodes(), vec![first]);
}

#[tokio::test]
async fn of_two_keys_that_race_for_a_token_one_wins() {
    let bench = bench().await;
    let issued = bench.token("a").await;
    let (one, two) =
        tokio::join!(bench.registry.redeem(&issued.token, key(1)), bench.registry.redeem(&issued.token, key(2)),);
    assert!(one.is_ok() != two.is_ok());
    assert_eq!(bench.registry.nodes().len(), 1);
}

#[tokio::test]
async fn expired_revoked_and_foreign_tokens_are_refused_with_their_reason() {
    let bench = bench().await;
    let (late, withdrawn) = (bench.token("a").await, bench.token("b").await);
    bench.registry.revoke_token(&withdrawn.record.id).await.unwrap();
    bench.registry.revoke_token(&withdrawn.record.id).await.unwrap();
    let answer = bench.registry.redeem(&withdrawn.token, key(1)).await;
    assert!(matches!(answer, Err(RegistryError::TokenRevoked)), "{answer:?}");
    bench.clock.0.store(60_000, Ordering::SeqCst);
    let answer = bench.registry.redeem(&late.token, key(1)).await;
    assert!(matches!(answer, Err(RegistryError::TokenExpired { .. })), "{answer:?}");
    let answer = bench.registry.redeem(&Token::random(Pin([1; 32])), key(1)).await;
    assert!(matches!(answer, Err(RegistryError::TokenUnknown)), "{answer:?}");
    assert!(bench.registry.revoke_token("nothing").await.is_err());
    assert!(bench.registry.nodes().is_empty());
}

#[tokio::test]
async fn living_nodes_of_one_owner_get_numbered_names_and_freed_ones_return() {
    let bench = bench().await;
    let mut names = Vec::new();
    for n in 1..=3 {
        let issued = bench.token("lab").await;
        names.push(bench.registry.redeem(&issued.token, key(n)).await.unwrap().name.to_string());
    }
    assert_eq!(names, ["lab", "lab-2", "lab-3"]);
    bench.registry.revoke(&key(2)).await.unwrap();
    let issued = bench.token("lab").await;
    assert_eq!(bench.registry.redeem(&issued.token, key(4)).await.unwrap().name.as_str(), "lab-2");
    let long = "x".repeat(64);
    for (n, ending) in [(5, "xx"), (6, "-2")] {
        let issued = bench.token(&long).await;
        let name = bench.registry.redeem(&issued.token, key(n)).await.unwrap().name;
        assert!(name.as_str().len() == 64 && name.as_str().ends_with(ending), "{name}");
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_for_good_and_after_reopening() {
    let bench = bench().await;
    let issued = bench.token("a").await;
    bench.registry.redeem(&issued.token, key(1)).await.unwrap();
    let mut told = bench.registry.revocations();
    bench.registry.revoke(&key(1)).await.unwrap();
    bench.registry.revoke(&key(1)).await.unwrap();
    assert_eq!(told.recv().await.unwrap(), key(1));
    assert!(told.try_recv().is_err(), "revoking twice is told once");
    for registry in [bench.registry.clone(), bench.reopened().await] {
        assert!(matches!(registry.admit(&key(1)), Err(RegistryError::Revoked { .. })));
        let fresh = bench.token("a").await;
        let answer = registry.redeem(&fresh.token, key(1)).await;
        assert!(matches!(answer, Err(RegistryError::Revoked { .. })), "{answer:?}");
    }
    assert!(matches!(bench.registry.admit(&key(9)), Err(RegistryError::NotEnrolled)));
    assert!(bench.registry.revoke(&key(9)).await.is_err());
}

#[tokio::test]
async fn a_key_keeps_its_name_with_a_second_token_and_its_owner_against_another() {
    let bench = bench().await;
    let first = bench.token("a").await;
    let node = bench.registry.redeem(&first.token, key(1)).await.unwrap();
    let second = bench.token("a").await;
    assert_eq!(bench.registry.redeem(&second.token, key(1)).await.unwrap(), node);
    let foreign = bench.token("b").await;
    let answer = bench.registry.redeem(&foreign.token, key(1)).await;
    assert!(matches!(answer, Err(RegistryError::KeyTaken { .. })), "{answer:?}");
    assert_eq!(foreign.record.state(bench.clock.now().wall_ms), TokenState::Open);
}

#[tokio::test]
async fn more_nodes_than_a_page_are_all_read_back() {
    let bench = bench().await;
    for n in 0..300u16 {
        let issued = bench.token("many").await;
        let mut id = [0u8; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        bench.registry.redeem(&issued.token, NodeId(id)).await.unwrap();
    }
    assert_eq!(bench.reopened().await.nodes().len(), 300);
}

#[tokio::test]
async fn tokens_that_expired_long_ago_are_forgotten_when_the_registry_opens() {
    let bench = bench().await;
    bench.token("old").await;
    bench.clock.0.store(20 * 86_400_000, Ordering::SeqCst);
    let newer = bench.token("newer").await;
    assert_eq!(bench.reopened().await.tokens().await.unwrap().len(), 2);
    bench.clock.0.store(31 * 86_400_000, Ordering::SeqCst);
    assert_eq!(bench.reopened().await.tokens().await.unwrap(), vec![newer.record]);
}

/// Records whose commits fail while the test says so.
#[derive(Debug)]
struct Full {
    records: Arc<MemoryRecords>,
    full: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl Records for Full {
    async fn get(&self, table: &'static str, key: &str) -> Result<Option<Row>, StoreError> {
        self.records.get(table, key).await
    }
    async fn scan(&self, table: &'static str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        self.records.scan(table, scan).await
    }
    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError::Full { needed: 1, available: 0 });
        }
        self.records.commit(batch).await
    }
    async fn acquire(&self, lease: &str, holder: &str, ttl: Duration) -> Result<Option<u64>, StoreError> {
        self.records.acquire(lease, holder, ttl).await
    }
    async fn release(&self, lease: &str, holder: &str) -> Result<(), StoreError> {
        self.records.release(lease, holder).await
    }
    fn sync_stats(&self) -> aivillage_base::ports::SyncStats {
        self.records.sync_stats()
    }
}

#[tokio::test]
async fn what_the_store_refuses_has_not_happened() {
    let bench = bench().await;
    let full = Arc::new(Full { records: bench.records.clone(), full: false.into() });
    let registry = Registry::open(full.clone(), Pin([1; 32]), bench.clock.clone()).await.unwrap();
    let (first, second) = (bench.token("a").await, bench.token("b").await);
    registry.redeem(&first.token, key(1)).await.unwrap();
    full.full.store(true, Ordering::SeqCst);
    assert!(matches!(registry.redeem(&second.token, key(2)).await, Err(RegistryError::Store(_))));
    assert!(matches!(registry.admit(&key(2)), Err(RegistryError::NotEnrolled)));
    let mut told = registry.revocations();
    assert!(matches!(registry.revoke(&key(1)).await, Err(RegistryError::Store(_))));
    assert!(registry.admit(&key(1)).is_ok() && told.try_recv().is_err());
    full.full.store(false, Ordering::SeqCst);
    registry.redeem(&second.token, key(2)).await.unwrap();
    registry.revoke(&key(1)).await.unwrap();
    assert!(registry.admit(&key(1)).is_err() && registry.admit(&key(2)).is_ok());
}

/// Number, event, name and key of each entry.
fn told(registry: &Registry) -> Vec<(u64, Event, String, NodeId)> {
    registry.entries(0, 100).into_iter().map(|e| (e.sequence, e.event, e.name.to_string(), e.id)).collect()
}

#[tokio::test]
async fn every_enrolment_and_revocation_is_chained_and_stays_over_restarts() {
    let bench = bench().await;
    assert_eq!(bench.registry.head(), RegistryHead::default());
    let first = bench.token("a").await;
    bench.registry.redeem(&first.token, key(1)).await.unwrap();
    let head = bench.registry.head();
    // The same again, and a second token for the same key, are no news.
    bench.registry.redeem(&first.token, key(1)).await.unwrap();
    bench.registry.redeem(&bench.token("a").await.token, key(1)).await.unwrap();
    assert_eq!(bench.registry.head(), head);
    bench.registry.revoke(&key(1)).await.unwrap();
    bench.registry.revoke(&key(1)).await.unwrap();
    bench.registry.redeem(&bench.token("a").await.token, key(2)).await.unwrap();
    let expected = [(1, Event::Enrolled, 1), (2, Event::Revoked, 1), (3, Event::Enrolled, 2)];
    assert_eq!(told(&bench.registry), expected.map(|(n, event, id)| (n, event, "a".to_owned(), key(id))));
    let again = bench.reopened().await;
    assert_eq!((again.head(), told(&again)), (bench.registry.head(), told(&bench.registry)));
    let chain = Chain::of(again.entries(0, 100)).unwrap();
    assert!(chain.contains(&head) && chain.head() == again.head());
    assert_eq!(again.entries(1, 1)[0].sequence, 2);
}

#[tokio::test]
async fn a_store_from_before_the_chain_gets_the_same_one_wherever_it_is_opened() {
    let mut heads = Vec::new();
    for order in [[1, 2, 3], [3, 1, 2]] {
        let bench = bench().await;
        let mut batch = Batch::new("an older program");
        for n in order {
            let node = EnrolledNode {
                id: key(n),
                name: NodeName::new(format!("n{n}")).unwrap(),
                owner: NodeName::new("o").unwrap(),
                enrolled_ms: if n == 3 { 5 } else { 7 },
                revoked_ms: (n == 2).then_some(7),
            };
            batch.put(NODES, node.id.to_string(), &node);
        }
        bench.records.commit(batch).await.unwrap();
        let opened = bench.reopened().await;
        let events: Vec<_> = told(&opened).into_iter().map(|(_, event, name, _)| (event, name)).collect();
        let expected =
            [(Event::Enrolled, "n3"), (Event::Enrolled, "n1"), (Event::Enrolled, "n2"), (Event::Revoked, "n2")];
        assert_eq!(events, expected.map(|(event, name)| (event, name.to_owned())));
        assert_eq!(bench.reopened().await.head(), opened.head(), "it is made once");
        heads.push(opened.head());
    }
    assert_eq!(heads[0], heads[1]);
}

#[tokio::test]
async fn a_chain_that_was_tampered_with_keeps_the_gateway_from_starting() {
    let bench = bench().await;
    for n in 1..=3 {
        bench.registry.redeem(&bench.token("a").await.token, key(n)).await.unwrap();
    }
    let mut second = bench.registry.entries(1, 1).remove(0);
    second.id = key(9);
    let mut batch = Batch::new("an intruder");
    batch.put(CHAIN, format!("{:020}", 2), &second);
    bench.records.commit(batch).await.unwrap();
    let opened = Registry::open(bench.records.clone(), Pin([1; 32]), bench.clock.clone()).await;
    assert!(matches!(opened, Err(RegistryError::Store(StoreError::Damaged(_)))), "{opened:?}");
}
