//! A plain decoder of records in f64, sharing nothing with the one that is tested: bit by bit, and rotated by the
//! matrix itself.
use kvarn_conformance::shape::Shape;

/// The fields of one record.
pub struct Record {
    pub key: Side,
    pub value: Side,
}

/// K or V of a record; rows are channels of K, tokens of V.
pub struct Side {
    pub bits: u32,
    pub codes: Vec<u8>,
    pub scale: Vec<f64>,
    pub zero: Vec<f64>,
    pub column_scale: Vec<f64>,
}

impl Side {
    /// `[rows, columns]` in the rotated frame.
    pub fn decode(&self) -> Vec<f64> {
        let columns = self.column_scale.len();
        let element = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            (f64::from(self.codes[i]) * self.scale[row] + self.zero[row]) * self.column_scale[column]
        };
        (0..self.codes.len()).map(element).collect()
    }
}

/// Reads one record.
pub fn read(record: &[u8], shape: &Shape) -> Record {
    let (group, head_dim) = (shape.preset.group, shape.head_dim);
    let (key_bits, value_bits) = (shape.preset.key_bits, shape.preset.value_bits);
    let mut at = 0;
    let mut field = |bytes: usize| {
        at += bytes;
        &record[at - bytes..at]
    };
    let code_bytes = |bits: u32| head_dim * group * bits as usize / 8;
    let (key_codes, key_scale, key_zero, key_token) = (
        field(code_bytes(key_bits)),
        field(2 * head_dim),
        field(2 * head_dim),
        field(2 * group),
    );
    let (value_codes, value_scale, value_token, value_zero) = (
        field(code_bytes(value_bits)),
        field(2 * head_dim),
        field(2 * group),
        field(2 * group),
    );
    assert_eq!(at, record.len());
    let side = |bits, codes, scale, zero, column_scale| Side {
        bits,
        codes: read_codes(codes, bits as usize),
        scale: halves(scale),
        zero: halves(zero),
        column_scale: halves(column_scale),
    };
    Record {
        key: side(key_bits, key_codes, key_scale, key_zero, key_token),
        value: side(value_bits, value_codes, value_token, value_zero, value_scale),
    }
}

/// The records of one tile or more, each head's by itself.
pub fn read_all(records: &[u8], shape: &Shape) -> Vec<Record> {
    records
        .chunks(shape.record_bytes())
        .map(|record| read(record, shape))
        .collect()
}

fn read_codes(bytes: &[u8], bits: usize) -> Vec<u8> {
    let bit = |at: usize| (bytes[at / 8] >> (at % 8)) & 1;
    (0..bytes.len() * 8 / bits)
        .map(|i| (0..bits).map(|j| bit(i * bits + j) << j).sum())
        .collect()
}

fn halves(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks(2)
        .map(|pair| half(u16::from_le_bytes([pair[0], pair[1]])))
        .collect()
}

/// Of finite numbers.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    let magnitude = if exponent == 0 {
        fraction * 2f64.powi(-14)
    } else {
        (1.0 + fraction) * 2f64.powi(exponent - 15)
    };
    if bits >> 15 == 0 { magnitude } else { -magnitude }
}

/// Records to K and V, `[tokens, kv_heads, head_dim]` each, rotated back.
pub fn decode(records: &[u8], shape: &Shape) -> (Vec<f64>, Vec<f64>) {
    let (group, head_dim) = (shape.preset.group, shape.head_dim);
    let (mut k, mut v) = (Vec::new(), Vec::new());
    for tile in read_all(records, shape).chunks(shape.kv_heads) {
        let heads: Vec<_> = tile
            .iter()
            .map(|record| (record.key.decode(), record.value.decode()))
            .collect();
        for token in 0..group {
            for (key, value) in &heads {
                let key_row: Vec<f64> = (0..head_dim)
                    .map(|channel| key[channel * group + token])
                    .collect();
                k.extend(rotate(&key_row));
                v.extend(rotate(&value[token * head_dim..(token + 1) * head_dim]));
            }
        }
    }
    (k, v)
}

/// One row, by the matrix.
fn rotate(row: &[f64]) -> Vec<f64> {
    let size = 1 << row.len().trailing_zeros();
    let rotated = |block: &[f64], j: usize| {
        let sum: f64 = (0..size)
            .map(|i: usize| {
                if (i & j).count_ones().is_multiple_of(2) {
                    block[i]
                } else {
                    -block[i]
                }
            })
            .sum();
        sum / (size as f64).sqrt()
    };
    row.chunks(size)
        .flat_map(|block| (0..size).map(move |j| rotated(block, j)))
        .collect()
}
