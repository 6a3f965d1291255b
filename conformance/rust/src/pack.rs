//! Asymmetric rounding of a tile's rows, and its codes as bits.
use crate::error::Error;
use alloc::{vec, vec::Vec};
use libm::rint;

#[derive(Clone, Debug)]
pub struct Packed {
    pub codes: Vec<u8>,
    /// One a row.
    pub scale: Vec<f64>,
    /// One a row: what code 0 stands for.
    pub zero: Vec<f64>,
}

/// Rounds the rows of a tile `[rows, columns]` to codes of `bits`, and packs those.
pub fn pack(tile: &[f64], columns: usize, bits: u32) -> Result<Packed, Error> {
    if columns == 0 || !tile.len().is_multiple_of(columns) || !(1..=8).contains(&bits) {
        return Err(Error::Shape);
    }
    let most = f64::from((1u32 << bits) - 1);
    let (mut codes, mut scales, mut zeros) = (Vec::with_capacity(tile.len()), Vec::new(), Vec::new());
    for row in tile.chunks_exact(columns) {
        let low = row.iter().copied().fold(f64::INFINITY, f64::min);
        let high = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scale = ((high - low) / most).max(1e-10);
        codes.extend(row.iter().map(|x| rint((x - low) / scale).clamp(0.0, most) as u8));
        scales.push(scale);
        zeros.push(low);
    }
    Ok(Packed {
        codes: pack_codes(&codes, bits),
        scale: scales,
        zero: zeros,
    })
}

/// Codes as a little-endian bit stream.
fn pack_codes(codes: &[u8], bits: u32) -> Vec<u8> {
    let bits = bits as usize;
    let mut bytes = vec![0; (codes.len() * bits).div_ceil(8)];
    for (i, code) in codes.iter().enumerate() {
        // A code lies in one byte or in two neighbours.
        let shifted = u16::from(*code) << (i * bits % 8);
        bytes[i * bits / 8] |= shifted as u8;
        if shifted > 0xff {
            bytes[i * bits / 8 + 1] |= (shifted >> 8) as u8;
        }
    }
    bytes
}

/// The codes of a little-endian bit stream.
pub fn unpack_codes(bytes: &[u8], bits: u32) -> Vec<u8> {
    let bits = bits as usize;
    (0..bytes.len() * 8 / bits)
        .map(|i| {
            let next = bytes.get(i * bits / 8 + 1).copied().unwrap_or(0);
            let window = u16::from_le_bytes([bytes[i * bits / 8], next]);
            ((window >> (i * bits % 8)) & ((1 << bits) - 1)) as u8
        })
        .collect()
}
