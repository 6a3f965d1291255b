//! Records: one K tile and its V tile in bytes.
use crate::{
    error::Error,
    half::{HALF_MAX, from_half, to_finite_half},
    normalize::normalize,
    pack::{pack, unpack_codes},
    rotate::rotate,
    shape::Shape,
    tokens::{Decoded, Tokens},
};
use alloc::vec::Vec;

/// Whole tiles of K and V, `[tokens, kv_heads, head_dim]` each, to records.
pub fn encode(k: &[f32], v: &[f32], shape: &Shape, iterations: u32) -> Result<Vec<u8>, Error> {
    let mut tokens = Tokens::from_input(k, v, shape)?;
    if !tokens.count(shape).is_multiple_of(shape.preset.group) {
        return Err(Error::Shape);
    }
    let mut records = Vec::new();
    while !tokens.k.is_empty() {
        records.extend(encode_tile(
            &tokens.take_first(shape.preset.group, shape),
            shape,
            iterations,
        )?);
    }
    Ok(records)
}

/// The records of one tile of tokens, all heads.
pub fn encode_tile(tile: &Tokens, shape: &Shape, iterations: u32) -> Result<Vec<u8>, Error> {
    let mut records = Vec::with_capacity(shape.tile_bytes());
    let (group, head_dim) = (shape.preset.group, shape.head_dim);
    for head in 0..shape.kv_heads {
        let at = |token: usize, channel: usize| token * shape.width() + head * head_dim + channel;
        let keys: Vec<f64> = (0..head_dim * group)
            .map(|i| from_half(tile.k[at(i % group, i / group)]))
            .collect();
        let side = encode_side(&keys, group, shape.preset.key_bits, iterations)?;
        for part in [side.codes, side.scale, side.zero, side.column_scale] {
            records.extend(part);
        }
        let values: Vec<f64> = (0..group * head_dim)
            .map(|i| from_half(tile.v[at(i / head_dim, i % head_dim)]))
            .collect();
        let side = encode_side(&values, head_dim, shape.preset.value_bits, iterations)?;
        for part in [side.codes, side.column_scale, side.scale, side.zero] {
            records.extend(part);
        }
    }
    Ok(records)
}

/// A tile of K or V as bytes. Scale and zero point are its rows'.
struct Side {
    codes: Vec<u8>,
    scale: Vec<u8>,
    zero: Vec<u8>,
    column_scale: Vec<u8>,
}

fn encode_side(tile: &[f64], columns: usize, bits: u32, iterations: u32) -> Result<Side, Error> {
    let normalized = normalize(tile, columns, iterations)?;
    let packed = pack(&normalized.balanced, columns, bits)?;
    let times_row = |values: &[f64]| -> Vec<f64> {
        values
            .iter()
            .zip(&normalized.row_scale)
            .map(|(value, scale)| value * scale)
            .collect()
    };
    let (scale, zero) = (times_row(&packed.scale), times_row(&packed.zero));
    // A zero point can exceed binary16 where what it stands for does not.
    let shift = if zero.iter().any(|value| value.abs() > HALF_MAX) {
        0.5
    } else {
        1.0
    };
    Ok(Side {
        scale: halves(&scale, shift)?,
        zero: halves(&zero, shift)?,
        column_scale: halves(&normalized.column_scale, 1.0 / shift)?,
        codes: packed.codes,
    })
}

fn halves(values: &[f64], factor: f64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(2 * values.len());
    for value in values {
        bytes.extend(to_finite_half(value * factor)?.to_le_bytes());
    }
    Ok(bytes)
}

/// Records to K and V, `[tokens, kv_heads, head_dim]` each, rotated back.
pub fn decode(records: &[u8], shape: &Shape) -> Result<Decoded, Error> {
    let mut decoded = Decoded::default();
    decode_rotated(records, shape, &mut decoded)?;
    rotate(&mut decoded.k, shape.head_dim);
    rotate(&mut decoded.v, shape.head_dim);
    Ok(decoded)
}

/// Appends what records hold, in the rotated frame.
pub fn decode_rotated(records: &[u8], shape: &Shape, decoded: &mut Decoded) -> Result<(), Error> {
    if !records.len().is_multiple_of(shape.tile_bytes()) {
        return Err(Error::Shape);
    }
    let (group, head_dim) = (shape.preset.group, shape.head_dim);
    for tile in records.chunks_exact(shape.tile_bytes()) {
        let start = decoded.k.len();
        decoded.k.resize(start + group * shape.width(), 0.0);
        decoded.v.resize(start + group * shape.width(), 0.0);
        for (head, record) in tile.chunks_exact(shape.record_bytes()).enumerate() {
            let fields = Fields::read(record, shape)?;
            for i in 0..group * head_dim {
                let (token, channel) = (i / head_dim, i % head_dim);
                let at = start + token * shape.width() + head * head_dim + channel;
                let key_code = f64::from(fields.key_codes[channel * group + token]);
                let value_code = f64::from(fields.value_codes[i]);
                decoded.k[at] = (key_code * fields.key_scale[channel] + fields.key_zero[channel])
                    * fields.key_token[token];
                decoded.v[at] = (value_code * fields.value_token[token] + fields.value_zero[token])
                    * fields.value_scale[channel];
            }
        }
    }
    Ok(())
}

/// One record, read.
struct Fields {
    key_codes: Vec<u8>,
    key_scale: Vec<f64>,
    key_zero: Vec<f64>,
    key_token: Vec<f64>,
    value_codes: Vec<u8>,
    value_scale: Vec<f64>,
    value_token: Vec<f64>,
    value_zero: Vec<f64>,
}

impl Fields {
    fn read(record: &[u8], shape: &Shape) -> Result<Fields, Error> {
        let (group, head_dim) = (shape.preset.group, shape.head_dim);
        let mut rest = record;
        let codes = |bits: u32, rest: &mut &[u8]| {
            let (field, behind) = rest.split_at(group * head_dim * bits as usize / 8);
            *rest = behind;
            unpack_codes(field, bits)
        };
        let scales = |count: usize, rest: &mut &[u8]| {
            let (field, behind) = rest.split_at(2 * count);
            *rest = behind;
            let values: Vec<f64> = field
                .chunks_exact(2)
                .map(|pair| from_half(u16::from_le_bytes([pair[0], pair[1]])))
                .collect();
            if values.iter().all(|value| value.is_finite()) {
                Ok(values)
            } else {
                Err(Error::NotFinite)
            }
        };
        Ok(Fields {
            key_codes: codes(shape.preset.key_bits, &mut rest),
            key_scale: scales(head_dim, &mut rest)?,
            key_zero: scales(head_dim, &mut rest)?,
            key_token: scales(group, &mut rest)?,
            value_codes: codes(shape.preset.value_bits, &mut rest),
            value_scale: scales(head_dim, &mut rest)?,
            value_token: scales(group, &mut rest)?,
            value_zero: scales(group, &mut rest)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{decode_rotated, encode_tile};
    use crate::{
        half::{from_half, to_half},
        shape::{Preset, Shape},
        tokens::{Decoded, Tokens},
    };
    use alloc::vec;

    /// The stored cases have no such tile.
    #[test]
    fn an_even_tile_near_the_end_of_binary16_has_a_record() {
        let shape = Shape::new(Preset::parse("k4v2_g64").unwrap(), 1, 16).unwrap();
        // Even columns get a scale of e^-0.3, over which -65,000 is -87,741. One column is not even: a tile of
        // no deviation at all keeps the scales it began with.
        let mut tile = vec![to_half(-65_000.0); 64 * 16];
        tile[0] = to_half(-64_960.0);
        let tokens = Tokens {
            k: tile.clone(),
            v: tile.clone(),
        };
        let mut decoded = Decoded::default();
        decode_rotated(&encode_tile(&tokens, &shape, 8).unwrap(), &shape, &mut decoded).unwrap();
        for (found, stored) in decoded.k.iter().chain(&decoded.v).zip(tile.iter().chain(&tile)) {
            assert!((found / from_half(*stored) - 1.0).abs() < 0.02, "{found}");
        }
    }
}
