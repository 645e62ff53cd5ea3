//! Bundles in a folder, named by digest: written beside and renamed, verified when read, oldest use out first.
//!
//! Blocking; a cache, so nothing here needs to be durable: what is damaged or gone is fetched again.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Mutex;

use aivillage_base::Digest;
use aivillage_base::wire::BlobRef;
use bytes::Bytes;

#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    bound: u64,
    /// One writer at a time, so that the bound holds.
    writing: Mutex<()>,
}

impl Disk {
    pub(super) fn new(dir: PathBuf, bound: u64) -> Self {
        Self { dir, bound, writing: Mutex::new(()) }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// The bundle, if it is here and whole; a damaged file is removed.
    pub(super) fn read(&self, blob: BlobRef) -> Option<Bytes> {
        let path = self.path(&blob.digest);
        let mut file = File::options().read(true).write(true).open(&path).ok()?;
        let mut bytes = Vec::new();
        // One byte more than promised is enough to know that it is not the file.
        let limit = blob.bytes.saturating_add(1);
        let read = (&mut file).take(limit).read_to_end(&mut bytes);
        if read.is_ok() && Digest::of(&bytes) == blob.digest {
            // The time of modification is the time of last use: what was used longest ago goes first.
            let _old_time_stays = File::set_modified(&file, now());
            return Some(bytes.into());
        }
        tracing::warn!(model = %blob.digest, "the cached model is damaged: it is removed and fetched again");
        let _fetched_again_anyway = fs::remove_file(&path);
        None
    }

    /// Keeps a bundle, making room first; one that is larger than the folder's bound is not kept.
    pub(super) fn write(&self, blob: BlobRef, bytes: &[u8]) -> io::Result<()> {
        if blob.bytes > self.bound {
            return Ok(());
        }
        let _one = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        fs::create_dir_all(&self.dir)?;
        self.make_room(blob.bytes)?;
        let path = self.path(&blob.digest);
        let tmp = path.with_extension("tmp");
        let written =
            File::create(&tmp).and_then(|mut file| file.write_all(bytes)).and_then(|()| fs::rename(&tmp, &path));
        if written.is_err() {
            let _nothing_left = fs::remove_file(&tmp);
        }
        written
    }

    /// Removes leftovers and the oldest bundles until `bytes` more fit. Files that are not bundles are left alone.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stem = name.strip_suffix(".tmp").unwrap_or(&name);
            if stem.parse::<Digest>().is_err() {
                continue;
            }
            if stem.len() < name.len() {
                fs::remove_file(entry.path())?;
                continue;
            }
            let meta = entry.metadata()?;
            kept.push((meta.modified()?, meta.len(), entry.path()));
        }
        kept.sort();
        let mut used: u64 = kept.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in kept {
            if used + bytes <= self.bound {
                break;
            }
            fs::remove_file(path)?;
            used -= len;
        }
        Ok(())
    }
}

/// A file's time of last use is for the operating system's own order of files, not for decisions of the house.
#[expect(clippy::disallowed_methods, reason = "file times are compared with file times only")]
fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
