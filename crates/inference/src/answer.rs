//! From a node's output rows to predictions, refusing what cannot be an answer to the request.

use aivillage_base::Task;

use crate::request::{Prediction, Predictions};

/// Probabilities may exceed one by a rounding error.
const SLACK: f32 = 1e-3;

/// Predictions for `rows` rows, or one sentence about what is wrong with the outputs.
pub(crate) fn predictions(task: Task, rows: usize, outputs: Vec<Vec<f32>>) -> Result<Predictions, String> {
    if outputs.len() != rows {
        return Err(format!("it answered {} rows for {rows}", outputs.len()));
    }
    let width = task.outputs();
    let predictions: Result<Vec<Prediction>, String> = outputs
        .into_iter()
        .map(|row| {
            if row.len() != width {
                return Err(format!("it answered {} values for {width}", row.len()));
            }
            match task {
                Task::Classification { .. } => class(row),
                Task::Regression if row[0].is_finite() => Ok(Prediction::Value { value: row[0] }),
                Task::Regression => Err("its answer is not a finite number".to_owned()),
            }
        })
        .collect();
    Ok(Predictions { predictions: predictions? })
}

fn class(probabilities: Vec<f32>) -> Result<Prediction, String> {
    if !probabilities.iter().all(|p| (-SLACK..=1.0 + SLACK).contains(p)) {
        return Err("its answer holds no probabilities".to_owned());
    }
    let mut label = 0;
    for (i, p) in probabilities.iter().enumerate() {
        if *p > probabilities[label] {
            label = i;
        }
    }
    Ok(Prediction::Class { label, probability: probabilities[label], probabilities })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_label_is_named_and_the_first_of_equals() {
        let task = Task::Classification { classes: 3 };
        let out = predictions(task, 2, vec![vec![0.1, 0.7, 0.2], vec![0.4, 0.4, 0.2]]).unwrap();
        let labels: Vec<_> = out
            .predictions
            .iter()
            .map(|p| match p {
                Prediction::Class { label, .. } => *label,
                Prediction::Value { .. } => usize::MAX,
            })
            .collect();
        assert_eq!(labels, [1, 0]);
    }

    #[test]
    fn outputs_that_answer_another_question_are_refused() {
        let classes = Task::Classification { classes: 2 };
        assert!(predictions(classes, 2, vec![vec![0.5, 0.5]]).unwrap_err().contains("1 rows for 2"));
        assert!(predictions(classes, 1, vec![vec![1.0]]).unwrap_err().contains("1 values for 2"));
        assert!(predictions(classes, 1, vec![vec![f32::NAN, 0.5]]).is_err());
        assert!(predictions(Task::Regression, 1, vec![vec![f32::INFINITY]]).is_err());
    }
}
