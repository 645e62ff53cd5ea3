//! Where coordinates are: in the model, in an update, on which grid.
//!
//! Coordinates of the model count all tensors; positions in an update count those that travel, so a run of the model's
//! coordinates is one run of positions whatever stays at home in between.

use std::ops::Range;

use aivillage_base::fixed::Grid;

/// A tensor as aggregation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    /// Number of values.
    pub len: usize,
    /// Grid of its integers.
    pub grid: Grid,
    /// True if it stays on the nodes: no update holds it, and nothing changes it here.
    pub personal: bool,
    /// True if it holds variances, which are never below zero.
    pub variances: bool,
}

/// A run of coordinates of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// First coordinate in the model.
    pub(super) start: usize,
    /// Number of coordinates.
    pub(super) len: usize,
    /// Grid.
    pub(super) grid: Grid,
    /// Position of the first one in an update; the position of what follows if these stay at home.
    pub(super) position: usize,
    /// True if no update holds them.
    pub(super) personal: bool,
    /// True if they are variances.
    pub(super) variances: bool,
}

/// All tensors of a model.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    tensors: Vec<Segment>,
    /// Coordinates of the model.
    pub(super) parameters: usize,
    /// Positions of one plane of an update.
    pub(super) shared: usize,
}

impl Layout {
    pub(super) fn new(tensors: &[Tensor]) -> Self {
        let (mut start, mut position) = (0, 0);
        let place = |tensor: &Tensor| {
            let Tensor { len, grid, personal, variances } = *tensor;
            let placed = Segment { start, len, grid, position, personal, variances };
            start += tensor.len;
            position += if tensor.personal { 0 } else { tensor.len };
            placed
        };
        let tensors = tensors.iter().map(place).collect();
        Self { tensors, parameters: start, shared: position }
    }

    /// The runs that make up these coordinates of the model.
    pub(super) fn segments(&self, coordinates: Range<usize>) -> impl Iterator<Item = Segment> + '_ {
        let first = self.tensors.partition_point(|t| t.start + t.len <= coordinates.start);
        let inside = self.tensors[first..].iter().take_while(move |t| t.start < coordinates.end);
        inside.map(move |t| {
            let start = t.start.max(coordinates.start);
            let len = (t.start + t.len).min(coordinates.end) - start;
            let position = if t.personal { t.position } else { t.position + (start - t.start) };
            Segment { start, len, position, ..*t }
        })
    }

    /// The runs that travel.
    pub(super) fn travelling(&self) -> impl Iterator<Item = Segment> + '_ {
        self.tensors.iter().copied().filter(|t| !t.personal && t.len > 0)
    }

    /// Positions of an update's first plane that these coordinates of the model have.
    pub(super) fn positions(&self, coordinates: Range<usize>) -> Range<usize> {
        let mut found: Option<Range<usize>> = None;
        for segment in self.segments(coordinates).filter(|s| !s.personal) {
            let end = segment.position + segment.len;
            found = Some(found.map_or(segment.position, |f| f.start)..end);
        }
        found.unwrap_or(0..0)
    }

    /// Bounds of the values at these positions of a plane, as runs of equal bound: (length, bound).
    pub(super) fn bounds(&self, positions: Range<usize>) -> Vec<(usize, i32)> {
        let mut runs: Vec<(usize, i32)> = Vec::new();
        for tensor in self.travelling() {
            let start = tensor.position.max(positions.start);
            let end = (tensor.position + tensor.len).min(positions.end);
            if start >= end {
                continue;
            }
            match runs.last_mut() {
                Some((len, bound)) if *bound == tensor.grid.bound => *len += end - start,
                Some(_) | None => runs.push((end - start, tensor.grid.bound)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Grid = Grid { exponent: -1, bound: 1 };
    const B: Grid = Grid { exponent: -2, bound: 2 };

    fn layout() -> Layout {
        let tensor = |len, grid, personal| Tensor { len, grid, personal, variances: false };
        Layout::new(&[tensor(10, A, false), tensor(5, B, true), tensor(20, B, false), tensor(3, B, false)])
    }

    #[test]
    fn coordinates_are_cut_at_tensor_borders() {
        let found: Vec<Segment> = layout().segments(5..17).collect();
        let segment = |start, len, grid, position, personal| {
            let variances = false;
            Segment { start, len, grid, position, personal, variances }
        };
        assert_eq!(found, [segment(5, 5, A, 5, false), segment(10, 5, B, 10, true), segment(15, 2, B, 10, false)]);
    }

    #[test]
    fn what_stays_at_home_has_no_positions() {
        let layout = layout();
        assert_eq!((layout.parameters, layout.shared), (38, 33));
        assert_eq!(layout.positions(5..17), 5..12);
        assert_eq!(layout.positions(11..14), 0..0);
        assert_eq!(layout.positions(0..38), 0..33);
    }

    #[test]
    fn bounds_are_runs_of_equal_bound() {
        assert_eq!(layout().bounds(5..33), [(5, 1), (23, 2)]);
        assert_eq!(layout().bounds(31..32), [(1, 2)]);
        assert_eq!(layout().bounds(0..0), []);
    }
}
