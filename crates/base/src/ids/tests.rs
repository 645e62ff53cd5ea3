//! Ids: what they print they read; what would escape a folder is refused.

use super::*;

#[test]
fn ids_read_back_what_they_print() {
    let id = RequestId::random();
    assert_eq!(id.to_string().parse::<RequestId>(), Ok(id));
    let node = NodeId([7; 32]);
    assert_eq!(node.to_string().parse::<NodeId>(), Ok(node));
    assert!(JobId::random().as_str().starts_with("job_"));
}

#[test]
fn names_that_would_escape_a_folder_are_refused() {
    for bad in ["", "../x", "a/b", ".hidden", "-x", "a b", &"x".repeat(65)] {
        assert!(NodeName::new(bad).is_err(), "{bad}");
    }
    assert!(NodeName::new("hospital-a.2").is_ok());
}
