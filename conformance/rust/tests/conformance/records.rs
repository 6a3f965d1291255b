//! Encoding and decoding.
use crate::{
    compare::{at_most, ensure, records_conform, relative_error},
    data::{Binary, EncodeCase},
    input::tensor,
    plain,
    report::Outcome,
};
use kvarn_conformance::{
    record::{decode, encode},
    shape::Shape,
};

/// K and V of a case.
fn input(case: &EncodeCase) -> (Vec<f32>, Vec<f32>) {
    let Shape {
        kv_heads, head_dim, ..
    } = case.shape();
    let side = |side, seed| tensor(&case.kind, side, seed, case.tokens, kv_heads, head_dim);
    (side("key", case.key_seed), side("value", case.value_seed))
}

pub fn check_encode(case: &EncodeCase, binary: &Binary) -> Outcome {
    let shape = case.shape();
    let (k, v) = input(case);
    let checksum = |x: &[f32]| x.iter().copied().map(f64::from).sum::<f64>();
    ensure(checksum(&k) == case.key_checksum, || {
        format!("the input K sums up to {}", checksum(&k))
    })?;
    ensure(checksum(&v) == case.value_checksum, || {
        format!("the input V sums up to {}", checksum(&v))
    })?;
    let run = |k: &[f32], v: &[f32]| encode(k, v, &shape, case.iterations);

    let found = run(&k, &v).map_err(|error| error.to_string())?;
    let stored = binary.bytes(&case.records);
    ensure(shape.record_bytes() == case.record_bytes, || {
        format!("records of {} bytes", shape.record_bytes())
    })?;
    ensure(found.len() == stored.len(), || {
        format!("{} bytes instead of {}", found.len(), stored.len())
    })?;
    let mut pairs = found
        .chunks(case.record_bytes)
        .zip(stored.chunks(case.record_bytes));
    pairs.try_for_each(|(found, stored)| records_conform(found, stored, &shape))?;
    ensure(run(&k, &v).as_ref() == Ok(&found), || "not repeatable".into())?;

    for (what, at, value) in [
        ("the last element NaN", k.len() - 1..k.len(), f32::NAN),
        ("an element -infinity", 5..6, f32::NEG_INFINITY),
        ("a head too long for binary16", 0..shape.head_dim, 60_000.0),
    ] {
        let spoil = |x: &[f32]| {
            let mut spoiled = x.to_vec();
            spoiled[at.clone()].fill(value);
            spoiled
        };
        ensure(run(&spoil(&k), &v).is_err(), || {
            format!("K with {what} is not refused")
        })?;
        ensure(run(&k, &spoil(&v)).is_err(), || {
            format!("V with {what} is not refused")
        })?;
    }
    Ok(())
}

/// Records with no input to compare with.
pub fn check_decode(records: &[u8], shape: &Shape) -> Result<(Vec<f64>, Vec<f64>), String> {
    let found = decode(records, shape).map_err(|error| error.to_string())?;
    let (k, v) = plain::decode(records, shape);
    at_most("K", relative_error(&found.k, &k), 1e-3)?;
    at_most("V", relative_error(&found.v, &v), 1e-3)?;

    let elements = shape.head_dim * shape.preset.group;
    let key_scale = elements * shape.preset.key_bits as usize / 8;
    let value_codes = key_scale + 2 * (2 * shape.head_dim + shape.preset.group);
    let value_scale = value_codes + elements * shape.preset.value_bits as usize / 8;
    let value_zero = shape.record_bytes() - 2 * shape.preset.group;
    for (what, at) in [
        ("kScale", key_scale),
        ("vScale", value_scale),
        ("vZero", value_zero),
    ] {
        for bits in [0x7e00u16, 0xfc00] {
            let mut spoiled = records.to_vec();
            spoiled[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            ensure(decode(&spoiled, shape).is_err(), || {
                format!("{what} of {bits:x} is not refused")
            })?;
        }
    }
    Ok((found.k, found.v))
}

/// The stored records of a case whose input is known.
pub fn check_decode_of(case: &EncodeCase, binary: &Binary) -> Outcome {
    let (found_k, found_v) = check_decode(binary.bytes(&case.records), &case.shape())?;
    let (k, v) = input(case);
    let error = |found: &[f64], input: Vec<f32>| {
        relative_error(found, &input.into_iter().map(f64::from).collect::<Vec<f64>>())
    };
    at_most(
        "error of K",
        (error(&found_k, k) - case.key_relative_error).abs(),
        1e-4,
    )?;
    at_most(
        "error of V",
        (error(&found_v, v) - case.value_relative_error).abs(),
        1e-4,
    )
}
