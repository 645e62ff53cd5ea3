//! The catalogue: which models there are, in which versions, and which bytes they are.
//!
//! ```text
//! register ──> Declared ──publish──> (Verifying) ──> Ready ──publish another version──> Ready
//!                 ^                       └──bad bytes──> Refused          └──retire──> Retired
//!                 └──────────register again──────────────────┘
//! ```
//!
//! Promises: a version of a model is one set of bytes for ever; `Ready` means that its bytes were read whole, match their
//! digest, and are a bundle of ours. Reads come from memory, writes reach the store first and are checked against the row's
//! version. Must not know requests or nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aivillage_base::ports::{Batch, Blobs, Expect, Records, StoreError};
use aivillage_base::time::Clock;
use aivillage_base::wire::BlobRef;
use aivillage_base::{Digest, ModelId};

use crate::error::{Fault, InferenceError};
use crate::model::{ModelInfo, ModelRecord, ModelState, ModelVersion};
use crate::store::{self, MODELS, PAGE};

mod verify;

/// Most models: anybody with an admin key may register, and all are kept in memory.
pub(crate) const MODELS_MAX: usize = 10_000;
/// Most versions remembered of one model; the oldest is forgotten.
pub(crate) const VERSIONS_MAX: usize = 64;
/// Tries of a write that another write of the same model has overtaken.
const TRIES: usize = 4;

#[derive(Debug, Clone)]
struct Entry {
    record: ModelRecord,
    /// Version of its row in the store.
    row: u64,
}

/// All models. One per process.
#[derive(Debug)]
pub(crate) struct Catalogue {
    records: Arc<dyn Records>,
    blobs: Arc<dyn Blobs>,
    clock: Arc<dyn Clock>,
    view: Mutex<BTreeMap<ModelId, Entry>>,
    /// States that pass and are not worth a row: uploading, verifying. Counted, because two may upload at once.
    passing: Mutex<BTreeMap<ModelId, Vec<ModelState>>>,
}

impl Catalogue {
    pub(crate) async fn open(
        records: Arc<dyn Records>,
        blobs: Arc<dyn Blobs>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let mut view = BTreeMap::new();
        let mut after: Option<String> = None;
        loop {
            let rows = store::page::<ModelRecord>(&*records, MODELS, after.as_deref()).await?;
            let full = rows.len() == PAGE;
            after = rows.last().map(|(key, _, _)| key.clone());
            for (_, row, record) in rows {
                view.insert(record.info.model_id.clone(), Entry { record, row });
            }
            if !full {
                break;
            }
        }
        Ok(Self { records, blobs, clock, view: Mutex::new(view), passing: Mutex::default() })
    }

    pub(crate) fn list(&self) -> Vec<ModelRecord> {
        let ids: Vec<ModelId> = self.view().keys().cloned().collect();
        ids.iter().filter_map(|id| self.get(id)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.view().len()
    }

    /// The record, with the passing state of a model that is not servable yet.
    pub(crate) fn get(&self, id: &ModelId) -> Option<ModelRecord> {
        let mut record = self.view().get(id)?.record.clone();
        let passing = self.passing().get(id).and_then(|states| states.last().copied());
        if let (Some(state), ModelState::Declared | ModelState::Refused) = (passing, record.state) {
            record.state = state;
        }
        Some(record)
    }

    /// Are these the bytes of a model?
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.view().values().any(|e| e.record.versions.iter().any(|v| v.bundle.digest == *digest))
    }

    pub(crate) async fn register(&self, info: ModelInfo) -> Result<ModelRecord, InferenceError> {
        check(&info)?;
        let parameters = match &info.architecture {
            Some(architecture) => {
                Some(architecture.parameters().map_err(|e| InferenceError::invalid("/architecture", e.to_string()))?
                    as u64)
            }
            None => None,
        };
        self.change(&info.model_id, |old, now| {
            if let Some(old) = old.filter(|o| o.state != ModelState::Refused) {
                return if same_words(&old.info, &info) {
                    Ok(None)
                } else {
                    Err(InferenceError::Conflict {
                        detail: format!(
                            "model `{}` is registered with other metadata (state `{}`): choose another model_id, or publish its bytes under another model_version",
                            info.model_id,
                            old.state.name()
                        ),
                    })
                };
            }
            Ok(Some(ModelRecord {
                info: info.clone(),
                state: ModelState::Declared,
                bundle: None,
                parameters,
                reason: None,
                created_ms: old.map_or(now, |o| o.created_ms),
                updated_ms: now,
                versions: Vec::new(),
            }))
        })
        .await
    }

    pub(crate) async fn publish(&self, info: ModelInfo, bundle: BlobRef) -> Result<ModelRecord, InferenceError> {
        check(&info)?;
        let id = info.model_id.clone();
        let _passing = self.pass(&id, ModelState::Verifying);
        // A shape that was declared binds the first bytes; later versions may have another.
        let declared = || {
            let view = self.view();
            let record = &view.get(&id)?.record;
            record.versions.is_empty().then(|| record.info.architecture.clone())?
        };
        let promised = info.architecture.clone().or_else(declared);
        let header = match verify::bundle(&*self.blobs, bundle, promised.as_ref()).await {
            Ok(header) => header,
            Err(verify::Refusal::Store(e)) => return Err(e.into()),
            Err(verify::Refusal::Bytes(detail)) => {
                self.refuse(&id, &detail).await?;
                return Err(InferenceError::invalid("", detail));
            }
        };
        self.change(&id, |old, now| {
            if let Some(old) = old {
                if old.state == ModelState::Retired {
                    let detail = format!("model `{id}` is retired: choose another model_id");
                    return Err(InferenceError::Conflict { detail });
                }
                if let Some(same) = old.versions.iter().find(|v| v.version == info.model_version) {
                    return if same.bundle == bundle {
                        Ok(None)
                    } else {
                        Err(InferenceError::Conflict {
                            detail: format!(
                                "version `{}` of model `{id}` has other bytes (blake3 {}): choose another model_version",
                                same.version, same.bundle.digest
                            ),
                        })
                    };
                }
            }
            let mut info = info.clone();
            #[expect(clippy::cast_precision_loss, reason = "bundles are far below 2^53 bytes")]
            let size_mb = bundle.bytes as f64 / 1e6;
            info.model_size_mb = size_mb;
            info.architecture = Some(header.architecture.clone());
            let version = info.model_version.clone();
            let parameters = header.parameters as u64;
            let mut versions = old.map_or_else(Vec::new, |o| o.versions.clone());
            versions.push(ModelVersion { version, bundle, parameters, published_ms: now });
            if versions.len() > VERSIONS_MAX {
                versions.remove(0);
            }
            Ok(Some(ModelRecord {
                info,
                state: ModelState::Ready,
                bundle: Some(bundle),
                parameters: Some(parameters),
                reason: None,
                created_ms: old.map_or(now, |o| o.created_ms),
                updated_ms: now,
                versions,
            }))
        })
        .await
    }

    pub(crate) async fn retire(&self, id: &ModelId) -> Result<ModelRecord, InferenceError> {
        self.change(id, |old, now| {
            let old = old.ok_or_else(|| InferenceError::ModelNotFound(id.clone()))?;
            let retired = || ModelRecord { state: ModelState::Retired, updated_ms: now, ..old.clone() };
            Ok((old.state != ModelState::Retired).then(retired))
        })
        .await
    }

    /// Marks bytes that were sent for a declared model as bad; a servable one keeps serving what it has.
    async fn refuse(&self, id: &ModelId, reason: &str) -> Result<(), InferenceError> {
        if !self.view().get(id).is_some_and(|e| e.record.versions.is_empty()) {
            return Ok(());
        }
        self.change(id, |old, now| {
            Ok(old.filter(|o| o.versions.is_empty()).map(|o| ModelRecord {
                state: ModelState::Refused,
                reason: Some(reason.to_owned()),
                updated_ms: now,
                ..o.clone()
            }))
        })
        .await
        .map(|_| ())
    }

    /// While the guard lives, a model that is not servable yet is shown in this state.
    pub(crate) fn pass(&self, id: &ModelId, state: ModelState) -> Passing<'_> {
        self.passing().entry(id.clone()).or_default().push(state);
        Passing { catalogue: self, id: id.clone(), state }
    }

    /// Replaces a record by what `new` makes of it (None = leave it), unless somebody else was faster: then again.
    async fn change(
        &self,
        id: &ModelId,
        new: impl Fn(Option<&ModelRecord>, u64) -> Result<Option<ModelRecord>, InferenceError>,
    ) -> Result<ModelRecord, InferenceError> {
        for _ in 0..TRIES {
            let old = self.view().get(id).cloned();
            if old.is_none() && self.len() >= MODELS_MAX {
                let detail = format!("the catalogue is full: it holds {MODELS_MAX} models");
                return Err(InferenceError::Conflict { detail });
            }
            let now = self.clock.now().wall_ms;
            let Some(record) = new(old.as_ref().map(|e| &e.record), now)? else {
                return old.map(|e| e.record).ok_or_else(|| InferenceError::ModelNotFound(id.clone()));
            };
            let mut batch = Batch::new("model_changed");
            batch.put(MODELS, id.as_str(), &record);
            batch.expect(old.as_ref().map_or(Expect::Absent, |e| Expect::Version(e.row)));
            match self.records.commit(batch).await {
                Ok(()) => {
                    let row = old.map_or(1, |e| e.row + 1);
                    self.show(Entry { record: record.clone(), row });
                    return Ok(record);
                }
                Err(StoreError::Conflict { .. }) => self.reload(id).await?,
                Err(e) => return Err(e.into()),
            }
        }
        Err(InferenceError::Conflict { detail: format!("model `{id}` is being changed by others: try again") })
    }

    async fn reload(&self, id: &ModelId) -> Result<(), StoreError> {
        if let Some(row) = self.records.get(MODELS, id.as_str()).await? {
            let record = store::decode(MODELS, id.as_str(), &row.value)?;
            self.show(Entry { record, row: row.version });
        }
        Ok(())
    }

    /// Shows an entry unless a later one is shown already.
    fn show(&self, entry: Entry) {
        let mut view = self.view();
        let id = entry.record.info.model_id.clone();
        if view.get(&id).is_none_or(|shown| shown.row <= entry.row) {
            view.insert(id, entry);
        }
    }

    fn view(&self) -> MutexGuard<'_, BTreeMap<ModelId, Entry>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn passing(&self) -> MutexGuard<'_, BTreeMap<ModelId, Vec<ModelState>>> {
        self.passing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Catalogue::pass`].
#[derive(Debug)]
pub(crate) struct Passing<'a> {
    catalogue: &'a Catalogue,
    id: ModelId,
    state: ModelState,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let mut passing = self.catalogue.passing();
        if let Some(states) = passing.get_mut(&self.id) {
            if let Some(at) = states.iter().rposition(|s| *s == self.state) {
                states.remove(at);
            }
            if states.is_empty() {
                passing.remove(&self.id);
            }
        }
    }
}

/// The same model in its owner's words; size and shape are measured once bytes are here.
fn same_words(a: &ModelInfo, b: &ModelInfo) -> bool {
    let words = |m: &ModelInfo| ModelInfo { model_size_mb: 0.0, architecture: None, ..m.clone() };
    let shapes = b.architecture.is_none() || a.architecture == b.architecture;
    words(a) == words(b) && shapes
}

fn check(info: &ModelInfo) -> Result<(), InferenceError> {
    let mut faults = Vec::new();
    let mut fault = |pointer: &str, detail: String| faults.push(Fault { pointer: pointer.to_owned(), detail });
    for (pointer, text, max) in [
        ("/model_name", &info.model_name, 200),
        ("/model_version", &info.model_version, 64),
        ("/model_type", &info.model_type, 64),
        ("/framework", &info.framework, 64),
    ] {
        let length = text.chars().count();
        if !(1..=max).contains(&length) || text.chars().any(char::is_control) {
            fault(pointer, format!("{length} characters: 1 to {max}, none of them a control character, are needed"));
        }
    }
    for (pointer, value) in [
        ("/model_size_mb", info.model_size_mb),
        ("/memory_requirements_gb", info.memory_requirements_gb),
        ("/compute_requirements_gflops", info.compute_requirements_gflops),
    ] {
        if !(value.is_finite() && value >= 0.0) {
            fault(pointer, format!("{value}: a number >= 0 is needed"));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(InferenceError::Invalid { faults }) }
}
