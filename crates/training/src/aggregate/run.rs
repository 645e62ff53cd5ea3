//! The coordinator's door: a plan, its stores, and the blobs that come out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aivillage_base::arch::holds_variances;
use aivillage_base::ports::{BlobReader, BlobWriter, Blobs, Records, StoreError};
use aivillage_base::wire::BlobRef;
use aivillage_base::{Digest, NodeName, Task, bundle};
use bytes::Bytes;

use super::layout::Layout;
use super::masked::{Masked, PackedRows, payload_bytes, unmasking};
use super::parallel::{Threads, each};
use super::{Floats, RowError, Rows, Tensor, WAVE, Wave, Work, WorkError, simd};
use crate::record::StateSlot;
use crate::step::{ComputeError, ComputePlan, Made};
use crate::store;
use crate::strategy::Contribution;

/// Updates that are open at a time, at most: a quarter of the usual limit of open files.
const OPEN_MAX: usize = 256;
/// Bytes gathered for one write.
const WRITE: usize = 1 << 20;
/// Bytes hashed at a time.
const HASH: usize = 256 * 1024;

/// How to make a model; changes nothing of what comes out.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads to use, at most; 0 = as many as there are cores.
    pub threads: usize,
    /// Blobs that this process has hashed and made durable itself: they are read without being hashed again.
    pub trusted: BTreeSet<Digest>,
    /// Bytes of small updates that are held in memory, at most; of more, each wave's part is read again.
    pub inline_bytes_max: usize,
}

impl Default for Options {
    /// All cores, no trust, 64 MiB.
    fn default() -> Self {
        Self { threads: 0, trusted: BTreeSet::new(), inline_bytes_max: 64 << 20 }
    }
}

/// Makes and stores the round's model and state, and trusts no blob.
///
/// # Errors
/// [`ComputeError::BadUpdate`] names a member whose update cannot be used; [`ComputeError::Unusable`] is the rule's no;
/// [`ComputeError::Store`] may pass.
pub async fn run(plan: &ComputePlan, records: &dyn Records, blobs: &dyn Blobs) -> Result<Made, ComputeError> {
    run_with(plan, records, blobs, &Options::default()).await
}

/// [`run`] with options. Blocks for as long as it computes: call it where that is allowed.
///
/// With stores whose futures are ready at once it completes on the first poll.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    plan: &ComputePlan,
    records: &dyn Records,
    blobs: &dyn Blobs,
    options: &Options,
) -> Result<Made, ComputeError> {
    let tensors = tensors(plan)?;
    let layout = Layout::new(&tensors);
    let header = bundle::header_bytes(&plan.architecture).map_err(|e| ComputeError::Store(e.to_string()))?;
    let size = (header.len() + layout.parameters * 4) as u64;
    let open = |blob: &BlobRef| Vector::open(blobs, blob, (header.len() as u64, size), options);
    let model = open(&plan.model_in)?;
    let (slots, planes) = (plan.strategy.rule().slots(), plan.strategy.rule().planes());
    let state = slots.iter().map(|slot| state_in(plan, slot)?.map(|s| open(&s.blob)).transpose());
    let state: Vec<Option<Vector>> = state.collect::<Result<_, ComputeError>>()?;
    let contributions = contributions(plan);
    let work = Work {
        strategy: &plan.strategy,
        round: plan.key.round,
        training: &plan.training,
        population: plan.invited,
        examples_max: plan.examples_max,
        contributions: &contributions,
        sums: None,
        tensors: &tensors,
        model: &model,
        state: state.iter().map(|s| s.as_ref().map(|s| s as &dyn Floats)).collect(),
        threads: options.threads,
    };
    let values = layout.shared * planes;
    let terms = plan.opened.as_ref().map(|opened| &opened.terms);
    let bytes = terms.map_or(Ok(values as u64 * 4), |terms| payload_bytes(values, terms))?;
    // What the helper has answered is one more summand.
    let helped = plan.opened.as_ref().and_then(|opened| opened.help.as_ref());
    let helped = helped.map(|_| ComputePlan { accepted: plan.summands().cloned().collect(), ..plan.clone() });
    let summed = helped.as_ref().unwrap_or(plan);
    let mut updates = Updates::new(summed, blobs, values, bytes)?;
    updates.verify(options)?;
    let blame = |e: WorkError| blame(summed, e);
    let mut out = Vec::with_capacity(1 + slots.len());
    for _ in 0..=slots.len() {
        out.push(Out::begin(blobs, &header, size).await?);
    }
    let mut totals = None;
    if let Some(opened) = &plan.opened {
        updates.load_whole(records).await?;
        let masks = unmasking(plan, opened)?;
        let classifies = plan.architecture.task != Task::Regression;
        let sizes = (summed.accepted.len(), plan.accepted.len(), values);
        let masked = Masked::open(&updates, sizes, masks, &opened.terms, classifies).map_err(blame)?;
        totals = Some(masked.totals());
        let mut aggregation = Work { sums: Some(&masked), ..work }.begin().map_err(blame)?;
        while aggregation.wanted().is_some() {
            write_wave(&mut out, aggregation.advance(&updates).map_err(blame)?).await?;
        }
    } else {
        let mut aggregation = work.begin_in_waves(wave(plan, planes, options)).map_err(blame)?;
        while let Some(wanted) = aggregation.wanted() {
            updates.load(records, &wanted, options.inline_bytes_max).await?;
            write_wave(&mut out, aggregation.advance(&updates).map_err(blame)?).await?;
        }
    }
    let mut made = Vec::with_capacity(out.len());
    for out in out {
        made.push(out.finish().await?);
    }
    let model = made.remove(0);
    let state = slots.iter().zip(made).map(|(name, blob)| StateSlot { name: (*name).to_owned(), blob });
    Ok(Made { model, state: state.collect(), totals })
}

/// What each member says of its update: of a masked one, nothing.
fn contributions(plan: &ComputePlan) -> Vec<Contribution> {
    match plan.opened {
        Some(_) => Vec::new(),
        None => plan.accepted.iter().map(|(_, c)| c.contribution(plan.key.round)).collect(),
    }
}

async fn write_wave(out: &mut [Out], wave: Option<Wave>) -> Result<(), ComputeError> {
    let Some(wave) = wave else { return Ok(()) };
    for (out, bytes) in out.iter_mut().zip(std::iter::once(wave.model).chain(wave.state)) {
        out.write(bytes).await?;
    }
    Ok(())
}

fn tensors(plan: &ComputePlan) -> Result<Vec<Tensor>, ComputeError> {
    let layout = plan.architecture.layout().map_err(|e| ComputeError::Store(e.to_string()))?;
    if layout.len() != plan.grids.len() {
        let (tensors, grids) = (layout.len(), plan.grids.len());
        return Err(ComputeError::Unusable(format!("the round has grids for {grids} tensors of {tensors}")));
    }
    let tensor = |(t, grid): (&aivillage_base::arch::TensorSpec, &aivillage_base::fixed::Grid)| Tensor {
        len: t.len(),
        grid: *grid,
        personal: plan.personal.contains(&t.name),
        variances: holds_variances(&t.name),
    };
    Ok(layout.iter().zip(&plan.grids).map(tensor).collect())
}

/// Coordinates a wave: fewer where the small updates' values would not fit into memory.
fn wave(plan: &ComputePlan, planes: usize, options: &Options) -> usize {
    let inline = plan.accepted.iter().filter(|(_, c)| c.inline).count();
    (options.inline_bytes_max / 4 / planes / inline.max(1)).clamp(1, WAVE)
}

/// The stored values of a slot; None before there are any.
fn state_in<'p>(plan: &'p ComputePlan, slot: &str) -> Result<Option<&'p StateSlot>, ComputeError> {
    let found = plan.state_in.iter().find(|s| s.name == slot);
    if found.is_none() && !plan.state_in.is_empty() {
        return Err(ComputeError::Unusable(format!("the server state `{slot}` of the last round is missing")));
    }
    Ok(found)
}

fn blame(plan: &ComputePlan, error: WorkError) -> ComputeError {
    match error {
        WorkError::Update { row, reason, detail } => bad(plan, row, reason, detail),
        WorkError::Unusable(why) => ComputeError::Unusable(why),
        WorkError::Read(why) => ComputeError::Store(why),
    }
}

fn bad(plan: &ComputePlan, row: usize, reason: &'static str, detail: String) -> ComputeError {
    ComputeError::BadUpdate { node: plan.accepted[row].0.clone(), reason, detail }
}

/// The values of a bundle.
#[derive(Debug)]
struct Vector {
    reader: Arc<dyn BlobReader>,
    data_offset: u64,
}

impl Vector {
    fn open(
        blobs: &dyn Blobs,
        blob: &BlobRef,
        (data_offset, size): (u64, u64),
        options: &Options,
    ) -> Result<Self, ComputeError> {
        let broken = |what: &str| ComputeError::Store(format!("the round's start {} {what}", blob.digest));
        let reader = blobs.open(&blob.digest).map_err(|e| ComputeError::Store(e.to_string()))?;
        let reader = reader.ok_or_else(|| broken("is missing; restore the data folder from a backup"))?;
        if blob.bytes != size {
            return Err(broken(&format!("has {} bytes, and the model needs {size}", blob.bytes)));
        }
        let trusted = options.trusted.contains(&blob.digest);
        if !trusted && !is_intact(&*reader, blob).map_err(|e| ComputeError::Store(e.to_string()))? {
            return Err(broken("is damaged; restore the data folder from a backup"));
        }
        Ok(Self { reader, data_offset })
    }
}

impl Floats for Vector {
    fn read(&self, start: usize, out: &mut [f32]) -> Result<(), String> {
        let mut bytes = vec![0; out.len() * 4];
        self.reader.read_at(self.data_offset + start as u64 * 4, &mut bytes).map_err(|e| e.to_string())?;
        for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

/// Are these the bytes that the blob's name says?
fn is_intact(reader: &dyn BlobReader, blob: &BlobRef) -> Result<bool, StoreError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; HASH.min(usize::try_from(blob.bytes).unwrap_or(HASH))];
    let mut at = 0;
    while at < blob.bytes {
        let len = usize::try_from(blob.bytes - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        match reader.read_at(at, &mut buffer[..len]) {
            Err(StoreError::Damaged(_)) => return Ok(false),
            other => other?,
        }
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    Ok(Digest::from(hasher.finalize()) == blob.digest)
}

/// The accepted updates, wherever they lie.
#[derive(Debug)]
struct Updates<'a> {
    plan: &'a ComputePlan,
    blobs: &'a dyn Blobs,
    /// Values an update has.
    values: usize,
    /// Bytes it has.
    bytes: u64,
    /// Values of small updates at these positions, side by side.
    loaded: Vec<Range<usize>>,
    inline: Vec<Option<Bytes>>,
    files: Vec<Mutex<Option<Arc<dyn BlobReader>>>>,
    /// Rows whose files are open, oldest first.
    open: Mutex<VecDeque<usize>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is valid between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Updates<'a> {
    fn new(plan: &'a ComputePlan, blobs: &'a dyn Blobs, values: usize, bytes: u64) -> Result<Self, ComputeError> {
        for (row, (node, counted)) in plan.accepted.iter().enumerate() {
            if counted.payload.bytes != bytes {
                let found = counted.payload.bytes;
                let detail = format!("the update of {node} has {found} bytes, and {bytes} are needed");
                return Err(bad(plan, row, "damaged", detail));
            }
        }
        let files = plan.accepted.iter().map(|_| Mutex::default()).collect();
        Ok(Self { plan, blobs, values, bytes, loaded: Vec::new(), inline: Vec::new(), files, open: Mutex::default() })
    }

    /// Hashes what this process has not hashed itself, different updates on different cores.
    fn verify(&self, options: &Options) -> Result<(), ComputeError> {
        let doubtful = |(_, (_, c)): &(usize, &(_, crate::record::Counted))| {
            !c.inline && !options.trusted.contains(&c.payload.digest)
        };
        let rows: Vec<usize> = self.plan.accepted.iter().enumerate().filter(doubtful).map(|(row, _)| row).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let threads = Threads::new(options.threads).for_values(rows.len() * self.values);
        each(threads, rows, || (), |(), row| self.verify_one(row)).map_err(|e| blame(self.plan, e))?;
        Ok(())
    }

    fn verify_one(&self, row: usize) -> Result<(), WorkError> {
        let (node, counted) = &self.plan.accepted[row];
        let damaged = |detail| WorkError::Update { row, reason: "damaged", detail };
        let reader = self.reader(row).map_err(|e| match e {
            RowError::Damaged(detail) => damaged(detail),
            RowError::Store(detail) => WorkError::Read(detail),
        })?;
        match is_intact(&*reader, &counted.payload) {
            Ok(true) => Ok(()),
            Ok(false) => Err(damaged(format!("the stored update of {node} is not what was sent"))),
            Err(e) => Err(WorkError::Read(e.to_string())),
        }
    }

    /// The update's open file; opening one too many closes the one that was opened first.
    fn reader(&self, row: usize) -> Result<Arc<dyn BlobReader>, RowError> {
        let (node, counted) = &self.plan.accepted[row];
        let mut file = lock(&self.files[row]);
        if let Some(reader) = &*file {
            return Ok(Arc::clone(reader));
        }
        let opened = self.blobs.open(&counted.payload.digest).map_err(unreadable)?;
        let reader = opened.ok_or_else(|| RowError::Damaged(format!("the stored update of {node} is missing")))?;
        *file = Some(Arc::clone(&reader));
        drop(file);
        let mut open = lock(&self.open);
        open.push_back(row);
        let oldest = if open.len() > OPEN_MAX { open.pop_front() } else { None };
        drop(open);
        if let Some(oldest) = oldest {
            *lock(&self.files[oldest]) = None;
        }
        Ok(reader)
    }

    /// Brings the values of small updates at these positions into memory, verified.
    async fn load(
        &mut self,
        records: &dyn Records,
        wanted: &[Range<usize>],
        inline_bytes_max: usize,
    ) -> Result<(), ComputeError> {
        let places = self.small();
        let is_loaded = |range: &Range<usize>| self.loaded.iter().any(|l| l.start <= range.start && range.end <= l.end);
        if places.is_empty() || wanted.iter().all(is_loaded) {
            return Ok(());
        }
        let whole = places.len() as u64 * self.bytes <= inline_bytes_max as u64;
        self.loaded = if whole { vec![0..self.values; 1] } else { wanted.to_vec() };
        self.gather(records, places, whole).await
    }

    /// Brings all bytes of small updates into memory, verified: at most 16 KiB each.
    async fn load_whole(&mut self, records: &dyn Records) -> Result<(), ComputeError> {
        let places = self.small();
        self.gather(records, places, true).await
    }

    /// The small updates.
    fn small(&self) -> BTreeMap<&'a NodeName, usize> {
        let small = self.plan.accepted.iter().enumerate().filter(|(_, (_, c))| c.inline);
        small.map(|(row, (name, _))| (name, row)).collect()
    }

    async fn gather(
        &mut self,
        records: &dyn Records,
        places: BTreeMap<&NodeName, usize>,
        whole: bool,
    ) -> Result<(), ComputeError> {
        self.inline = vec![None; self.plan.accepted.len()];
        let mut last: Option<NodeName> = None;
        loop {
            let page = store::payloads(records, &self.plan.key, last.as_ref()).await;
            let page = page.map_err(|e| ComputeError::Store(e.to_string()))?;
            last = page.last().map(|(node, _)| node.clone());
            if last.is_none() {
                break;
            }
            for (node, bytes) in page {
                let Some(row) = places.get(&node) else { continue };
                if Digest::of(&bytes) != self.plan.accepted[*row].1.payload.digest {
                    continue;
                }
                let part = |r: &Range<usize>| bytes.slice(r.start * 4..r.end * 4);
                self.inline[*row] = Some(if whole { bytes } else { self.loaded.iter().flat_map(part).collect() });
            }
        }
        match places.into_iter().find(|(_, row)| self.inline[*row].is_none()) {
            Some((node, row)) => {
                let detail = format!("the stored update of {node} is missing or not what was sent");
                Err(bad(self.plan, row, "damaged", detail))
            }
            None => Ok(()),
        }
    }
}

fn unreadable(error: StoreError) -> RowError {
    match error {
        StoreError::Damaged(what) => RowError::Damaged(what),
        StoreError::Conflict { .. }
        | StoreError::Fenced { .. }
        | StoreError::Full { .. }
        | StoreError::Unavailable(_) => RowError::Store(error.to_string()),
    }
}

impl Rows for Updates<'_> {
    fn read(&self, row: usize, start: usize, out: &mut [i32]) -> Result<(), RowError> {
        let (node, counted) = &self.plan.accepted[row];
        if !counted.inline {
            let bytes = simd::bytes_mut(out);
            self.reader(row)?.read_at(start as u64 * 4, bytes).map_err(unreadable)?;
        } else {
            let mut before = 0;
            let holds = |range: &&Range<usize>| {
                let found = range.start <= start && start + out.len() <= range.end;
                before += if found { start - range.start } else { range.len() };
                found
            };
            let found = self.loaded.iter().find(holds).map(|_| before * 4..(before + out.len()) * 4);
            let bytes = found.and_then(|found| self.inline[row].as_ref()?.get(found));
            let bytes = bytes.ok_or_else(|| RowError::Store(format!("values of {node} were not loaded")))?;
            simd::bytes_mut(out).copy_from_slice(bytes);
        }
        for value in out {
            *value = i32::from_le(*value);
        }
        Ok(())
    }

    fn digest(&self, row: usize) -> Digest {
        self.plan.accepted[row].1.payload.digest
    }
}

impl PackedRows for Updates<'_> {
    fn read_packed(&self, row: usize, offset: u64, out: &mut [u8]) -> Result<(), WorkError> {
        let (node, counted) = &self.plan.accepted[row];
        if !counted.inline {
            let read = self.reader(row).and_then(|reader| reader.read_at(offset, out).map_err(unreadable));
            return read.map_err(|e| match e {
                RowError::Damaged(detail) => WorkError::Update { row, reason: "damaged", detail },
                RowError::Store(detail) => WorkError::Read(detail),
            });
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = self.inline[row].as_ref().and_then(|bytes| bytes.get(start..start.saturating_add(out.len())));
        let found = found.ok_or_else(|| WorkError::Read(format!("bytes of {node} were not loaded")))?;
        out.copy_from_slice(found);
        Ok(())
    }
}

/// A bundle being written.
#[derive(Debug)]
struct Out {
    writer: Box<dyn BlobWriter>,
    gathered: Vec<u8>,
}

impl Out {
    async fn begin(blobs: &dyn Blobs, header: &[u8], size: u64) -> Result<Self, ComputeError> {
        let writer = blobs.writer(size).await.map_err(|e| ComputeError::Store(e.to_string()))?;
        Ok(Self { writer, gathered: header.to_vec() })
    }

    async fn write(&mut self, bytes: Vec<u8>) -> Result<(), ComputeError> {
        // Large pieces are written as they are: copying them costs as much as hashing.
        if bytes.len() >= WRITE {
            self.flush().await?;
            self.gathered = bytes;
            return self.flush().await;
        }
        self.gathered.extend_from_slice(&bytes);
        if self.gathered.len() >= WRITE { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), ComputeError> {
        let bytes = std::mem::take(&mut self.gathered);
        self.writer.write(bytes.into()).await.map_err(|e| ComputeError::Store(e.to_string()))
    }

    async fn finish(mut self) -> Result<BlobRef, ComputeError> {
        self.flush().await?;
        self.writer.finish().await.map_err(|e| ComputeError::Store(e.to_string()))
    }
}
