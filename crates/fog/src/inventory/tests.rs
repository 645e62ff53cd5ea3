//! The inventory through its handle, over the memory store.

use super::*;
use aivillage_base::time::Now;
use aivillage_storage::MemoryRecords;

#[derive(Debug)]
struct Fixed;
impl Clock for Fixed {
    fn now(&self) -> Now {
        Now { monotonic_ms: 5, wall_ms: 1_000 }
    }
}

fn store() -> Arc<dyn Records> {
    Arc::new(MemoryRecords::new(Arc::new(Fixed)))
}

async fn open(records: &Arc<dyn Records>) -> Inventory {
    Inventory::open(Arc::clone(records), Arc::new(Fixed)).await.unwrap()
}

fn declaration(name: &str) -> Declaration {
    Declaration {
        participant_id: NodeName::new(name).unwrap(),
        node_types: vec![NodeType::Edge],
        compute_gflops: 5.0,
        memory_gb: 8.0,
        network_mbps: 100.0,
    }
}

fn peer(name: &str, key: u8) -> Peer {
    Peer { id: NodeId([key; 32]), name: NodeName::new(name).unwrap() }
}

fn report() -> NodeReport {
    NodeReport {
        policy: None,
        version: "0.1.0".into(),
        node_types: vec![NodeType::Edge],
        compute_gflops: 4.5,
        memory_gb: 7.5,
        cores: 2,
        serves: true,
        data: Vec::new(),
        helper: None,
    }
}

#[tokio::test]
async fn a_declared_participant_that_connects_is_counted_once() {
    let inventory = open(&store()).await;
    inventory.declare(declaration("north")).await.unwrap();
    assert_eq!(inventory.summary(), Summary { total: 1, declared: 1, ..Summary::default() });
    inventory.online(&peer("north", 1));
    inventory.report(&peer("north", 1), report()).await.unwrap();
    assert_eq!(inventory.summary(), Summary { total: 1, connected: 1, ..Summary::default() });
    let node = inventory.get(&NodeId([1; 32])).unwrap();
    assert!(node.declared.is_some() && node.report.is_some());
    inventory.offline(&node.id.unwrap());
    assert_eq!(inventory.summary(), Summary { total: 1, offline: 1, ..Summary::default() });
}

#[tokio::test]
async fn reports_and_declarations_survive_a_restart_but_connections_do_not() {
    let records = store();
    let first = open(&records).await;
    first.declare(declaration("south")).await.unwrap();
    first.online(&peer("north", 1));
    first.report(&peer("north", 1), report()).await.unwrap();
    let again = open(&records).await;
    assert_eq!(again.summary(), Summary { total: 2, declared: 1, offline: 1, connected: 0 });
    assert_eq!(again.list()[0].report, Some(report()));
    assert_eq!(again.list()[1].declared, Some(declaration("south")));
}

#[tokio::test]
async fn a_forgotten_node_leaves_its_declaration_and_nothing_else() {
    let records = store();
    let inventory = open(&records).await;
    inventory.declare(declaration("north")).await.unwrap();
    for (name, key) in [("north", 1), ("west", 2)] {
        inventory.report(&peer(name, key), report()).await.unwrap();
        inventory.forget(&NodeId([key; 32])).await.unwrap();
    }
    inventory.forget(&NodeId([9; 32])).await.unwrap();
    for inventory in [inventory, open(&records).await] {
        assert_eq!(inventory.summary(), Summary { total: 1, declared: 1, ..Summary::default() });
    }
}

#[tokio::test]
async fn another_key_under_a_name_inherits_no_report() {
    let inventory = open(&store()).await;
    inventory.report(&peer("north", 1), report()).await.unwrap();
    inventory.online(&peer("north", 2));
    let record = &inventory.list()[0];
    assert_eq!((record.id, &record.report), (Some(NodeId([2; 32])), &None));
    assert!(inventory.get(&NodeId([1; 32])).is_none());
}

#[tokio::test]
async fn impossible_figures_are_refused_by_field() {
    let inventory = open(&store()).await;
    for bad in [f64::NAN, f64::INFINITY, -1.0] {
        let error = inventory.declare(Declaration { memory_gb: bad, ..declaration("x") }).await.unwrap_err();
        assert!(matches!(error, FogError::Invalid { field: "memory_gb", .. }), "{error}");
    }
    let none = Declaration { node_types: Vec::new(), ..declaration("x") };
    assert!(inventory.declare(none).await.is_err());
    assert_eq!(inventory.summary().total, 0);
}

#[tokio::test]
async fn more_rows_than_a_page_are_all_read_back_and_changes_are_told() {
    let records = store();
    let inventory = open(&records).await;
    let changes = inventory.changes();
    for i in 0..PAGE + 3 {
        inventory.declare(declaration(&format!("p{i}"))).await.unwrap();
    }
    assert!(changes.has_changed().unwrap());
    inventory.declare(declaration("p0")).await.unwrap();
    assert_eq!(open(&records).await.summary().declared, PAGE + 3);
}
