//! Exact tokens: rotated, and rounded to binary16.
use crate::{
    error::Error,
    half::{from_half, to_finite_half},
    rotate::rotate,
    shape::Shape,
};
use alloc::vec::Vec;

/// Tokens of K and V, `[tokens, kv_heads, head_dim]` each, binary16 in the rotated frame.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    pub k: Vec<u16>,
    pub v: Vec<u16>,
}

impl Tokens {
    /// Rotates and rounds `[tokens, kv_heads, head_dim]`.
    pub fn from_input(k: &[f32], v: &[f32], shape: &Shape) -> Result<Tokens, Error> {
        if k.len() != v.len() || !k.len().is_multiple_of(shape.width()) {
            return Err(Error::Shape);
        }
        let rounded = |input: &[f32]| {
            let mut rotated: Vec<f64> = input.iter().copied().map(f64::from).collect();
            rotate(&mut rotated, shape.head_dim);
            rotated
                .into_iter()
                .map(to_finite_half)
                .collect::<Result<Vec<u16>, Error>>()
        };
        Ok(Tokens {
            k: rounded(k)?,
            v: rounded(v)?,
        })
    }

    pub fn count(&self, shape: &Shape) -> usize {
        self.k.len() / shape.width()
    }

    pub fn truncate(&mut self, count: usize, shape: &Shape) {
        self.k.truncate(count * shape.width());
        self.v.truncate(count * shape.width());
    }

    pub fn append(&mut self, mut more: Tokens) {
        self.k.append(&mut more.k);
        self.v.append(&mut more.v);
    }

    /// The first `count` tokens, or all where there are fewer.
    pub fn first(&self, count: usize, shape: &Shape) -> Tokens {
        let elements = (count * shape.width()).min(self.k.len());
        Tokens {
            k: self.k[..elements].to_vec(),
            v: self.v[..elements].to_vec(),
        }
    }

    /// Takes the first `count` tokens, or all where there are fewer.
    pub fn take_first(&mut self, count: usize, shape: &Shape) -> Tokens {
        let elements = (count * shape.width()).min(self.k.len());
        Tokens {
            k: self.k.drain(..elements).collect(),
            v: self.v.drain(..elements).collect(),
        }
    }
}

/// Tokens of K and V in f64, `[tokens, kv_heads, head_dim]` each.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    pub k: Vec<f64>,
    pub v: Vec<f64>,
}

impl Decoded {
    pub fn extend(&mut self, tokens: &Tokens) {
        self.k.extend(tokens.k.iter().copied().map(from_half));
        self.v.extend(tokens.v.iter().copied().map(from_half));
    }
}
