//! Models in memory, least recently used out first, and how they get there.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aivillage_base::Digest;
use aivillage_base::ports::{Uplink, UplinkError};
use aivillage_base::wire::BlobRef;
use bytes::Bytes;
use tokio::sync::watch;

use super::WorkerConfig;
use super::disk::Disk;
use crate::predictor::{LoadedModel, PredictError, Predictor};

/// Models being fetched or loaded at one time: each holds a whole bundle in memory.
const LOADING_MAX: usize = 2;

type Loaded = Result<Arc<dyn LoadedModel>, PredictError>;

#[derive(Debug)]
pub(super) struct Models {
    uplink: Arc<dyn Uplink>,
    predictor: Arc<dyn Predictor>,
    disk: Option<Arc<Disk>>,
    memory_bytes: u64,
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    loaded: HashMap<Digest, Held>,
    /// By last use.
    order: BTreeMap<u64, Digest>,
    bytes: u64,
    uses: u64,
    /// Those on their way, with what their loader will say.
    loading: HashMap<Digest, watch::Receiver<Option<Loaded>>>,
}

#[derive(Debug)]
struct Held {
    model: Arc<dyn LoadedModel>,
    bytes: u64,
    used: u64,
}

impl Models {
    pub(super) fn new(
        uplink: Arc<dyn Uplink>,
        predictor: Arc<dyn Predictor>,
        cache_dir: Option<PathBuf>,
        config: &WorkerConfig,
    ) -> Self {
        let disk = cache_dir.map(|dir| Arc::new(Disk::new(dir, config.disk_bytes)));
        Self { uplink, predictor, disk, memory_bytes: config.memory_bytes, shelf: Mutex::default() }
    }

    /// The model, from memory, folder or coordinator. Who asks while it is on its way waits for the same loader; a loader
    /// goes on when nobody waits any more, so that a download longer than a deadline is not lost.
    pub(super) async fn get(self: &Arc<Self>, model: BlobRef) -> Loaded {
        let mut news = {
            let mut shelf = self.shelf();
            if let Some(held) = shelf.take(&model.digest) {
                return Ok(held);
            }
            match shelf.loading.get(&model.digest) {
                Some(news) => news.clone(),
                None if shelf.loading.len() >= LOADING_MAX => {
                    return Err(PredictError::Failed("other models are being fetched".into()));
                }
                None => {
                    let (said, news) = watch::channel(None);
                    shelf.loading.insert(model.digest, news.clone());
                    tokio::spawn(Arc::clone(self).loader(model, said));
                    news
                }
            }
        };
        let said = news.wait_for(Option::is_some).await;
        let gone = || PredictError::Failed("loading the model was stopped".into());
        match said {
            Ok(said) => said.clone().unwrap_or_else(|| Err(gone())),
            Err(_) => Err(gone()),
        }
    }

    async fn loader(self: Arc<Self>, model: BlobRef, said: watch::Sender<Option<Loaded>>) {
        let done = Done { models: Arc::clone(&self), digest: model.digest };
        let loaded = self.load(model).await;
        match &loaded {
            Ok(ready) => self.shelf().put(model, Arc::clone(ready), self.memory_bytes),
            Err(e) => tracing::warn!(model = %model.digest, error = %e, "model not loaded"),
        }
        drop(done);
        said.send_replace(Some(loaded));
    }

    async fn load(&self, model: BlobRef) -> Loaded {
        let bytes = match self.read_disk(model).await {
            Some(bytes) => bytes,
            None => self.fetch(model).await?,
        };
        let predictor = Arc::clone(&self.predictor);
        let loaded = tokio::task::spawn_blocking(move || predictor.load(&bytes)).await;
        match loaded {
            Ok(loaded) => loaded.map(Arc::from),
            Err(e) if e.is_panic() => Err(PredictError::Unfit("the engine panicked on this bundle".into())),
            Err(_) => Err(PredictError::Failed("the node is stopping".into())),
        }
    }

    async fn read_disk(&self, model: BlobRef) -> Option<Bytes> {
        let disk = Arc::clone(self.disk.as_ref()?);
        tokio::task::spawn_blocking(move || disk.read(model)).await.ok().flatten()
    }

    async fn fetch(&self, model: BlobRef) -> Result<Bytes, PredictError> {
        let bytes = self.uplink.fetch(&model).await.map_err(|e| match e {
            UplinkError::Unreachable(_) | UplinkError::Busy { .. } | UplinkError::Refused(_) => {
                PredictError::Failed(format!("the model could not be fetched: {e}"))
            }
        })?;
        if let Some(disk) = self.disk.clone() {
            let copy = bytes.clone();
            let kept = tokio::task::spawn_blocking(move || disk.write(model, &copy)).await;
            if let Ok(Err(e)) = kept {
                // Predicting goes on without the folder; the next start fetches again.
                tracing::warn!(model = %model.digest, error = %e, "model not kept in the cache folder");
            }
        }
        Ok(bytes)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a loader off the list, also when it panics or is stopped.
struct Done {
    models: Arc<Models>,
    digest: Digest,
}

impl Drop for Done {
    fn drop(&mut self) {
        self.models.shelf().loading.remove(&self.digest);
    }
}

impl Shelf {
    fn take(&mut self, digest: &Digest) -> Option<Arc<dyn LoadedModel>> {
        let held = self.loaded.get_mut(digest)?;
        self.uses += 1;
        self.order.remove(&held.used);
        held.used = self.uses;
        self.order.insert(self.uses, *digest);
        Some(Arc::clone(&held.model))
    }

    fn put(&mut self, blob: BlobRef, model: Arc<dyn LoadedModel>, bound: u64) {
        if blob.bytes > bound || self.loaded.contains_key(&blob.digest) {
            return;
        }
        while self.bytes + blob.bytes > bound {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some(held) = self.loaded.remove(&oldest) {
                self.bytes -= held.bytes;
            }
        }
        self.uses += 1;
        self.order.insert(self.uses, blob.digest);
        self.bytes += blob.bytes;
        self.loaded.insert(blob.digest, Held { model, bytes: blob.bytes, used: self.uses });
    }
}
