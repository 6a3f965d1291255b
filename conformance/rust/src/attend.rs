//! Attention over exact tokens and records.
use crate::{
    error::Error,
    record::decode_rotated,
    rotate::rotate,
    shape::{Preset, Shape},
    tokens::{Decoded, Tokens},
};
use alloc::vec::Vec;
use libm::{exp, sqrt, tanh};

/// A layer's heads, and how it attends.
#[derive(Clone, Debug)]
pub struct Layer {
    pub query_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// `1 / sqrt(head_dim)` where there is none.
    pub softmax_scale: Option<f64>,
    pub sliding_window: Option<usize>,
    pub soft_cap: Option<f64>,
    /// One more logit for each query head.
    pub sink_logits: Option<Vec<f64>>,
}

impl Layer {
    /// A layer without options.
    pub fn new(query_heads: usize, kv_heads: usize, head_dim: usize) -> Layer {
        let (softmax_scale, sliding_window, soft_cap, sink_logits) = (None, None, None, None);
        Layer {
            query_heads,
            kv_heads,
            head_dim,
            softmax_scale,
            sliding_window,
            soft_cap,
            sink_logits,
        }
    }

    /// What its records hold. Refuses heads that do not fit each other.
    pub fn shape(&self, preset: Preset) -> Result<Shape, Error> {
        let shape = Shape::new(preset, self.kv_heads, self.head_dim)?;
        let logits = self.sink_logits.as_ref().map_or(self.query_heads, Vec::len);
        if self.query_heads == 0
            || !self.query_heads.is_multiple_of(self.kv_heads)
            || logits != self.query_heads
        {
            return Err(Error::Shape);
        }
        Ok(shape)
    }
}

/// Attention of queries `[queries, query_heads, head_dim]`, not rotated, at the last positions of the sink, the
/// records and the tail.
pub fn attend(
    layer: &Layer,
    preset: Preset,
    q: &[f32],
    sink: &Tokens,
    records: &[u8],
    tail: &Tokens,
) -> Result<Vec<f64>, Error> {
    let shape = layer.shape(preset)?;
    let mut context = Decoded::default();
    context.extend(sink);
    decode_rotated(records, &shape, &mut context)?;
    context.extend(tail);

    let query_width = layer.query_heads * layer.head_dim;
    let (queries, tokens) = (q.len() / query_width, context.k.len() / shape.width());
    if !q.len().is_multiple_of(query_width) || queries > tokens {
        return Err(Error::Shape);
    }
    let mut rotated: Vec<f64> = q.iter().copied().map(f64::from).collect();
    rotate(&mut rotated, layer.head_dim);
    let mut out = Vec::with_capacity(q.len());
    for (i, query) in rotated.chunks_exact(layer.head_dim).enumerate() {
        let (position, head) = (tokens - queries + i / layer.query_heads, i % layer.query_heads);
        out.extend(attend_head(layer, query, &context, position, head));
    }
    rotate(&mut out, layer.head_dim);
    Ok(out)
}

/// One query head at one position, in the rotated frame.
fn attend_head(layer: &Layer, query: &[f64], context: &Decoded, position: usize, head: usize) -> Vec<f64> {
    let kv_head = head / (layer.query_heads / layer.kv_heads);
    let row = |token: usize| {
        let start = (token * layer.kv_heads + kv_head) * layer.head_dim;
        start..start + layer.head_dim
    };
    let scale = layer.softmax_scale.unwrap_or(1.0 / sqrt(layer.head_dim as f64));
    let first = layer
        .sliding_window
        .map_or(0, |window| (position + 1).saturating_sub(window));
    let logits: Vec<f64> = (first..=position)
        .map(|token| {
            let dot: f64 = query.iter().zip(&context.k[row(token)]).map(|(a, b)| a * b).sum();
            layer
                .soft_cap
                .map_or(dot * scale, |cap| cap * tanh(dot * scale / cap))
        })
        .collect();
    let sink_logit = layer
        .sink_logits
        .as_ref()
        .map_or(f64::NEG_INFINITY, |logits| logits[head]);
    let most = logits.iter().copied().fold(sink_logit, f64::max);

    let mut sum = exp(sink_logit - most);
    let mut out = alloc::vec![0.0; layer.head_dim];
    for (token, logit) in (first..).zip(logits) {
        let weight = exp(logit - most);
        sum += weight;
        for (element, value) in out.iter_mut().zip(&context.v[row(token)]) {
            *element += weight * value;
        }
    }
    out.iter_mut().for_each(|element| *element /= sum);
    out
}
