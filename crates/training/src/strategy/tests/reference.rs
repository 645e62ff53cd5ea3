//! A round as the formulas say it, on small vectors: geometry in 128-bit integers, every choice applied naively.

use aivillage_base::fixed::Grid;
use aivillage_base::wire::LocalTraining;

use super::super::*;

/// Step 2^-20: updates of a few thousand are changes of some thousandths.
pub(super) const GRID: Grid = Grid { exponent: -20, bound: (1 << 23) - 1 };

/// A cohort with its updates; `second` is the second plane.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cohort {
    pub(super) updates: Vec<Vec<i32>>,
    pub(super) second: Vec<Vec<i32>>,
    pub(super) contributions: Vec<Contribution>,
}

impl Cohort {
    /// Honest plain updates of one example each.
    pub(super) fn plain(updates: Vec<Vec<i32>>) -> Self {
        let one = Contribution { weight: 1, steps: 1, initial_loss: Some(1.0), staleness: 0 };
        Self { second: updates.clone(), contributions: vec![one; updates.len()], updates }
    }

    /// The updates in another order.
    pub(super) fn permuted(&self, order: &[usize]) -> Self {
        Self {
            updates: order.iter().map(|i| self.updates[*i].clone()).collect(),
            second: order.iter().map(|i| self.second[*i].clone()).collect(),
            contributions: order.iter().map(|i| self.contributions[*i]).collect(),
        }
    }

    /// Every value of every update changed.
    pub(super) fn map(&self, change: impl Fn(usize, i32) -> i32) -> Self {
        let all = |rows: &[Vec<i32>]| {
            rows.iter().map(|row| row.iter().enumerate().map(|(i, v)| change(i, *v)).collect()).collect()
        };
        Self { updates: all(&self.updates), ..self.clone() }
    }
}

/// Model and server state between rounds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Server {
    pub(super) model: Vec<f32>,
    pub(super) state: Vec<Vec<f32>>,
    pub(super) rounds: u32,
}

impl Server {
    pub(super) fn new(strategy: &Strategy, parameters: usize) -> Self {
        let slots = strategy.rule().slots().len();
        Self { model: vec![0.0; parameters], state: vec![vec![0.0; parameters]; slots], rounds: 0 }
    }

    /// One round, by the book.
    pub(super) fn round(&mut self, strategy: &Strategy, cohort: &Cohort) -> Result<Choice, String> {
        let rule = strategy.rule();
        self.rounds += 1;
        let centred = rule.needs() == Needs::DistancesAndCentre;
        let geometry = geometry(&cohort.updates, centred.then(|| self.state[0].as_slice()));
        let training = training(rule);
        let facts = Facts {
            round: self.rounds,
            training: &training,
            population: u32::try_from(cohort.updates.len()).unwrap(),
            examples_max: None,
            accepted: u32::try_from(cohort.updates.len()).unwrap(),
            contributions: &cohort.contributions,
            geometry: &geometry,
        };
        let choice = rule.choose(&facts)?;
        let centre = if centred { self.state[0].clone() } else { Vec::new() };
        let direction = direction(&choice, &cohort.updates, &centre);
        let second = if rule.planes() == 2 { self::direction(&choice, &cohort.second, &[]) } else { Vec::new() };
        let mut state: Vec<&mut [f32]> = self.state.iter_mut().map(Vec::as_mut_slice).collect();
        let mut block =
            Block { weights: &mut self.model, direction: &direction, second: &second, state: &mut state, grid: GRID };
        rule.apply(&facts, &mut block);
        Ok(choice)
    }
}

/// The model after one round from zero: the direction, rounded to f32.
pub(super) fn moved(strategy: &Strategy, cohort: &Cohort) -> Vec<f32> {
    let mut server = Server::new(strategy, cohort.updates[0].len());
    server.round(strategy, cohort).unwrap();
    server.model
}

pub(super) fn training(rule: &dyn Rule) -> LocalTraining {
    LocalTraining {
        epochs: 1,
        batch_size: 8,
        learning_rate: 0.1,
        momentum: 0.0,
        weight_decay: 0.0,
        proximal_mu: rule.local().proximal_mu,
    }
}

/// Squared norms and distances of points on the grid.
pub(super) fn geometry(updates: &[Vec<i32>], centre: Option<&[f32]>) -> Geometry {
    #[expect(clippy::cast_possible_truncation, reason = "the centre lies on the grid")]
    let whole = |c: &[f32]| c.iter().map(|v| (f64::from(*v) / GRID.step()) as i32).collect::<Vec<_>>();
    let points: Vec<Vec<i32>> = updates.iter().cloned().chain(centre.map(whole)).collect();
    let unit = GRID.step() * GRID.step();
    let squared = |a: &[i32], b: &[i32]| {
        let sum: i128 = a.iter().zip(b).map(|(a, b)| (i128::from(*a) - i128::from(*b)).pow(2)).sum();
        #[expect(clippy::cast_precision_loss, reason = "rounded once")]
        let sum = sum as f64;
        sum * unit
    };
    let zero = vec![0; updates[0].len()];
    Geometry {
        norms_squared: points.iter().map(|p| squared(p, &zero)).collect(),
        distances_squared: points.iter().flat_map(|a| points.iter().map(|b| squared(a, b))).collect(),
    }
}

/// A choice, column by column.
#[expect(clippy::cast_precision_loss, reason = "rounded once")]
fn direction(choice: &Choice, updates: &[Vec<i32>], centre: &[f32]) -> Vec<f64> {
    let column = |i: usize, rows: &[usize]| {
        let mut column: Vec<i64> = rows.iter().map(|row| i64::from(updates[*row][i])).collect();
        column.sort_unstable();
        column
    };
    let mean = |values: &[i64]| values.iter().sum::<i64>() as f64 / values.len() as f64 * GRID.step();
    let one = |i: usize| match choice {
        Choice::Mean { weights, divisor, centre: share } => {
            let sum: i128 = weights.iter().zip(updates).map(|(w, u)| i128::from(*w) * i128::from(u[i])).sum();
            sum as f64 / divisor * GRID.step() + centre.get(i).map_or(0.0, |c| share * f64::from(*c))
        }
        Choice::Middle { rows, cut } => {
            let column = column(i, rows);
            mean(&column[*cut..column.len() - cut])
        }
        Choice::NearMedian { rows, keep } => {
            let mut column = column(i, rows);
            let (low, high) = (column[(column.len() - 1) / 2], column[column.len() / 2]);
            column.sort_by_key(|v| ((2 * v - low - high).abs(), *v));
            mean(&column[..*keep])
        }
    };
    (0..updates[0].len()).map(one).collect()
}
