//! `kvarn_conformance` for JavaScript. f32 in and out.
use kvarn::{
    error::Error,
    shape::{Preset, Shape},
    tokens::Tokens,
};
use kvarn_conformance as kvarn;
use wasm_bindgen::prelude::*;

fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

fn shape(preset: &str, kv_heads: usize, head_dim: usize) -> Result<Shape, Error> {
    Shape::new(Preset::parse(preset)?, kv_heads, head_dim)
}

/// Rotates rows of `head_dim`.
#[wasm_bindgen]
pub fn rotate(x: &[f32], #[wasm_bindgen(js_name = headDim)] head_dim: usize) -> Result<Vec<f32>, JsError> {
    if !kvarn::rotate::has_rotation(head_dim) || !x.len().is_multiple_of(head_dim) {
        return Err(Error::Shape.into());
    }
    let mut rows = to_f64(x);
    kvarn::rotate::rotate(&mut rows, head_dim);
    Ok(to_f32(&rows))
}

#[wasm_bindgen(getter_with_clone)]
pub struct Normalized {
    pub balanced: Vec<f32>,
    #[wasm_bindgen(js_name = rowScale)]
    pub row_scale: Vec<f32>,
    #[wasm_bindgen(js_name = columnScale)]
    pub column_scale: Vec<f32>,
}

/// Normalizes a tile.
#[wasm_bindgen]
pub fn normalize(tile: &[f32], columns: usize, iterations: u32) -> Result<Normalized, JsError> {
    let found = kvarn::normalize::normalize(&to_f64(tile), columns, iterations)?;
    Ok(Normalized {
        balanced: to_f32(&found.balanced),
        row_scale: to_f32(&found.row_scale),
        column_scale: to_f32(&found.column_scale),
    })
}

#[wasm_bindgen(getter_with_clone)]
pub struct Packed {
    pub codes: Vec<u8>,
    pub scale: Vec<f32>,
    pub zero: Vec<f32>,
}

/// Rounds and packs a tile.
#[wasm_bindgen]
pub fn pack(tile: &[f32], columns: usize, bits: u32) -> Result<Packed, JsError> {
    let found = kvarn::pack::pack(&to_f64(tile), columns, bits)?;
    Ok(Packed {
        codes: found.codes,
        scale: to_f32(&found.scale),
        zero: to_f32(&found.zero),
    })
}

/// Whole tiles to records.
#[wasm_bindgen]
pub fn encode(
    k: &[f32],
    v: &[f32],
    preset: &str,
    #[wasm_bindgen(js_name = kvHeads)] kv_heads: usize,
    #[wasm_bindgen(js_name = headDim)] head_dim: usize,
    iterations: u32,
) -> Result<Vec<u8>, JsError> {
    Ok(kvarn::record::encode(
        k,
        v,
        &shape(preset, kv_heads, head_dim)?,
        iterations,
    )?)
}

#[wasm_bindgen(getter_with_clone)]
pub struct Decoded {
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// Records to K and V.
#[wasm_bindgen]
pub fn decode(
    records: &[u8],
    preset: &str,
    #[wasm_bindgen(js_name = kvHeads)] kv_heads: usize,
    #[wasm_bindgen(js_name = headDim)] head_dim: usize,
) -> Result<Decoded, JsError> {
    let found = kvarn::record::decode(records, &shape(preset, kv_heads, head_dim)?)?;
    Ok(Decoded {
        k: to_f32(&found.k),
        v: to_f32(&found.v),
    })
}

/// A layer's heads, and how it attends: its options are set one by one.
#[wasm_bindgen]
pub struct Layer(kvarn::attend::Layer);

#[wasm_bindgen]
impl Layer {
    #[wasm_bindgen(constructor)]
    pub fn new(
        #[wasm_bindgen(js_name = queryHeads)] query_heads: usize,
        #[wasm_bindgen(js_name = kvHeads)] kv_heads: usize,
        #[wasm_bindgen(js_name = headDim)] head_dim: usize,
    ) -> Layer {
        Layer(kvarn::attend::Layer::new(query_heads, kv_heads, head_dim))
    }

    #[wasm_bindgen(setter, js_name = softmaxScale)]
    pub fn set_softmax_scale(&mut self, scale: Option<f64>) {
        self.0.softmax_scale = scale;
    }

    #[wasm_bindgen(setter, js_name = slidingWindow)]
    pub fn set_sliding_window(&mut self, tokens: Option<usize>) {
        self.0.sliding_window = tokens;
    }

    #[wasm_bindgen(setter, js_name = softCap)]
    pub fn set_soft_cap(&mut self, cap: Option<f64>) {
        self.0.soft_cap = cap;
    }

    #[wasm_bindgen(setter, js_name = sinkLogits)]
    pub fn set_sink_logits(&mut self, logits: Option<Vec<f64>>) {
        self.0.sink_logits = logits;
    }
}

/// Tokens of K and V that are not in records.
#[wasm_bindgen]
pub struct Exact {
    k: Vec<f32>,
    v: Vec<f32>,
}

#[wasm_bindgen]
impl Exact {
    #[wasm_bindgen(constructor)]
    pub fn new(k: Vec<f32>, v: Vec<f32>) -> Exact {
        Exact { k, v }
    }
}

/// Attention over a sink, records and a tail.
#[wasm_bindgen]
pub fn attend(
    layer: &Layer,
    preset: &str,
    q: &[f32],
    sink: &Exact,
    records: &[u8],
    tail: &Exact,
) -> Result<Vec<f32>, JsError> {
    let preset = Preset::parse(preset)?;
    let shape = layer.0.shape(preset)?;
    let tokens = |exact: &Exact| Tokens::from_input(&exact.k, &exact.v, &shape);
    Ok(to_f32(&kvarn::attend::attend(
        &layer.0,
        preset,
        q,
        &tokens(sink)?,
        records,
        &tokens(tail)?,
    )?))
}

/// A cache; its layers are added before its first token.
#[wasm_bindgen]
pub struct Cache(kvarn::cache::Cache);

#[wasm_bindgen]
impl Cache {
    #[wasm_bindgen(constructor)]
    pub fn new(
        preset: &str,
        iterations: u32,
        #[wasm_bindgen(js_name = exactWindow)] exact_window: usize,
    ) -> Result<Cache, JsError> {
        Ok(Cache(kvarn::cache::Cache::new(
            Preset::parse(preset)?,
            iterations,
            exact_window,
        )))
    }

    #[wasm_bindgen(js_name = addLayer)]
    pub fn add_layer(&mut self, layer: Layer) -> Result<(), JsError> {
        Ok(self.0.add_layer(layer.0)?)
    }

    pub fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<(), JsError> {
        Ok(self.0.append(layer, k, v)?)
    }

    pub fn attend(&self, layer: usize, q: &[f32]) -> Result<Vec<f32>, JsError> {
        Ok(to_f32(&self.0.attend(layer, q)?))
    }

    pub fn length(&self, layer: usize) -> Result<usize, JsError> {
        Ok(self.0.length(layer)?)
    }

    pub fn flush(&mut self) -> Result<(), JsError> {
        Ok(self.0.flush()?)
    }

    pub fn truncate(&mut self, length: usize) -> Result<(), JsError> {
        Ok(self.0.truncate(length)?)
    }

    pub fn fork(&self) -> Cache {
        Cache(self.0.clone())
    }

    pub fn serialize(&self) -> Vec<u8> {
        self.0.save()
    }

    pub fn restore(bytes: &[u8]) -> Result<Cache, JsError> {
        Ok(Cache(kvarn::cache::Cache::restore(bytes)?))
    }

    #[wasm_bindgen(js_name = exportRecords)]
    pub fn export_records(&self, layer: usize) -> Result<Vec<u8>, JsError> {
        Ok(self.0.records(layer)?.to_vec())
    }
}
