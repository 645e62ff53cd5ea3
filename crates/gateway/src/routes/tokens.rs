//! `/v1/federated/tokens`: who may come in. Nodes' one-time tokens are the link's, API keys are ours.

use std::time::Duration;

use aivillage_base::ErrorKind;
use axum::Json;
use axum::extract::{Path, State};
use http::header::CACHE_CONTROL;
use http::{HeaderName, StatusCode};

use super::{JsonObject, Shared};
use crate::auth::{KeyError, Scope};
use crate::body;
use crate::dto::tokens::{CreateToken, Role, TokenAnswer, TokenLine, TokenList};
use crate::dto::when;
use crate::problem::Problem;

/// Life of a node's token unless asked otherwise: a day is enough to walk to the other machine.
const TTL_DEFAULT: Duration = Duration::from_secs(86_400);

type Uncached = [(HeaderName, &'static str); 1];
/// An answer with a secret must not be kept by anybody on the way, our own stored answers included.
const UNCACHED: Uncached = [(CACHE_CONTROL, "no-store")];

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        Self::from_room(error.kind(), error.to_string())
    }
}

/// Makes a node's one-time token, or a client's or admin's key. The secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/federated/tokens", tag = "tokens", request_body = CreateToken,
    responses((status = 201, body = TokenAnswer)))]
pub(crate) async fn create(
    State(app): Shared,
    JsonObject(map, ..): JsonObject,
) -> Result<(StatusCode, Uncached, Json<TokenAnswer>), Problem> {
    let wanted: CreateToken = body::read(map)?;
    let scope = match wanted.role {
        Role::Client => Scope::Client,
        Role::Admin => Scope::Admin,
        Role::Node => {
            let ttl = wanted.ttl_s.map_or(TTL_DEFAULT, Duration::from_secs);
            let issued = app.enrolment.create_token(&wanted.owner, ttl).await?;
            let answer = TokenAnswer {
                id: issued.id,
                role: Role::Node,
                owner: wanted.owner.to_string(),
                token: issued.token,
                expires_at: when(Some(issued.expires_ms)),
            };
            return Ok((StatusCode::CREATED, UNCACHED, Json(answer)));
        }
    };
    let issued = app.keys.create(wanted.owner.as_str(), scope).await?;
    let answer = TokenAnswer {
        id: issued.info.id,
        role: wanted.role,
        owner: issued.info.owner,
        token: issued.secret,
        expires_at: None,
    };
    Ok((StatusCode::CREATED, UNCACHED, Json(answer)))
}

/// All tokens and keys, without secrets.
#[utoipa::path(get, path = "/v1/federated/tokens", tag = "tokens", responses((status = 200, body = TokenList)))]
pub(crate) async fn list(State(app): Shared) -> Result<Json<TokenList>, Problem> {
    let keys = app.keys.list().into_iter().map(TokenLine::from);
    let tokens = app.enrolment.tokens().await?.into_iter().map(TokenLine::from);
    Ok(Json(TokenList { tokens: keys.chain(tokens).collect() }))
}

/// Revokes a token or key at once. A node that joined with a token stays: see `nodes/{name}/revoke`.
#[utoipa::path(delete, path = "/v1/federated/tokens/{id}", tag = "tokens",
    params(("id" = String, Path, description = "From `GET tokens`")),
    responses((status = 204, description = "It opens nothing any more")))]
pub(crate) async fn revoke(State(app): Shared, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    if id == "key_environment" {
        return Err(Problem::new(
            ErrorKind::Conflict,
            "this key comes from the environment: remove API_KEY there and restart the gateway",
        ));
    }
    if app.keys.revoke(&id).await? || app.enrolment.revoke_token(&id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::not_found(format!("Token not found: there is none with id `{id}`")))
}
