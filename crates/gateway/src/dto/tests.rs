//! What a body's documentation promises is what is read, and the other way round.

use std::collections::BTreeSet;

use utoipa::PartialSchema;
use utoipa::openapi::{RefOr, Schema};

use super::inference::SubmitRequest;
use super::models::RegisterModel;
use super::nodes::{Capabilities, DeclareParticipant};
use super::tokens::CreateToken;
use super::training::{CreateJob, Strategy};
use crate::body::{Fields, FromFields};

/// Compares the names that `T` documents with those it reads; `hidden` are read only to be refused with a reason.
fn check<T: FromFields + PartialSchema>(hidden: &[&str]) {
    let RefOr::T(Schema::Object(object)) = T::schema() else { panic!("a body is an object") };
    let documented: BTreeSet<String> = object.properties.keys().cloned().collect();
    let mut fields = Fields::new("", serde_json::Map::new());
    T::read(&mut fields);
    let read: BTreeSet<String> =
        fields.known().iter().filter(|n| !hidden.contains(n)).map(ToString::to_string).collect();
    assert_eq!(documented, read);
    let required: BTreeSet<String> = fields
        .finish()
        .iter()
        .filter(|f| f.detail.contains("is required"))
        .map(|f| f.pointer.trim_start_matches('/').to_owned())
        .collect();
    let documented: BTreeSet<String> = object.required.iter().cloned().collect();
    assert_eq!(documented, required);
}

#[test]
fn bodies_are_documented_as_they_are_read() {
    check::<SubmitRequest>(&["aggregation", "k", "priority", "parameters"]);
    check::<CreateJob>(&[]);
    check::<Strategy>(&[]);
    check::<RegisterModel>(&[]);
    check::<DeclareParticipant>(&[]);
    check::<Capabilities>(&[]);
    check::<CreateToken>(&[]);
}
