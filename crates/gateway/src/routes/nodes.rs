//! `/v1/federated/participants` and `/v1/federated/nodes`: the inventory, declared and measured.

use std::collections::HashMap;

use aivillage_base::{ErrorKind, NodeName};
use aivillage_fog::{Declaration, FogError, NodeState};
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;

use super::{JsonObject, NoFields, Shared};
use crate::app::Part;
use crate::body;
use crate::dto::nodes::{DeclareAnswer, DeclareParticipant, Node, NodeList, ParticipantList, RevokeAnswer};
use crate::dto::status::ParticipantSummary;
use crate::ports::EnrolmentError;
use crate::problem::{Fault, Problem};

impl From<FogError> for Problem {
    fn from(error: FogError) -> Self {
        let problem = Self::from_room(error.kind(), error.to_string());
        match error {
            FogError::Invalid { field, detail } => {
                let pointer = if field == "node_type" { "/node_type".into() } else { format!("/capabilities/{field}") };
                problem.with_errors(vec![Fault::new(pointer, detail)])
            }
            FogError::Full { .. } | FogError::Store(_) => problem,
        }
    }
}

impl From<EnrolmentError> for Problem {
    fn from(error: EnrolmentError) -> Self {
        Self::from_room(error.kind, error.detail)
    }
}

/// Declares a participant: it counts in `participant_summary.total` and is never invited before its node connects.
#[utoipa::path(post, path = "/v1/federated/participants", tag = "participants", request_body = DeclareParticipant,
    responses((status = 201, body = DeclareAnswer)))]
pub(crate) async fn declare(
    State(app): Shared,
    JsonObject(map, ..): JsonObject,
) -> Result<(StatusCode, Json<DeclareAnswer>), Problem> {
    let declaration: Declaration = body::read::<DeclareParticipant>(map)?.into();
    let name = declaration.participant_id.clone();
    app.inventory.declare(declaration).await?;
    let status = app
        .inventory
        .list()
        .into_iter()
        .find(|record| record.name == name)
        .map_or(NodeState::Declared, |record| record.state);
    Ok((StatusCode::CREATED, Json(DeclareAnswer { participant_id: name.to_string(), status })))
}

/// The inventory: declared and connected participants.
#[utoipa::path(get, path = "/v1/federated/participants", tag = "participants",
    responses((status = 200, body = ParticipantList)))]
pub(crate) async fn participants(State(app): Shared) -> Json<ParticipantList> {
    let active = match &app.training {
        Part::On(training) => training.stats().participants_active,
        Part::Off { .. } => 0,
    };
    Json(ParticipantList {
        participants: app.inventory.list().into_iter().map(Into::into).collect(),
        summary: ParticipantSummary::new(app.inventory.summary(), active),
    })
}

/// Enrolled nodes with what they measured of themselves.
#[utoipa::path(get, path = "/v1/federated/nodes", tag = "participants", responses((status = 200, body = NodeList)))]
pub(crate) async fn nodes(State(app): Shared) -> Result<Json<NodeList>, Problem> {
    let mut known: HashMap<_, _> = app.inventory.list().into_iter().filter_map(|r| Some((r.id?, r))).collect();
    let mut nodes: Vec<Node> = app
        .enrolment
        .nodes()
        .await?
        .into_iter()
        .map(|node| Node::new(node.name.to_string(), node.id.to_string(), known.remove(&node.id), node.revoked))
        .collect();
    // A node that left is forgotten by enrolment first: until the inventory follows, it is shown as it is there.
    nodes.extend(known.into_iter().map(|(id, r)| Node::new(r.name.to_string(), id.to_string(), Some(r), false)));
    nodes.sort_by(|a, b| (&a.name, &a.node_id).cmp(&(&b.name, &b.node_id)));
    Ok(Json(NodeList { nodes }))
}

/// Shuts a node out for good, at once. The body is empty or `{}`.
#[utoipa::path(post, path = "/v1/federated/nodes/{name}/revoke", tag = "participants",
    params(("name" = String, Path, description = "Its enrolled name")),
    responses((status = 200, body = RevokeAnswer)))]
pub(crate) async fn revoke(
    State(app): Shared,
    Path(name): Path<String>,
    _: NoFields,
) -> Result<Json<RevokeAnswer>, Problem> {
    let unknown = || Problem::new(ErrorKind::NotFound, format!("Node not found: no node `{name}` is enrolled"));
    let node = NodeName::new(name.clone()).map_err(|_| unknown())?;
    if !app.enrolment.revoke_node(&node).await? {
        return Err(unknown());
    }
    Ok(Json(RevokeAnswer { name, status: "revoked" }))
}
