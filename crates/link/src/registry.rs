//! Who may use the link: join tokens and enrolled nodes, over [`Records`], with a view in memory for every request.
//!
//! Tables: `link_tokens` (key: SHA-256 of the secret, hex), `link_nodes` (key: node id, hex) and `link_chain` (key: number),
//! in which every enrolment and revocation is hashed onto the one before. One process owns them; changes go one at a time,
//! store first, then view. Promises: a token enrols one key, and that key again if its answer was lost; names of living
//! nodes are unique; a revoked key is refused from the moment `revoke` returns and for ever; nodes and chain change in one
//! commit. Must not know sockets or certificates.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aivillage_base::ports::{Batch, Expect, Records, Scan, StoreError};
use aivillage_base::time::{Clock, rfc3339};
use aivillage_base::wire::Peer;
use aivillage_base::wire::secure::RegistryHead;
use aivillage_base::{ErrorKind, NodeId, NodeName};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::token::{Pin, Token};
use rows::{decode, open_chain, put_entry, scan_all};

mod chain;
mod rows;
#[cfg(test)]
mod tests;

pub use chain::{Broken, Chain, Entry, Event};

const TOKENS: &str = "link_tokens";
const NODES: &str = "link_nodes";
const CHAIN: &str = "link_chain";

/// Tokens are listed for this long after they expired, then forgotten when the registry opens.
const REMEMBERED_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// Revocations that a slow listener may be behind before it has to look at the whole view instead.
const REVOCATIONS: usize = 64;

/// What is stored of a token: never its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Public name of the token, for listing and revoking: the first 12 hex characters of its hash.
    pub id: String,
    /// Who owns the node that will use it; the node is enrolled under this name.
    pub owner: NodeName,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds since 1970.
    pub expires_ms: u64,
    /// The key that used it.
    pub used_by: Option<NodeId>,
    /// Milliseconds since 1970.
    pub revoked_ms: Option<u64>,
}

/// Whether a token can still be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// It enrols the first key that comes.
    Open,
    /// A key has used it.
    Used,
    /// Its time is over.
    Expired,
    /// It was withdrawn.
    Revoked,
}

impl TokenRecord {
    /// The state at this moment of the wall clock.
    #[must_use]
    pub fn state(&self, wall_ms: u64) -> TokenState {
        match self {
            Self { revoked_ms: Some(_), .. } => TokenState::Revoked,
            Self { used_by: Some(_), .. } => TokenState::Used,
            Self { expires_ms, .. } if wall_ms >= *expires_ms => TokenState::Expired,
            Self { .. } => TokenState::Open,
        }
    }
}

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolledNode {
    /// Its key.
    pub id: NodeId,
    /// The owner's name, or `owner-2`, `owner-3` … if a living node has it.
    pub name: NodeName,
    /// Whose token it used.
    pub owner: NodeName,
    /// Milliseconds since 1970.
    pub enrolled_ms: u64,
    /// Milliseconds since 1970; set once, for ever.
    pub revoked_ms: Option<u64>,
}

/// What to issue a token for.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// The node's owner; the node's name derives from it.
    pub owner: NodeName,
    /// How long it can be used.
    pub ttl: Duration,
}

/// A token that was just made: the only time its text is known.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The token; [`Token::reveal`] is its text.
    pub token: Token,
    /// What is stored.
    pub record: TokenRecord,
}

/// Why the registry did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// No such secret was issued here.
    #[error("this token is not known here: check that it was copied whole, or ask for a new one")]
    TokenUnknown,
    /// Too late.
    #[error("this token expired at {at}: ask the gateway's operator for a new one")]
    TokenExpired {
        /// RFC 3339.
        at: String,
    },
    /// Another key was faster.
    #[error("this token has been used by another node ({by}): a token works once, ask for a new one")]
    TokenUsed {
        /// Short id of the key.
        by: String,
    },
    /// Withdrawn.
    #[error("this token was revoked: ask the gateway's operator for a new one")]
    TokenRevoked,
    /// The key already has an owner.
    #[error("this node's key is enrolled as `{name}` for owner `{owner}`: join from a fresh folder, or leave first")]
    KeyTaken {
        /// Enrolled name.
        name: NodeName,
        /// Enrolled owner.
        owner: NodeName,
    },
    /// The key was revoked.
    #[error(
        "node `{name}` was revoked: its key is refused for good; to come back, delete identity.key and join with a new token"
    )]
    Revoked {
        /// Enrolled name.
        name: NodeName,
    },
    /// The key never joined.
    #[error("this node's key is not enrolled here: join with a token first")]
    NotEnrolled,
    /// Nothing has this name or id.
    #[error("there is no {what} `{given}`")]
    NotFound {
        /// `token` or `node`.
        what: &'static str,
        /// What was asked for.
        given: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RegistryError {
    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TokenUnknown | Self::NotEnrolled => ErrorKind::Unauthenticated,
            Self::TokenExpired { .. } | Self::TokenUsed { .. } | Self::TokenRevoked | Self::Revoked { .. } => {
                ErrorKind::Forbidden
            }
            Self::KeyTaken { .. } => ErrorKind::Conflict,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Store(error) => error.kind(),
        }
    }
}

/// Tokens and enrolled nodes; a cheap handle.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    records: Arc<dyn Records>,
    clock: Arc<dyn Clock>,
    pin: Pin,
    view: Mutex<HashMap<NodeId, EnrolledNode>>,
    chain: Mutex<Chain>,
    /// Held by whoever changes records and view.
    changing: tokio::sync::Mutex<()>,
    revoked: broadcast::Sender<NodeId>,
}

impl Registry {
    /// Reads the enrolled nodes and forgets tokens that expired a month ago. `pin` is the CA's, for the tokens. What happened
    /// before there was a chain is added to it.
    ///
    /// # Errors
    /// The store's; a record that cannot be read, or a chain that does not hold, is [`StoreError::Damaged`].
    pub async fn open(records: Arc<dyn Records>, pin: Pin, clock: Arc<dyn Clock>) -> Result<Self, RegistryError> {
        let nodes = scan_all::<EnrolledNode>(&*records, NODES).await?;
        let view: HashMap<_, _> = nodes.into_iter().map(|(_, node)| (node.id, node)).collect();
        let chain = open_chain(&*records, &view).await?;
        let long_ago = clock.now().wall_ms.saturating_sub(REMEMBERED_MS);
        let mut batch = Batch::new("link_tokens_forgotten");
        for (key, token) in scan_all::<TokenRecord>(&*records, TOKENS).await? {
            if token.expires_ms < long_ago {
                batch.delete(TOKENS, key);
            }
        }
        if !batch.writes.is_empty() {
            records.commit(batch).await?;
        }
        let (revoked, _) = broadcast::channel(REVOCATIONS);
        let changing = tokio::sync::Mutex::new(());
        let inner = Inner { records, clock, pin, view: Mutex::new(view), chain: Mutex::new(chain), changing, revoked };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Issues a token.
    ///
    /// # Errors
    /// The store's.
    pub async fn create_token(&self, new: NewToken) -> Result<Issued, RegistryError> {
        let token = Token::random(self.inner.pin);
        let created_ms = self.inner.clock.now().wall_ms;
        let ttl_ms = u64::try_from(new.ttl.as_millis()).unwrap_or(u64::MAX);
        let record = TokenRecord {
            id: token.hash()[..12].to_owned(),
            owner: new.owner,
            created_ms,
            expires_ms: created_ms.saturating_add(ttl_ms),
            used_by: None,
            revoked_ms: None,
        };
        let mut batch = Batch::new("link_token_created");
        batch.put(TOKENS, token.hash(), &record);
        batch.expect(Expect::Absent);
        self.inner.records.commit(batch).await?;
        Ok(Issued { token, record })
    }

    /// All tokens, newest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, RegistryError> {
        let tokens = scan_all::<TokenRecord>(&*self.inner.records, TOKENS).await?;
        let mut tokens: Vec<_> = tokens.into_iter().map(|(_, token)| token).collect();
        tokens.sort_by(|a, b| b.created_ms.cmp(&a.created_ms).then_with(|| a.id.cmp(&b.id)));
        Ok(tokens)
    }

    /// Withdraws a token that was not used; the node of a used one stays (revoke the node instead). Twice is fine.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], or the store's.
    pub async fn revoke_token(&self, id: &str) -> Result<TokenRecord, RegistryError> {
        let _changing = self.inner.changing.lock().await;
        let not_found = || RegistryError::NotFound { what: "token", given: id.to_owned() };
        if id.len() != 12 {
            return Err(not_found());
        }
        let scan = Scan { prefix: id, after: None, limit: 1 };
        let rows = self.inner.records.scan(TOKENS, scan).await?;
        let row = rows.first().ok_or_else(not_found)?;
        let mut record: TokenRecord = decode(row)?;
        if record.revoked_ms.is_none() {
            record.revoked_ms = Some(self.inner.clock.now().wall_ms);
            let mut batch = Batch::new("link_token_revoked");
            batch.put(TOKENS, row.key.clone(), &record);
            batch.expect(Expect::Version(row.version));
            self.inner.records.commit(batch).await?;
        }
        Ok(record)
    }

    /// Trades a token for the enrolment of `key`. The same key may repeat it: a join whose answer was lost.
    ///
    /// # Errors
    /// [`RegistryError`]; nothing has changed then.
    pub async fn redeem(&self, token: &Token, key: NodeId) -> Result<EnrolledNode, RegistryError> {
        let _changing = self.inner.changing.lock().await;
        let hash = token.hash();
        let row = self.inner.records.get(TOKENS, &hash).await?;
        let row = row.ok_or(RegistryError::TokenUnknown)?;
        let mut record: TokenRecord = decode(&row)?;
        let enrolled = self.view().get(&key).cloned();
        if let Some(EnrolledNode { name, revoked_ms: Some(_), .. }) = enrolled {
            return Err(RegistryError::Revoked { name });
        }
        let now_ms = self.inner.clock.now().wall_ms;
        match (record.state(now_ms), record.used_by) {
            (TokenState::Open, _) => {}
            (TokenState::Used, Some(by)) if by == key => {
                return enrolled.ok_or(RegistryError::NotEnrolled);
            }
            (TokenState::Used, by) => {
                let by = by.map_or_else(String::new, |id| id.short());
                return Err(RegistryError::TokenUsed { by });
            }
            (TokenState::Expired, _) => {
                return Err(RegistryError::TokenExpired { at: rfc3339(record.expires_ms) });
            }
            (TokenState::Revoked, _) => return Err(RegistryError::TokenRevoked),
        }
        let known = enrolled.is_some();
        let node = match enrolled {
            Some(node) if node.owner == record.owner => node,
            Some(EnrolledNode { name, owner, .. }) => {
                return Err(RegistryError::KeyTaken { name, owner });
            }
            None => EnrolledNode {
                id: key,
                name: self.free_name(&record.owner),
                owner: record.owner.clone(),
                enrolled_ms: now_ms,
                revoked_ms: None,
            },
        };
        record.used_by = Some(key);
        let mut batch = Batch::new("link_node_enrolled");
        batch.put(TOKENS, hash, &record);
        batch.expect(Expect::Version(row.version));
        batch.put(NODES, key.to_string(), &node);
        let event = (!known).then_some((Event::Enrolled, now_ms));
        self.commit(batch, &node, event).await?;
        Ok(node)
    }

    /// The node with this key, if it may use the link.
    ///
    /// # Errors
    /// [`RegistryError::NotEnrolled`], [`RegistryError::Revoked`].
    pub fn admit(&self, key: &NodeId) -> Result<EnrolledNode, RegistryError> {
        match self.view().get(key) {
            None => Err(RegistryError::NotEnrolled),
            Some(EnrolledNode { name, revoked_ms: Some(_), .. }) => Err(RegistryError::Revoked { name: name.clone() }),
            Some(node) => Ok(node.clone()),
        }
    }

    /// As [`Registry::admit`], as messages name it.
    pub(crate) fn peer(&self, key: &NodeId) -> Result<Peer, RegistryError> {
        self.admit(key).map(|node| Peer { id: node.id, name: node.name })
    }

    /// All nodes that ever joined, in name order, living ones first among equals.
    #[must_use]
    pub fn nodes(&self) -> Vec<EnrolledNode> {
        let mut nodes: Vec<_> = self.view().values().cloned().collect();
        nodes.sort_by(|a, b| (&a.name, a.revoked_ms.is_some(), a.id).cmp(&(&b.name, b.revoked_ms.is_some(), b.id)));
        nodes
    }

    /// Refuses this key from now on and for ever: open streams end, calls are refused. Twice is fine.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], or the store's (then nothing has changed).
    pub async fn revoke(&self, key: &NodeId) -> Result<EnrolledNode, RegistryError> {
        let _changing = self.inner.changing.lock().await;
        let found = self.view().get(key).cloned();
        let mut node = found.ok_or_else(|| RegistryError::NotFound { what: "node", given: key.to_string() })?;
        if node.revoked_ms.is_none() {
            let now_ms = self.inner.clock.now().wall_ms;
            node.revoked_ms = Some(now_ms);
            let mut batch = Batch::new("link_node_revoked");
            batch.put(NODES, key.to_string(), &node);
            self.commit(batch, &node, Some((Event::Revoked, now_ms))).await?;
            // No listener is fine: then no stream is open either.
            let _ = self.inner.revoked.send(*key);
        }
        Ok(node)
    }

    /// The living node with this enrolled name.
    #[must_use]
    pub fn named(&self, name: &NodeName) -> Option<EnrolledNode> {
        self.view().values().find(|n| n.revoked_ms.is_none() && n.name == *name).cloned()
    }

    /// How far the chain of enrolments has come.
    #[must_use]
    pub fn head(&self) -> RegistryHead {
        self.chain().head()
    }

    /// The chain's entries after this number, at most `limit`.
    #[must_use]
    pub fn entries(&self, after: u64, limit: usize) -> Vec<Entry> {
        self.chain().after(after).iter().take(limit).cloned().collect()
    }

    /// Commits a change of a node with what the chain has to say of it, then shows both.
    async fn commit(
        &self,
        mut batch: Batch,
        node: &EnrolledNode,
        event: Option<(Event, u64)>,
    ) -> Result<(), RegistryError> {
        let entry = event.map(|(event, at_ms)| self.chain().next(event, &node.name, node.id, at_ms));
        if let Some(entry) = &entry {
            put_entry(&mut batch, entry);
        }
        self.inner.records.commit(batch).await?;
        self.view().insert(node.id, node.clone());
        if let Some(entry) = entry {
            self.chain().push(entry).expect("invariant: one change at a time, made for this head");
        }
        Ok(())
    }

    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.inner.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn revocations(&self) -> broadcast::Receiver<NodeId> {
        self.inner.revoked.subscribe()
    }

    fn view(&self) -> MutexGuard<'_, HashMap<NodeId, EnrolledNode>> {
        self.inner.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free_name(&self, owner: &NodeName) -> NodeName {
        let view = self.view();
        let taken = |name: &NodeName| view.values().any(|node| node.revoked_ms.is_none() && node.name == *name);
        let mut name = owner.clone();
        let mut count = 1u64;
        while taken(&name) {
            count += 1;
            let ending = format!("-{count}");
            let kept = &owner.as_str()[..owner.as_str().len().min(64 - ending.len())];
            name =
                NodeName::new(format!("{kept}{ending}")).expect("invariant: a shortened name with a number is a name");
        }
        name
    }
}
