//! What the gateway needs and does not own: enrolment of nodes (the link has it) and facts about the process.

use std::fmt::Debug;
use std::time::Duration;

use aivillage_base::{ErrorKind, NodeId, NodeName};
use async_trait::async_trait;

/// A one-time token that is shown once.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedToken {
    /// Id for listings and revocation.
    pub id: String,
    /// The secret that `node join --token` takes.
    pub token: String,
    /// Wall clock after which it is worthless, in Unix milliseconds.
    pub expires_ms: u64,
}

impl Debug for IssuedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A token in a listing, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// The name that the joining node gets.
    pub owner: String,
    /// Wall clock of its making, in Unix milliseconds.
    pub created_ms: u64,
    /// Wall clock after which it is worthless, in Unix milliseconds.
    pub expires_ms: u64,
    /// The name of the node that used it.
    pub used_by: Option<String>,
}

/// A node that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolledNode {
    /// Its key.
    pub id: NodeId,
    /// Its enrolled name.
    pub name: NodeName,
    /// Whom its token was made for.
    pub owner: String,
    /// Wall clock of its joining, in Unix milliseconds.
    pub enrolled_ms: u64,
    /// Was it revoked?
    pub revoked: bool,
}

/// Why enrolment did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct EnrolmentError {
    /// What the caller can do.
    pub kind: ErrorKind,
    /// One sentence.
    pub detail: String,
}

/// Who may join as a node.
///
/// # Behavior
/// - A token works once and only until it expires; its secret is in [`IssuedToken`] and nowhere else.
/// - `revoke_node` takes effect before it returns: open streams are closed, further calls refused.
/// - Revoking what is revoked already is fine; what was never there is `false`.
#[async_trait]
pub trait Enrolment: Send + Sync + Debug {
    /// Makes a token for `owner`, valid for `ttl`.
    async fn create_token(&self, owner: &NodeName, ttl: Duration) -> Result<IssuedToken, EnrolmentError>;
    /// All tokens that have not expired, oldest first.
    async fn tokens(&self) -> Result<Vec<TokenInfo>, EnrolmentError>;
    /// Makes a token worthless; false if there is none of this id.
    async fn revoke_token(&self, id: &str) -> Result<bool, EnrolmentError>;
    /// All nodes that ever joined, in name order.
    async fn nodes(&self) -> Result<Vec<EnrolledNode>, EnrolmentError>;
    /// Shuts a node out for good; false if none of this name is enrolled.
    async fn revoke_node(&self, name: &NodeName) -> Result<bool, EnrolmentError>;
}

/// A configured promise that this build does not keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotInEffect {
    /// Dotted path of the key.
    pub key: String,
    /// The configured value.
    pub value: String,
    /// Why it has no effect.
    pub why: String,
    /// What to set instead.
    pub way_out: String,
}

/// Facts that only the process knows.
///
/// # Behavior
/// - Every call is cheap and does no I/O.
pub trait StatusSource: Send + Sync + Debug {
    /// Version of the program.
    fn version(&self) -> String;
    /// Where the configuration came from, in one line.
    fn config_source(&self) -> String;
    /// Configured promises that this build does not keep.
    fn not_in_effect(&self) -> Vec<NotInEffect>;
    /// Id of the inference coordinator.
    fn inference_coordinator_id(&self) -> String;
    /// Id of the training coordinator.
    fn training_coordinator_id(&self) -> String;
    /// Address of the node link, `host:port`, if it listens.
    fn link_address(&self) -> Option<String>;
}
