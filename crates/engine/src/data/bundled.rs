//! Real data sets that come with the program: provenance, licences and checksums are in `data/README.md`.
//!
//! Scaling uses published constants only, never statistics of anybody's shard: what a node's features mean must not depend
//! on which rows it holds.

use std::io::Read;

use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};

use super::{DataError, Dataset};

/// 1,797 rows of 64 pixels (0 to 16) and the label.
pub(super) const DIGITS: &[u8] = include_bytes!("../../data/digits.csv.gz");
/// A heading line, then 569 rows of 30 measurements and the label.
pub(super) const BREAST_CANCER: &[u8] = include_bytes!("../../data/breast_cancer.csv.gz");

/// A bundled data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bundled {
    /// Handwritten digits, 8 x 8 pixels divided by 16, labels 0 to 9.
    Digits,
    /// Breast cancer Wisconsin (diagnostic): 30 measurements, each mapped so that the range published with the data set is
    /// [-1, 1]; label 0 = malignant, 1 = benign.
    BreastCancer,
}

impl Bundled {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Digits, Self::BreastCancer];

    /// Its name in configuration and jobs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::BreastCancer => "breast_cancer",
        }
    }

    /// What its labels mean, for people.
    #[must_use]
    pub fn label_names(self) -> &'static [&'static str] {
        match self {
            Self::Digits => &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
            Self::BreastCancer => &["malignant", "benign"],
        }
    }
}

/// All rows of a bundled data set, scaled.
#[must_use]
pub fn bundled(which: Bundled) -> Dataset {
    let parsed = match which {
        Bundled::Digits => parse(DIGITS, 0, 64).and_then(|(mut x, labels)| {
            for v in &mut x {
                *v /= 16.0;
            }
            Dataset::classification(which.name(), vec![64], 10, x, labels)
        }),
        Bundled::BreastCancer => parse(BREAST_CANCER, 1, 30).and_then(|(mut x, labels)| {
            for row in x.chunks_exact_mut(30) {
                for (v, (low, high)) in row.iter_mut().zip(BREAST_CANCER_RANGES) {
                    *v = 2.0 * (*v - low) / (high - low) - 1.0;
                }
            }
            Dataset::classification(which.name(), vec![30], 2, x, labels)
        }),
    };
    parsed.expect("invariant: the embedded files are those whose checksums the tests compare")
}

fn parse(gz: &[u8], heading: usize, features: usize) -> Result<(Vec<f32>, Vec<u32>), DataError> {
    let at_fault = |what: &str| DataError::Description(format!("a bundled data set is damaged: {what}"));
    let mut text = String::new();
    GzDecoder::new(gz).read_to_string(&mut text).map_err(|_| at_fault("not gzip"))?;
    let (mut x, mut labels) = (Vec::new(), Vec::new());
    for line in text.lines().skip(heading) {
        let mut cells = line.split(',');
        let before = x.len();
        for cell in cells.by_ref().take(features) {
            x.push(cell.trim().parse::<f32>().map_err(|_| at_fault("not a number"))?);
        }
        let label = cells.next().and_then(|c| c.trim().parse().ok()).ok_or_else(|| at_fault("no label"))?;
        if x.len() - before != features || cells.next().is_some() {
            return Err(at_fault("a row of another length"));
        }
        labels.push(label);
    }
    Ok((x, labels))
}

/// Minimum and maximum of each attribute, as printed in the data set's description (`data/breast_cancer.txt`).
const BREAST_CANCER_RANGES: [(f32, f32); 30] = [
    (6.981, 28.11),
    (9.71, 39.28),
    (43.79, 188.5),
    (143.5, 2501.0),
    (0.053, 0.163),
    (0.019, 0.345),
    (0.0, 0.427),
    (0.0, 0.201),
    (0.106, 0.304),
    (0.05, 0.097),
    (0.112, 2.873),
    (0.36, 4.885),
    (0.757, 21.98),
    (6.802, 542.2),
    (0.002, 0.031),
    (0.002, 0.135),
    (0.0, 0.396),
    (0.0, 0.053),
    (0.008, 0.079),
    (0.001, 0.03),
    (7.93, 36.04),
    (12.02, 49.54),
    (50.41, 251.2),
    (185.2, 4254.0),
    (0.071, 0.223),
    (0.027, 1.058),
    (0.0, 1.252),
    (0.0, 0.291),
    (0.156, 0.664),
    (0.055, 0.208),
];

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_files_are_those_whose_sums_the_readme_prints() {
        let readme = include_str!("../../data/README.md");
        let mut unpacked = Vec::new();
        GzDecoder::new(BREAST_CANCER).read_to_end(&mut unpacked).unwrap();
        for sum in [sha256(DIGITS), sha256(BREAST_CANCER), sha256(&unpacked)] {
            assert!(readme.contains(&sum), "{sum}");
        }
        assert_eq!(sha256(DIGITS), "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22");
        assert_eq!(sha256(&unpacked), "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed");
    }

    #[test]
    fn rows_labels_and_ranges_are_as_described() {
        let check = |which: Bundled, width: usize, counts: &[usize], low: f32, high: f32| {
            let data = bundled(which);
            let rows = counts.iter().sum();
            assert_eq!((data.rows(), data.input(), data.name()), (rows, [width].as_slice(), which.name()));
            let count = |label: usize| data.labels().unwrap().iter().filter(|l| **l as usize == label).count();
            assert_eq!((0..counts.len()).map(count).collect::<Vec<_>>(), counts);
            assert_eq!(which.label_names().len(), counts.len());
            let x = data.x(0..rows);
            let least = x.iter().copied().fold(f32::INFINITY, f32::min);
            let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert!(low <= least && most <= high, "{which:?}: {least} to {most}");
        };
        check(Bundled::Digits, 64, &[178, 182, 177, 183, 181, 182, 181, 179, 174, 180], 0.0, 1.0);
        // The published ranges are rounded to three decimals, so some measurements reach a little beyond.
        check(Bundled::BreastCancer, 30, &[212, 357], -1.06, 1.06);
    }
}
