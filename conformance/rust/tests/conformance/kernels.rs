//! Rotation, normalization, rounding.
use crate::{
    compare::{at_most, common_factor, ensure, relative_error},
    data::{Binary, NormalizeCase, PackCase, RotateCase},
    input::{draws, grid, tensor},
    report::Outcome,
};
use kvarn_conformance::{normalize, pack, rotate};

pub fn check_rotate(case: &RotateCase, binary: &Binary) -> Outcome {
    let input: Vec<f64> = draws(case.rows * case.head_dim, case.seed, 1.0)
        .into_iter()
        .map(f64::from)
        .collect();
    let same_rows = |what: &str, found: &[f64], stored: &[f64]| {
        let mut rows = found.chunks(case.head_dim).zip(stored.chunks(case.head_dim));
        rows.try_for_each(|(a, b)| at_most(what, relative_error(a, b), 1e-5))
    };
    let mut rows = input.clone();
    rotate::rotate(&mut rows, case.head_dim);
    same_rows("rotated", &rows, &binary.floats(&case.output))?;
    rotate::rotate(&mut rows, case.head_dim);
    same_rows("rotated back", &rows, &input)
}

pub fn check_normalize(case: &NormalizeCase, binary: &Binary) -> Outcome {
    let NormalizeCase {
        side, rows, columns, ..
    } = case;
    let draw = |tokens, channels| -> Vec<f64> {
        let elements = tensor(&case.kind, side, case.seed, tokens, 1, channels);
        elements.into_iter().map(|x| f64::from(x * case.scale)).collect()
    };
    let tile: Vec<f64> = if side == "key" {
        let tokens = draw(*columns, *rows);
        (0..rows * columns)
            .map(|i| tokens[i % columns * rows + i / columns])
            .collect()
    } else {
        draw(*rows, *columns)
    };
    let found = normalize::normalize(&tile, *columns, case.iterations).map_err(|error| error.to_string())?;
    let stored_columns = binary.floats(&case.column_scale);
    let factor = common_factor(&found.column_scale, &stored_columns);
    let close = |what: &str, found: &[f64], factor: f64, stored: &[f64]| {
        let mut pairs = found.iter().zip(stored);
        ensure(found.len() == stored.len(), || {
            format!("{what}: {} instead of {}", found.len(), stored.len())
        })?;
        pairs.try_for_each(|(a, b)| at_most(what, (a * factor - b).abs() / b.abs(), 1e-4))
    };
    close("column scale", &found.column_scale, factor, &stored_columns)?;
    close(
        "row scale",
        &found.row_scale,
        1.0 / factor,
        &binary.floats(&case.row_scale),
    )?;
    let divided: Vec<f64> = (0..tile.len())
        .map(|i| tile[i] / found.column_scale[i % columns] / found.row_scale[i / columns])
        .collect();
    at_most("balanced", relative_error(&found.balanced, &divided), 1e-5)
}

pub fn check_pack(case: &PackCase, binary: &Binary) -> Outcome {
    let found = pack::pack(
        &grid(case.rows, case.columns, case.bits, case.seed),
        case.columns,
        case.bits,
    )
    .map_err(|error| error.to_string())?;
    ensure(found.codes == binary.bytes(&case.codes), || "codes differ".into())?;
    at_most(
        "scale",
        relative_error(&found.scale, &binary.floats(&case.scale)),
        1e-6,
    )?;
    at_most(
        "zero",
        relative_error(&found.zero, &binary.floats(&case.zero)),
        1e-6,
    )
}
