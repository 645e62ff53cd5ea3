//! Work on all cores, without a pool: threads live for one wave.
//!
//! A thread costs about 20 microseconds, a wave some milliseconds. Small work stays on the calling thread, so a simulator
//! with thousands of tiny models starts none. Work is cut into more pieces than there are threads, and who is free takes the
//! next: a thread that the system starts late, or another program holds up, does less.

use std::num::NonZeroUsize;
use std::sync::{LazyLock, Mutex, PoisonError};

use super::WorkError;

/// Values that are worth a thread.
const WORTH: usize = 128 * 1024;
/// Threads at most: beyond that memory is the limit, and each needs a buffer of its own.
const THREADS_MAX: usize = 64;
/// Pieces of work for each thread.
const PIECES: usize = 4;

/// Cores that this process may use. Asked once: the system reads several files to answer.
static CORES: LazyLock<usize> = LazyLock::new(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get));

/// How many threads may be used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threads(usize);

impl Threads {
    /// At most `wanted`; 0 = as many as there are cores.
    pub(super) fn new(wanted: usize) -> Self {
        Self(if wanted == 0 { *CORES } else { wanted }.clamp(1, THREADS_MAX))
    }

    /// How many are worth it for `values` values.
    pub(super) fn for_values(self, values: usize) -> usize {
        self.0.min(values / WORTH).max(1)
    }
}

/// Does `work` on every item, on `threads` threads of which this one is the first; each has a state of its own, which is
/// returned. Of several errors the one that names the first update.
pub(super) fn each<T: Send, S: Send>(
    threads: usize,
    items: Vec<T>,
    begin: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> Result<(), WorkError> + Sync,
) -> Result<Vec<S>, WorkError> {
    let others = threads.min(items.len()).saturating_sub(1);
    let queue = Mutex::new(items.into_iter());
    let take = || {
        let mut state = begin();
        let mut worst: Option<WorkError> = None;
        loop {
            // Taking the next item leaves nothing half-done.
            let Some(item) = queue.lock().unwrap_or_else(PoisonError::into_inner).next() else { break };
            let failed = work(&mut state, item).err();
            worst = worst.into_iter().chain(failed).min_by_key(rank);
        }
        (state, worst)
    };
    let done = std::thread::scope(|scope| {
        let running: Vec<_> = (0..others).map(|_| scope.spawn(take)).collect();
        let mut done = vec![take()];
        done.extend(running.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }));
        done
    });
    let (states, errors): (Vec<S>, Vec<Option<WorkError>>) = done.into_iter().unzip();
    errors.into_iter().flatten().min_by_key(rank).map_or(Ok(states), Err)
}

fn rank(error: &WorkError) -> (usize, usize) {
    match error {
        WorkError::Update { row, .. } => (0, *row),
        WorkError::Unusable(_) => (1, 0),
        WorkError::Read(_) => (2, 0),
    }
}

/// Length of the pieces of `len` for so many threads, a multiple of `unit`; a single thread has one piece.
pub(super) fn piece(len: usize, threads: usize, unit: usize) -> usize {
    stripe(len, if threads > 1 { threads * PIECES } else { 1 }, unit)
}

/// Length of the pieces of `len`, one a thread, a multiple of `unit`.
pub(super) fn stripe(len: usize, threads: usize, unit: usize) -> usize {
    len.div_ceil(threads).next_multiple_of(unit).max(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_and_the_first_row_is_blamed() {
        for threads in [1, 3, 20] {
            let mut done = vec![0; 9];
            let mark = |count: &mut usize, (i, place): (usize, &mut usize)| {
                (*place, *count) = (i + 1, *count + 1);
                Ok(())
            };
            let counts = each(threads, done.iter_mut().enumerate().collect(), || 0, mark).unwrap();
            assert_eq!(done, (1..=9).collect::<Vec<_>>());
            assert_eq!((counts.len(), counts.iter().sum::<usize>()), (threads.min(9), 9));
            let bad = |row| WorkError::Update { row, reason: "damaged", detail: String::new() };
            let fail = |(): &mut (), row| Err(if row == 9 { WorkError::Read(String::new()) } else { bad(row) });
            assert_eq!(each(threads, vec![5, 3, 9], || (), fail), Err(bad(3)));
            assert_eq!(each(threads, Vec::<usize>::new(), || (), fail), Ok(vec![()]));
        }
    }

    #[test]
    fn small_work_needs_no_thread() {
        assert_eq!(Threads::new(8).for_values(10_000), 1);
        assert_eq!(Threads::new(8).for_values(100_000_000), 8);
        assert_eq!(piece(100, 1, 64), 128);
        assert_eq!(piece(10_000, 2, 64), 1_280);
        assert_eq!(piece(0, 3, 64), 64);
    }
}
