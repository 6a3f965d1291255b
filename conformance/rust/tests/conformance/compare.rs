//! What passes.
use crate::{
    plain::{Side, read_all},
    report::Outcome,
};
use kvarn_conformance::shape::Shape;

pub fn relative_error(found: &[f64], stored: &[f64]) -> f64 {
    assert_eq!(found.len(), stored.len());
    let norm = |squares: &mut dyn Iterator<Item = f64>| squares.sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(stored).map(|(a, b)| (a - b) * (a - b)));
    if difference == 0.0 {
        0.0
    } else {
        difference / norm(&mut stored.iter().map(|b| b * b))
    }
}

/// Fails unless `error` is at most `most`; also where it is NaN.
pub fn at_most(what: &str, error: f64, most: f64) -> Outcome {
    if error <= most {
        Ok(())
    } else {
        Err(format!("{what}: {error:e}, more than {most:e}"))
    }
}

pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(what()) }
}

/// The median of stored / found, of an even count the mean of the middle two.
pub fn common_factor(found: &[f64], stored: &[f64]) -> f64 {
    let mut ratios: Vec<f64> = stored
        .iter()
        .zip(found)
        .map(|(stored, found)| stored / found)
        .collect();
    ratios.sort_by(f64::total_cmp);
    (ratios[(ratios.len() - 1) / 2] + ratios[ratios.len() / 2]) / 2.0
}

/// Records against stored ones, all together as one unit.
pub fn records_conform(found: &[u8], stored: &[u8], shape: &Shape) -> Outcome {
    ensure(found.len() == stored.len(), || {
        format!("{} bytes instead of {}", found.len(), stored.len())
    })?;
    let (found, stored) = (read_all(found, shape), read_all(stored, shape));
    let pairs = || found.iter().zip(&stored);
    let sides = || pairs().flat_map(|(a, b)| [(&a.key, &b.key), (&a.value, &b.value)]);
    codes_conform(sides().filter(|(side, _)| side.bits <= 4), 10_000)?;
    codes_conform(sides().filter(|(side, _)| side.bits > 4), 1_000)?;
    sides().try_for_each(|(found, stored)| scales_conform(found, stored))?;
    values_conform("K", pairs().map(|(a, b)| (&a.key, &b.key)))?;
    values_conform("V", pairs().map(|(a, b)| (&a.value, &b.value)))
}

/// Counts the codes that differ, one in `share` of them may.
fn codes_conform<'a>(sides: impl Iterator<Item = (&'a Side, &'a Side)>, share: usize) -> Outcome {
    let (mut count, mut differ) = (0, 0);
    for (found, stored) in sides {
        count += stored.codes.len();
        for (a, b) in found.codes.iter().zip(&stored.codes) {
            differ += usize::from(a != b);
            ensure(a.abs_diff(*b) <= 1, || format!("code {a} instead of {b}"))?;
        }
    }
    ensure(differ <= (count / share).max(2), || {
        format!("{differ} of {count} codes differ")
    })
}

fn scales_conform(found: &Side, stored: &Side) -> Outcome {
    let error = |factor: f64| {
        let pair = |found: &[f64], stored: &[f64], factor: f64| {
            found
                .iter()
                .zip(stored)
                .map(|(a, b)| scale_error(a * factor, *b))
                .fold(0.0, f64::max)
        };
        pair(&found.column_scale, &stored.column_scale, factor)
            .max(pair(&found.scale, &stored.scale, 1.0 / factor))
            .max(pair(&found.zero, &stored.zero, 1.0 / factor))
    };
    let factor = common_factor(&found.column_scale, &stored.column_scale);
    at_most(
        "scales, in shares of what may differ",
        error(1.0).min(error(factor)),
        1.0,
    )
}

/// A difference as a share of what it may be.
fn scale_error(found: f64, stored: f64) -> f64 {
    let exponent = found.abs().max(stored.abs()).log2().floor().max(-14.0);
    (found - stored).abs() / (stored.abs() * 2f64.powi(-9)).max((exponent - 10.0).exp2())
}

/// In the rotated frame, the elements whose codes agree.
fn values_conform<'a>(what: &str, sides: impl Iterator<Item = (&'a Side, &'a Side)>) -> Outcome {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (found, stored) in sides {
        let agree = |i: &usize| found.codes[*i] == stored.codes[*i];
        let (found_values, stored_values) = (found.decode(), stored.decode());
        a.extend((0..found_values.len()).filter(agree).map(|i| found_values[i]));
        b.extend((0..found_values.len()).filter(agree).map(|i| stored_values[i]));
    }
    at_most(&format!("{what} decoded"), relative_error(&a, &b), 2e-3)
}
