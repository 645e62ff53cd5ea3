//! The same rounds in the plainest way: one coordinate after the other, 128-bit integers, a sort for every rank.

use aivillage_base::Digest;

use super::super::{Floats, RowError, Rows, Tensor, Wave, Work, WorkError};
use crate::strategy::{Block, CENTRE, Choice, Facts, Geometry, Needs, Strategy};

/// Updates in memory.
#[derive(Debug, Clone)]
pub(super) struct Updates(pub(super) Vec<Vec<i32>>);

impl Rows for Updates {
    fn read(&self, row: usize, start: usize, out: &mut [i32]) -> Result<(), RowError> {
        let found = self.0[row].get(start..start + out.len());
        out.copy_from_slice(found.ok_or_else(|| RowError::Damaged("cut".to_owned()))?);
        Ok(())
    }

    fn digest(&self, row: usize) -> Digest {
        Digest::of(&row.to_le_bytes())
    }
}

/// A vector in memory.
#[derive(Debug, Clone)]
pub(super) struct Vector(pub(super) Vec<f32>);

impl Floats for Vector {
    fn read(&self, start: usize, out: &mut [f32]) -> Result<(), String> {
        let found = self.0.get(start..start + out.len());
        out.copy_from_slice(found.ok_or_else(|| "cut".to_owned())?);
        Ok(())
    }
}

/// The model and the state as bits, in the order of coordinates.
pub(super) type Made = Vec<Vec<u32>>;

/// What the aggregation makes.
pub(super) fn made(work: Work<'_>, rows: &dyn Rows) -> Result<Made, WorkError> {
    let mut out: Made = vec![Vec::new(); 1 + work.state.len()];
    let mut aggregation = work.begin()?;
    while aggregation.wanted().is_some() {
        let Some(Wave { start, model, state }) = aggregation.advance(rows)? else { continue };
        assert_eq!(start, out[0].len(), "waves follow each other");
        for (out, bytes) in out.iter_mut().zip(std::iter::once(model).chain(state)) {
            out.extend(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)));
        }
    }
    Ok(out)
}

/// What it should make.
pub(super) fn expected(work: &Work<'_>, rows: &Updates) -> Made {
    let mut vectors: Vec<Vec<f32>> = Vec::new();
    let parameters = work.tensors.iter().map(|t| t.len).sum();
    for source in std::iter::once(Some(work.model)).chain(work.state.iter().copied()) {
        let mut values = vec![0.0; parameters];
        if let Some(source) = source {
            source.read(0, &mut values).unwrap();
        }
        vectors.push(values);
    }
    let rule = work.strategy.rule();
    let centre = rule.slots().iter().position(|slot| *slot == CENTRE);
    let geometry = geometry(work, rows, centre.map(|slot| &vectors[1 + slot][..]));
    let facts = Facts {
        round: work.round,
        training: work.training,
        population: work.population,
        examples_max: work.examples_max,
        accepted: u32::try_from(work.contributions.len()).unwrap(),
        contributions: work.contributions,
        geometry: &geometry,
    };
    let choice = rule.choose(&facts).unwrap();
    let shared: usize = work.tensors.iter().filter(|t| !t.personal).map(|t| t.len).sum();
    let (mut at, mut position) = (0, 0);
    for tensor in work.tensors {
        for _ in 0..tensor.len {
            if !tensor.personal {
                let of_centre = centre.map_or(0.0, |slot| f64::from(vectors[1 + slot][at]));
                let value = |plane: usize| direction(&choice, tensor, rows, position + plane * shared, of_centre);
                let second = if rule.planes() == 2 { vec![value(1)] } else { Vec::new() };
                let mut one: Vec<&mut [f32]> = vectors.iter_mut().map(|v| &mut v[at..=at]).collect();
                let (weights, state) = one.split_first_mut().unwrap();
                let direction = [value(0)];
                let mut block = Block { weights, direction: &direction, second: &second, state, grid: tensor.grid };
                rule.apply(&facts, &mut block);
                position += 1;
            }
            at += 1;
        }
    }
    vectors.iter().map(|v| v.iter().map(|x| x.to_bits()).collect()).collect()
}

fn direction(choice: &Choice, tensor: &Tensor, rows: &Updates, position: usize, of_centre: f64) -> f64 {
    let value = |row: usize| i128::from(rows.0[row][position]);
    let sorted = |chosen: &[usize]| {
        let mut values: Vec<i128> = chosen.iter().map(|row| value(*row)).collect();
        values.sort_unstable();
        values
    };
    let mean = |values: &[i128]| values.iter().sum::<i128>() as f64 / values.len() as f64 * tensor.grid.step();
    match choice {
        Choice::Mean { weights, divisor, centre } => {
            let sum: i128 = weights.iter().enumerate().map(|(row, w)| value(row) * i128::from(*w)).sum();
            let mean = sum as f64 / divisor * tensor.grid.step();
            if *centre == 0.0 { mean } else { mean + centre * of_centre }
        }
        Choice::Middle { rows, cut } => {
            let values = sorted(rows);
            mean(&values[*cut..values.len() - cut])
        }
        Choice::NearMedian { rows, keep } => {
            let mut values = sorted(rows);
            let twice = values[(values.len() - 1) / 2] + values[values.len() / 2];
            values.sort_by_key(|v| ((2 * v - twice).abs(), *v));
            mean(&values[..*keep])
        }
    }
}

fn geometry(work: &Work<'_>, rows: &Updates, centre: Option<&[f32]>) -> Geometry {
    let needs = work.strategy.rule().needs();
    if needs == Needs::Nothing {
        return Geometry::default();
    }
    let mut points: Vec<Vec<i32>> = rows.0.clone();
    if needs == Needs::DistancesAndCentre {
        let centre = centre.unwrap();
        let mut at = 0;
        let mut point = Vec::new();
        for tensor in work.tensors {
            let values = &centre[at..at + tensor.len];
            if !tensor.personal {
                point.extend(values.iter().map(|v| (f64::from(*v) / tensor.grid.step()).round_ties_even() as i32));
            }
            at += tensor.len;
        }
        points.push(point);
    }
    let mut exponents: Vec<i32> = work.tensors.iter().map(|t| t.grid.exponent).collect();
    exponents.sort_unstable();
    exponents.dedup();
    let squared = |difference: &dyn Fn(usize) -> i128| {
        let of_grid = |exponent: &i32| {
            let (mut position, mut sum) = (0, 0);
            for tensor in work.tensors.iter().filter(|t| !t.personal) {
                let counts = tensor.grid.exponent == *exponent;
                sum += (position..position + tensor.len).filter(|_| counts).map(|i| difference(i).pow(2)).sum::<i128>();
                position += tensor.len;
            }
            sum as f64 * f64::powi(2.0, 2 * exponent)
        };
        exponents.iter().map(of_grid).sum::<f64>()
    };
    let at = |p: &Vec<i32>, i: usize| i128::from(p[i]);
    let norms_squared = points.iter().map(|p| squared(&|i| at(p, i))).collect();
    let distance = |a: &Vec<i32>, b: &Vec<i32>| squared(&|i| at(a, i) - at(b, i));
    let distances_squared = match needs {
        Needs::Distances | Needs::DistancesAndCentre => {
            points.iter().flat_map(|a| points.iter().map(|b| distance(a, b)).collect::<Vec<_>>()).collect()
        }
        Needs::Nothing | Needs::Norms => Vec::new(),
    };
    Geometry { norms_squared, distances_squared }
}

/// A strategy by its name and settings.
pub(super) fn strategy(name: &str, config: serde_json::Value) -> Strategy {
    crate::strategy::named(name, config.as_object().unwrap()).unwrap().strategy
}
