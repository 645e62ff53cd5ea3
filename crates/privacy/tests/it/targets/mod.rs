//! Bodies of the fuzz targets: any bytes in, and what always holds is asserted. `fuzz/` feeds them for hours; the tests here
//! feed them the committed seeds (`fuzz/seeds`) and a few thousand changed ones, so that none of them falls behind the code.
//!
//! Bytes are either a message as it travels, or choices of somebody who lies: which message, to whom, changed how.

pub(crate) mod coordinator;
pub(crate) mod messages;
pub(crate) mod participant;
pub(crate) mod sharing;

/// What a run came to: a target whose choices never get anywhere would find nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Messages decoded, or answers given.
    pub(crate) answers: usize,
    /// Alarms, or refusals.
    pub(crate) refusals: usize,
    /// Sums or shares opened.
    pub(crate) opened: usize,
}

/// Choices taken from bytes; zeros once they are used up.
#[derive(Debug)]
pub(crate) struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn are_left(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `bound`, 0 for 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound.max(1)
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// Changes one bit.
    pub(crate) fn flip(&mut self, bytes: &mut [u8]) {
        let at = self.below(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << self.below(8);
        }
    }

    /// Changes a list as a liar would: left out, twice, in another order, empty.
    pub(crate) fn list<T: Clone>(&mut self, list: &mut Vec<T>) {
        let (at, to) = (self.below(list.len()), self.below(list.len()));
        match self.below(5) {
            0 => {}
            _ if list.is_empty() => {}
            1 => drop(list.remove(at)),
            2 => list.insert(to, list[at].clone()),
            3 => list.swap(at, to),
            _ => list.truncate(at),
        }
    }

    /// Those of a list whose bits are set in the next byte.
    pub(crate) fn some_of<T: Clone>(&mut self, list: &[T]) -> Vec<T> {
        let bits = self.byte();
        list.iter().enumerate().filter(|(at, _)| bits >> (at % 8) & 1 == 0).map(|(_, item)| item.clone()).collect()
    }
}
