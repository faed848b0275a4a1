//! Aggregates a measure over many rows into one number.
//!
//! Other modules decide which rows count: here every given row does.

use std::collections::HashSet;
use std::sync::Arc;

use super::cell::Cell;
use super::members::{Aggregation, Measure, Row, Value};

/// The state of a measure during aggregation.
pub enum SoFar {
    /// The number of rows.
    Count(u64),
    /// The different values.
    Distinct(HashSet<Cell>),
    /// The state for sums, means and extremes.
    Numbers {
        /// How many numbers there were.
        count: u64,
        /// Their sum.
        sum: f64,
        /// The smallest; infinite before the first number.
        least: f64,
        /// The largest; infinite before the first number.
        greatest: f64,
    },
}

impl SoFar {
    /// The state before the first row.
    pub fn new(aggregation: Aggregation) -> Self {
        match aggregation {
            Aggregation::Count => Self::Count(0),
            Aggregation::CountDistinct => Self::Distinct(HashSet::new()),
            Aggregation::Sum | Aggregation::Average | Aggregation::Min | Aggregation::Max => {
                Self::Numbers { count: 0, sum: 0.0, least: f64::INFINITY, greatest: f64::NEG_INFINITY }
            }
        }
    }

    /// Adds what the measure reads from one more row.
    pub fn add(&mut self, measure: &Measure, row: Row<'_>) {
        match (self, (measure.read)(row)) {
            (Self::Count(count), _) => *count += 1,
            (Self::Distinct(seen), Value::Text(text)) => {
                seen.insert(Cell::Text(Arc::clone(text)));
            }
            (Self::Numbers { count, sum, least, greatest }, Value::Number(number)) => {
                *count += 1;
                *sum += number;
                *least = least.min(number);
                *greatest = greatest.max(number);
            }
            _ => {}
        }
    }

    /// Returns the result. Without rows, counts and sums are zero, and a mean or an extreme is null.
    pub fn finish(self, aggregation: Aggregation) -> Cell {
        match self {
            Self::Count(count) => Cell::Number(count as f64),
            Self::Distinct(seen) => Cell::Number(seen.len() as f64),
            Self::Numbers { count, sum, least, greatest } => match aggregation {
                Aggregation::Average if count > 0 => Cell::Number(round(sum / count as f64)),
                Aggregation::Min if count > 0 => Cell::Number(round(least)),
                Aggregation::Max if count > 0 => Cell::Number(round(greatest)),
                Aggregation::Average | Aggregation::Min | Aggregation::Max => Cell::Null,
                _ => Cell::Number(round(sum)),
            },
        }
    }
}

/// Rounds to four places, which removes the rounding errors of sums. Zero has only one sign.
fn round(number: f64) -> f64 {
    (number * 10_000.0).round() / 10_000.0 + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_zero_or_null() {
        let nothing = |aggregation| SoFar::new(aggregation).finish(aggregation);
        for aggregation in [Aggregation::Count, Aggregation::CountDistinct, Aggregation::Sum] {
            assert_eq!(nothing(aggregation), Cell::Number(0.0));
        }
        for aggregation in [Aggregation::Average, Aggregation::Min, Aggregation::Max] {
            assert_eq!(nothing(aggregation), Cell::Null);
        }
    }

    #[test]
    fn rounding_removes_errors_and_negative_zero() {
        assert_eq!(round(0.1 + 0.2), 0.3);
        assert_eq!(round(-0.00001).to_bits(), 0.0f64.to_bits());
    }
}
