//! What records hold.
use crate::{error::Error, rotate::has_rotation};

/// `k{bits of K}v{bits of V}_g{tokens of a tile}`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    pub key_bits: u32,
    pub value_bits: u32,
    pub group: usize,
}

impl Preset {
    pub fn parse(name: &str) -> Result<Preset, Error> {
        let (bits, group) = name.split_once("_g").ok_or(Error::Preset)?;
        let (key, value) = bits
            .strip_prefix('k')
            .and_then(|bits| bits.split_once('v'))
            .ok_or(Error::Preset)?;
        let number = |text: &str| text.parse::<u8>().map_err(|_| Error::Preset);
        Preset::new(number(key)?, number(value)?, number(group)?)
    }

    pub fn new(key_bits: u8, value_bits: u8, group: u8) -> Result<Preset, Error> {
        let known = |bits| matches!(bits, 2..=6 | 8);
        if !known(key_bits) || !known(value_bits) || !matches!(group, 64 | 128) {
            return Err(Error::Preset);
        }
        Ok(Preset {
            key_bits: key_bits.into(),
            value_bits: value_bits.into(),
            group: group.into(),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub preset: Preset,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Shape {
    pub fn new(preset: Preset, kv_heads: usize, head_dim: usize) -> Result<Shape, Error> {
        if kv_heads == 0 || !has_rotation(head_dim) {
            return Err(Error::Shape);
        }
        Ok(Shape {
            preset,
            kv_heads,
            head_dim,
        })
    }

    /// Elements of K, or of V, of one token.
    pub fn width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes of the record of one head.
    pub fn record_bytes(&self) -> usize {
        let Preset {
            key_bits,
            value_bits,
            group,
        } = self.preset;
        self.head_dim * group * (key_bits + value_bits) as usize / 8 + 6 * (self.head_dim + group)
    }

    /// Bytes of one tile's records, all heads.
    pub fn tile_bytes(&self) -> usize {
        self.kv_heads * self.record_bytes()
    }
}
