//! Rosters: what reads back, what is refused, what a signature covers.

use super::*;

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn roster() -> Roster {
    let nodes = [("south", 2), ("north", 1), ("east", 3)].map(|(text, key)| (name(text), NodeId([key; 32])));
    Roster::new(nodes.into_iter().collect()).unwrap()
}

/// Reads this text as a file.
fn read(text: &str) -> Result<Roster, RosterError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("roster.yaml");
    std::fs::write(&path, text).unwrap();
    Roster::read(&path)
}

#[test]
fn what_was_signed_reads_back_in_any_layout() {
    let (north, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let mut signed = roster();
    assert!(signed.sign(&north) && signed.sign(&other) && !signed.sign(&north));
    assert_eq!(read(&signed.render()).unwrap(), signed);
    let json = serde_json::json!({"signatures": signed.signatures, "nodes": signed.nodes, "roster": 1}).to_string();
    assert_eq!(read(&json).unwrap(), signed);
    assert_eq!(signed.fingerprint(), roster().fingerprint(), "signatures do not change what was signed");
    assert_eq!(signed.text().lines().nth(1), Some(format!("east {}", "03".repeat(32)).as_str()));
}

#[test]
fn a_name_a_key_or_a_node_changed_after_signing_is_found() {
    let mut signed = roster();
    signed.sign(&Identity::generate().unwrap());
    let text = signed.render();
    let east = format!("  \"east\": \"{}\"\n", "03".repeat(32));
    let changes = [
        text.replace("\"north\"", "\"nord\""),
        text.replace(&"02".repeat(32), &"04".repeat(32)),
        text.replace(&east, ""),
        text.replace(&east, &format!("{east}  \"west\": \"{}\"\n", "05".repeat(32))),
    ];
    for changed in changes {
        assert_ne!(changed, text);
        assert!(matches!(read(&changed), Err(RosterError::BadSignature { .. })), "{changed}");
    }
    let foreign = text.replace(&signed.signers().next().unwrap().to_string(), &"01".repeat(32));
    assert!(matches!(read(&foreign), Err(RosterError::BadSignature { .. })));
}

#[test]
fn what_is_no_roster_is_refused_with_the_reason() {
    let key = "01".repeat(32);
    let cases = [
        ("hello".to_owned(), "is no roster"),
        (format!("roster: 2\nnodes: {{a: \"{key}\"}}"), "version 2"),
        ("roster: 1\nnodes: {}".to_owned(), "no node"),
        (format!("roster: 1\nnodes: {{a: \"{key}\", b: \"{key}\"}}"), "one key"),
        (format!("roster: 1\nnodes: {{a: \"{key}\", a: \"{}\"}}", "02".repeat(32)), "is no roster"),
        (format!("roster: 1\nnodes: {{a: \"{key}\"}}\nsigned: true"), "is no roster"),
        ("roster: 1\nnodes: {a: \"01\"}".to_owned(), "64 hexadecimal"),
    ];
    for (text, part) in cases {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let none = Roster::read(Path::new("no-such-roster.yaml")).unwrap_err();
    assert!(matches!(none, RosterError::Unreadable { .. }), "{none}");
}

#[test]
fn every_signature_that_a_node_asks_for_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("roster.yaml");
    let (north, south) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let mut signed = roster();
    signed.sign(&north);
    std::fs::write(&path, signed.render()).unwrap();
    assert!(Roster::trusted(&path, &[north.id()]).is_ok());
    for signers in [vec![south.id()], vec![north.id(), south.id()]] {
        let refused = Roster::trusted(&path, &signers).unwrap_err();
        assert!(matches!(refused, RosterError::NotSigned { by, .. } if by == south.id()), "{refused}");
    }
}

#[test]
fn strangers_and_other_keys_are_not_on_it() {
    let check = |text: &str, key: u8| roster().check(&Peer { id: NodeId([key; 32]), name: name(text) });
    assert_eq!(check("north", 1), Ok(()));
    assert!(check("north", 2).unwrap_err().contains("on this node's roster"));
    assert!(check("west", 9).unwrap_err().contains("is not on this node's roster"));
}
