//! Dual-scale variance normalization of one tile.
use crate::error::Error;
use alloc::{vec, vec::Vec};
use libm::{exp, log, sqrt};

#[derive(Clone, Debug)]
pub struct Normalized {
    /// `[rows, columns]`: the tile over both scales.
    pub balanced: Vec<f64>,
    pub row_scale: Vec<f64>,
    pub column_scale: Vec<f64>,
}

/// Normalizes a tile `[rows, columns]`.
pub fn normalize(tile: &[f64], columns: usize, iterations: u32) -> Result<Normalized, Error> {
    // A single element has no deviation.
    if columns < 2 || !tile.len().is_multiple_of(columns) || tile.len() / columns < 2 {
        return Err(Error::Shape);
    }
    let rows = tile.len() / columns;
    let (mut log_row, mut log_column) = (vec![0.0; rows], vec![0.0; columns]);
    let mut x = tile.to_vec();
    let (mut best_row, mut best_column, mut least) =
        (log_row.clone(), log_column.clone(), imbalance(&x, columns));
    for _ in 0..iterations {
        step(&mut log_column, &column_deviations(&x, columns));
        x = divide(tile, &log_row, &log_column);
        step(&mut log_row, &row_deviations(&x, columns));
        x = divide(tile, &log_row, &log_column);
        let found = imbalance(&x, columns);
        if found <= least {
            (best_row, best_column, least) = (log_row.clone(), log_column.clone(), found);
        }
    }
    Ok(Normalized {
        balanced: divide(tile, &best_row, &best_column),
        row_scale: best_row.into_iter().map(exp).collect(),
        column_scale: best_column.into_iter().map(exp).collect(),
    })
}

/// Takes the deviations into the logarithms of the scales.
fn step(logs: &mut [f64], deviations: &[f64]) {
    for (scale, deviation) in logs.iter_mut().zip(deviations) {
        *scale = (*scale + log(deviation.clamp(1e-3, 1e3))).clamp(-0.3, 10.0);
    }
}

/// The tile over its scales.
fn divide(tile: &[f64], log_row: &[f64], log_column: &[f64]) -> Vec<f64> {
    let column_scale: Vec<f64> = log_column.iter().copied().map(exp).collect();
    let rows = tile.chunks_exact(log_column.len()).zip(log_row);
    rows.flat_map(|(row, &log_scale)| {
        let row_scale = exp(log_scale);
        row.iter()
            .zip(&column_scale)
            .map(move |(element, column_scale)| element / column_scale / row_scale)
    })
    .collect()
}

/// How unequal the columns are, plus how unequal the rows are.
fn imbalance(x: &[f64], columns: usize) -> f64 {
    let ratio = |deviations: Vec<f64>| {
        let most = deviations.iter().copied().fold(0.0, f64::max);
        let least = deviations.iter().copied().fold(f64::INFINITY, f64::min);
        most / least.max(1e-8)
    };
    ratio(column_deviations(x, columns)) + ratio(row_deviations(x, columns))
}

fn column_deviations(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns)
        .map(|column| deviation(x.iter().skip(column).step_by(columns)))
        .collect()
}

fn row_deviations(x: &[f64], columns: usize) -> Vec<f64> {
    x.chunks_exact(columns).map(|row| deviation(row.iter())).collect()
}

/// Standard deviation of a sample.
fn deviation<'a>(elements: impl ExactSizeIterator<Item = &'a f64> + Clone) -> f64 {
    let count = elements.len() as f64;
    let mean = elements.clone().sum::<f64>() / count;
    let squares: f64 = elements.map(|element| (element - mean) * (element - mean)).sum();
    sqrt(squares / (count - 1.0))
}
