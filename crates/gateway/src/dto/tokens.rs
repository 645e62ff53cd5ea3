//! Tokens and keys: one list for everything that lets somebody in.

use aivillage_base::NodeName;
use aivillage_base::time::rfc3339;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::{KeyInfo, Scope};
use crate::body::{Fields, FromFields};
use crate::dto::when;
use crate::ports::TokenInfo;

/// What a token lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// A node, once: `node join --token`.
    Node,
    /// A client of the API, until revoked.
    Client,
    /// An operator, until revoked.
    Admin,
}

impl From<Scope> for Role {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Client => Self::Client,
            Scope::Admin => Self::Admin,
        }
    }
}

/// Shortest and longest life of a node's token, in seconds: a minute to a month.
const TTL_S: std::ops::RangeInclusive<u64> = 60..=30 * 86_400;

/// A token or key to make.
#[derive(Debug, ToSchema)]
pub(crate) struct CreateToken {
    pub(crate) role: Role,
    /// Whom it is for; a node gets this name.
    #[schema(value_type = String, example = "hospital-a")]
    pub(crate) owner: NodeName,
    /// Life of a node's token, in seconds; keys live until revoked.
    #[schema(default = 86400, minimum = 60, maximum = 2_592_000)]
    pub(crate) ttl_s: Option<u64>,
}

impl FromFields for CreateToken {
    fn read(fields: &mut Fields) -> Option<Self> {
        let role = fields.required("role");
        let owner = fields.required("owner");
        let ttl_s = fields.optional::<u64>("ttl_s");
        let pointer = fields.pointer("ttl_s");
        match (role, ttl_s) {
            (Some(Role::Client | Role::Admin), Some(_)) => {
                fields.fault(pointer, "keys do not expire: leave `ttl_s` out, and revoke the key when it has served");
            }
            (_, Some(ttl)) if !TTL_S.contains(&ttl) => {
                fields.fault(pointer, format!("{ttl} s is outside {} to {} s", TTL_S.start(), TTL_S.end()));
            }
            (_, Some(_) | None) => {}
        }
        Some(Self { role: role?, owner: owner?, ttl_s })
    }
}

/// A token or key, shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenAnswer {
    pub(crate) id: String,
    pub(crate) role: Role,
    pub(crate) owner: String,
    /// The secret; it is stored as a hash only.
    pub(crate) token: String,
    /// Null = never.
    pub(crate) expires_at: Option<String>,
}

/// All tokens and keys, without secrets.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenList {
    pub(crate) tokens: Vec<TokenLine>,
}

/// A token or key in a listing.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenLine {
    id: String,
    role: Role,
    owner: String,
    created_at: String,
    /// Null = never.
    expires_at: Option<String>,
    /// The node that used it.
    used_by: Option<String>,
}

impl From<KeyInfo> for TokenLine {
    fn from(key: KeyInfo) -> Self {
        Self {
            id: key.id,
            role: key.scope.into(),
            owner: key.owner,
            created_at: rfc3339(key.created_ms),
            expires_at: None,
            used_by: None,
        }
    }
}

impl From<TokenInfo> for TokenLine {
    fn from(token: TokenInfo) -> Self {
        Self {
            id: token.id,
            role: Role::Node,
            owner: token.owner,
            created_at: rfc3339(token.created_ms),
            expires_at: when(Some(token.expires_ms)),
            used_by: token.used_by,
        }
    }
}
