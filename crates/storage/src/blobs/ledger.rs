//! Which blobs there are and how much room is left.
//!
//! Promise: a blob is listed only once it is durable; bytes promised to writers are not promised twice.
//! Pure: it must not know the file system; free disk space is an argument.

use std::collections::BTreeMap;

use aivillage_base::Digest;
use aivillage_base::ports::StoreError;

/// Held back on the disk so that records can still be written when blobs have filled it: 64 MiB.
pub(super) const RESERVE: u64 = 64 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    quota: Option<u64>,
    blobs: BTreeMap<Digest, u64>,
    /// Bytes of all listed blobs.
    stored: u64,
    /// Bytes promised to open writers …
    promised: u64,
    /// … and how many of those are on the disk already.
    written: u64,
}

impl Ledger {
    pub(super) fn new(quota: Option<u64>) -> Self {
        Self { quota, ..Self::default() }
    }

    pub(super) fn len(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).copied()
    }

    pub(super) fn digests(&self) -> Vec<Digest> {
        self.blobs.keys().copied().collect()
    }

    /// Bytes that can still be promised; `free` is the disk's free space.
    pub(super) fn available(&self, free: u64) -> u64 {
        let outstanding = self.promised.saturating_sub(self.written);
        let disk = free.saturating_sub(RESERVE).saturating_sub(outstanding);
        self.quota.map_or(disk, |quota| disk.min(quota.saturating_sub(self.stored).saturating_sub(self.promised)))
    }

    /// Promises `bytes` to a writer.
    pub(super) fn promise(&mut self, bytes: u64, free: u64) -> Result<(), StoreError> {
        let available = self.available(free);
        if bytes > available {
            return Err(StoreError::Full { needed: bytes, available });
        }
        self.promised += bytes;
        Ok(())
    }

    /// Notes that promised bytes have reached the disk.
    pub(super) fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
    }

    /// Takes a promise back when its writer ends.
    pub(super) fn settle(&mut self, promised: u64, written: u64) {
        self.promised = self.promised.saturating_sub(promised);
        self.written = self.written.saturating_sub(written);
    }

    /// Lists a durable blob; again is fine.
    pub(super) fn insert(&mut self, digest: Digest, len: u64) {
        let before = self.blobs.insert(digest, len).unwrap_or(0);
        self.stored = self.stored.saturating_sub(before) + len;
    }

    /// Forgets a blob; true if it was there.
    pub(super) fn remove(&mut self, digest: &Digest) -> bool {
        let before = self.blobs.remove(digest);
        self.stored = self.stored.saturating_sub(before.unwrap_or(0));
        before.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1024 * 1024;

    #[test]
    fn the_disk_bounds_what_is_promised_but_counts_written_bytes_once() {
        let mut ledger = Ledger::new(None);
        let free = RESERVE + 100 * MB;
        assert_eq!(ledger.available(free), 100 * MB);
        ledger.promise(60 * MB, free).unwrap();
        assert_eq!(ledger.available(free), 40 * MB);
        assert!(matches!(
            ledger.promise(41 * MB, free),
            Err(StoreError::Full { needed, available }) if needed == 41 * MB && available == 40 * MB
        ));
        // 50 MB arrive: the disk itself now has that much less, the promise must not take it again.
        ledger.wrote(50 * MB);
        assert_eq!(ledger.available(free - 50 * MB), 40 * MB);
        ledger.insert(Digest::of(b"x"), 50 * MB);
        ledger.settle(60 * MB, 50 * MB);
        assert_eq!(ledger.available(free - 50 * MB), 50 * MB);
    }

    #[test]
    fn the_reserve_and_the_quota_never_underflow() {
        let mut ledger = Ledger::new(Some(10));
        assert_eq!(ledger.available(RESERVE - 1), 0);
        ledger.insert(Digest::of(b"more than the quota, from before it was lowered"), 50);
        assert_eq!(ledger.available(u64::MAX), 0);
        assert!(ledger.remove(&Digest::of(b"more than the quota, from before it was lowered")));
        assert!(!ledger.remove(&Digest::of(b"never there")));
        assert_eq!(ledger.available(u64::MAX), 10);
    }
}
