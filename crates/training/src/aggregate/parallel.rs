//! Work on all cores, in order, without a pool: threads live for one wave.
//!
//! A thread costs about 20 microseconds, a wave some milliseconds. Small work stays on the calling thread, so a simulator
//! with thousands of tiny models starts none.

use std::num::NonZeroUsize;

use super::WorkError;

/// Values that are worth a thread.
const WORTH: usize = 128 * 1024;
/// Threads at most: beyond that memory is the limit, and each needs a buffer of its own.
const THREADS_MAX: usize = 64;

/// How many threads may be used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threads(usize);

impl Threads {
    /// At most `wanted`; 0 = as many as there are cores.
    pub(super) fn new(wanted: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self(if wanted == 0 { cores() } else { wanted }.clamp(1, THREADS_MAX))
    }

    /// How many are worth it for `values` values.
    pub(super) fn for_values(self, values: usize) -> usize {
        self.0.min(values / WORTH).max(1)
    }
}

/// Does `work` on every item, each on a thread of its own, the last on this one; of several errors the one that names the
/// first update.
pub(super) fn each<T: Send>(
    mut items: Vec<T>,
    work: impl Fn(T) -> Result<(), WorkError> + Sync,
) -> Result<(), WorkError> {
    let Some(last) = items.pop() else { return Ok(()) };
    if items.is_empty() {
        return work(last);
    }
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        let mut results = vec![work(last)];
        results.extend(others.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }));
        results.into_iter().filter_map(Result::err).min_by_key(rank).map_or(Ok(()), Err)
    })
}

fn rank(error: &WorkError) -> (usize, usize) {
    match error {
        WorkError::Update { row, .. } => (0, *row),
        WorkError::Unusable(_) => (1, 0),
        WorkError::Read(_) => (2, 0),
    }
}

/// Length of each of `parts` pieces of `len`, a multiple of `unit`.
pub(super) fn stripe(len: usize, parts: usize, unit: usize) -> usize {
    len.div_ceil(parts).next_multiple_of(unit).max(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_and_the_first_row_is_blamed() {
        let mut done = vec![0; 9];
        each(done.iter_mut().enumerate().collect(), |(i, place)| {
            *place = i + 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(done, (1..=9).collect::<Vec<_>>());
        let bad = |row| WorkError::Update { row, reason: "damaged", detail: String::new() };
        let result = each(vec![5, 3, 9], |row| Err(if row == 9 { WorkError::Read(String::new()) } else { bad(row) }));
        assert_eq!(result, Err(bad(3)));
        assert_eq!(each(Vec::<u8>::new(), |_| Ok(())), Ok(()));
    }

    #[test]
    fn small_work_needs_no_thread() {
        assert_eq!(Threads::new(8).for_values(10_000), 1);
        assert_eq!(Threads::new(8).for_values(100_000_000), 8);
        assert_eq!(stripe(100, 3, 64), 64);
        assert_eq!(stripe(0, 3, 64), 64);
    }
}
