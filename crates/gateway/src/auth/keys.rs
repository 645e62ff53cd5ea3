//! API keys: made once, shown once, stored as SHA-256 over the records port, looked up in memory.
//!
//! A key is `avk1.` and 32 random bytes in base64url, so a plain SHA-256 is enough to store (nothing to guess) and a
//! lookup costs one hash. Promise: the secret is never stored, logged or printed by `Debug`.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use aivillage_base::ErrorKind;
use aivillage_base::ports::{Batch, Expect, Records, Scan, StoreError};
use aivillage_base::time::Clock;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use utoipa::ToSchema;

use super::{Principal, Scope};

const TABLE: &str = "gateway_keys";
/// Most keys: each request compares against all of them.
const KEYS_MAX: usize = 1000;
const PREFIX: &str = "avk1.";

/// Why a key could not be made, listed or revoked.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// As many keys as there may be.
    #[error("{KEYS_MAX} keys exist, as many as there may be: revoke some first")]
    Full,
    /// The admin key's file cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// Path of the file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeyError {
    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Full => ErrorKind::Conflict,
            Self::File { .. } => ErrorKind::Internal,
            Self::Store(e) => e.kind(),
        }
    }
}

/// A stored key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyInfo {
    /// `key_` + 12 hex.
    pub id: String,
    /// Whom it was made for.
    pub owner: String,
    /// What it opens.
    pub scope: Scope,
    /// Wall clock of its making, in Unix milliseconds.
    pub created_ms: u64,
}

/// A key as it is shown, once.
#[derive(Clone)]
pub struct IssuedKey {
    /// What is stored of it.
    pub info: KeyInfo,
    /// The secret.
    pub secret: String,
}

impl fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedKey").field("info", &self.info).finish_non_exhaustive()
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    info: KeyInfo,
    /// SHA-256 of the secret, 64 hex.
    sha256: String,
}

struct Known {
    info: KeyInfo,
    hash: [u8; 32],
}

/// The keys of one gateway; clones share them.
#[derive(Clone)]
pub struct ApiKeys {
    records: Arc<dyn Records>,
    clock: Arc<dyn Clock>,
    known: Arc<RwLock<Vec<Known>>>,
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeys")
    }
}

fn sha256(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn well_formed(secret: &str) -> bool {
    secret
        .strip_prefix(PREFIX)
        .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
        .is_some_and(|bytes| bytes.len() == 32)
}

fn new_secret() -> String {
    let mut bytes = [0u8; 32];
    aivillage_base::rng::os_bytes(&mut bytes);
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

impl ApiKeys {
    /// Reads the stored keys; `extra_admin` (environment `API_KEY`) is accepted beside them and never stored.
    ///
    /// # Errors
    /// The store's, or a damaged row.
    pub async fn open(
        records: Arc<dyn Records>,
        clock: Arc<dyn Clock>,
        extra_admin: Option<&str>,
    ) -> Result<Self, KeyError> {
        let mut known = Vec::new();
        if let Some(secret) = extra_admin {
            let info = KeyInfo {
                id: "key_environment".into(),
                owner: "environment".into(),
                scope: Scope::Admin,
                created_ms: clock.now().wall_ms,
            };
            known.push(Known { info, hash: sha256(secret) });
        }
        let rows = records.scan(TABLE, Scan { prefix: "", after: None, limit: KEYS_MAX }).await?;
        for row in rows {
            let damaged = |what: String| StoreError::Damaged(format!("{TABLE}/{}: {what}", row.key));
            let stored: Stored = serde_json::from_slice(&row.value).map_err(|e| damaged(e.to_string()))?;
            let mut hash = [0u8; 32];
            hex::decode_to_slice(&stored.sha256, &mut hash).map_err(|e| damaged(e.to_string()))?;
            known.push(Known { info: stored.info, hash });
        }
        Ok(Self { records, clock, known: Arc::new(RwLock::new(known)) })
    }

    /// Makes a key; its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// Too many keys; store.
    pub async fn create(&self, owner: &str, scope: Scope) -> Result<IssuedKey, KeyError> {
        let secret = new_secret();
        let info = self.adopt(&secret, owner, scope).await?;
        Ok(IssuedKey { info, secret })
    }

    /// All keys, without secrets, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<KeyInfo> {
        let mut list: Vec<_> = self.read().iter().map(|k| k.info.clone()).collect();
        list.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        list
    }

    /// Revokes a key at once; false if there is none of this id.
    ///
    /// # Errors
    /// Store.
    pub async fn revoke(&self, id: &str) -> Result<bool, KeyError> {
        if !self.read().iter().any(|k| k.info.id == id) {
            return Ok(false);
        }
        let mut batch = Batch::new("api_key_revoked");
        batch.delete(TABLE, id);
        self.records.commit(batch).await?;
        self.write().retain(|k| k.info.id != id);
        Ok(true)
    }

    /// Makes sure that `path` (mode 0600) holds an admin key that works: the one it holds already, or a new one.
    ///
    /// The file comes first and the record second, so a crash in between leaves a key that the next start adopts.
    ///
    /// # Errors
    /// The file cannot be read or written; store.
    pub async fn ensure_admin(&self, path: &Path) -> Result<(), KeyError> {
        let file_error = |e: std::io::Error| KeyError::File { path: path.display().to_string(), reason: e.to_string() };
        let secret = match std::fs::read_to_string(path) {
            Ok(text) if well_formed(text.trim()) => text.trim().to_owned(),
            Ok(_) => {
                return Err(KeyError::File {
                    path: path.display().to_string(),
                    reason: "does not hold an API key: remove the file and start again".into(),
                });
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let secret = new_secret();
                write_private(path, &secret).map_err(file_error)?;
                secret
            }
            Err(e) => return Err(file_error(e)),
        };
        if self.verify(&secret).is_none() {
            self.adopt(&secret, "operator", Scope::Admin).await?;
        }
        Ok(())
    }

    /// The holder of a secret. Every key is compared, each in constant time.
    #[must_use]
    pub fn verify(&self, secret: &str) -> Option<Principal> {
        let hash = sha256(secret);
        let known = self.read();
        let mut found = None;
        for key in known.iter() {
            if bool::from(key.hash.ct_eq(&hash)) {
                found = Some(&key.info);
            }
        }
        found.map(|info| Principal { id: info.id.clone(), name: info.owner.clone(), scope: info.scope })
    }

    async fn adopt(&self, secret: &str, owner: &str, scope: Scope) -> Result<KeyInfo, KeyError> {
        if self.read().len() >= KEYS_MAX {
            return Err(KeyError::Full);
        }
        let hash = sha256(secret);
        let info = KeyInfo {
            // Of the hash, not of the secret: the id is public.
            id: format!("key_{}", &hex::encode(Sha256::digest(hash))[..12]),
            owner: owner.to_owned(),
            scope,
            created_ms: self.clock.now().wall_ms,
        };
        let mut batch = Batch::new("api_key_created");
        batch.put(TABLE, &info.id, &Stored { info: info.clone(), sha256: hex::encode(hash) });
        batch.expect(Expect::Absent);
        self.records.commit(batch).await?;
        self.write().push(Known { info: info.clone(), hash });
        Ok(info)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Known>> {
        // Changes are single pushes and retains: a panic elsewhere leaves nothing half done.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Known>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new file that only its owner can read, complete or not at all.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}
