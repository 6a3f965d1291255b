//! `conformance/data`, as `conformance/README.md` says. A field or list that is not known here is an error, so that
//! none is passed over.
use kvarn_conformance::{
    attend::Layer,
    shape::{Preset, Shape},
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{collections::HashMap, fs, path::PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    offset: usize,
    bytes: usize,
}

/// A `.bin` file.
pub struct Binary(Vec<u8>);

impl Binary {
    pub fn bytes(&self, slice: &Slice) -> &[u8] {
        &self.0[slice.offset..slice.offset + slice.bytes]
    }

    pub fn floats(&self, slice: &Slice) -> Vec<f64> {
        let words = self.bytes(slice).chunks_exact(4);
        words
            .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]).into())
            .collect()
    }
}

/// Reads a JSON file and the `.bin` file of the same name.
pub fn read<T: DeserializeOwned>(name: &str) -> (T, Binary) {
    let file = |extension: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../data")
            .join(format!("{name}.{extension}"));
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    (
        serde_json::from_slice(&file("json")).unwrap_or_else(|error| panic!("{name}.json: {error}")),
        Binary(file("bin")),
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    pub cases: Vec<EncodeCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Derived {
    pub rotate: Vec<RotateCase>,
    pub normalize: Vec<NormalizeCase>,
    pub pack: Vec<PackCase>,
    pub encode: Vec<EncodeCase>,
    pub decode: Vec<DecodeCase>,
    pub attend: Vec<AttendCase>,
    pub cache: Vec<CacheCase>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncodeCase {
    pub name: String,
    pub kind: String,
    kv_heads: usize,
    head_dim: usize,
    pub tokens: usize,
    group: u8,
    key_bits: u8,
    value_bits: u8,
    pub iterations: u32,
    pub key_seed: u32,
    pub value_seed: u32,
    pub key_checksum: f64,
    pub value_checksum: f64,
    pub key_relative_error: f64,
    pub value_relative_error: f64,
    pub record_bytes: usize,
    pub records: Slice,
}

impl EncodeCase {
    pub fn shape(&self) -> Shape {
        let preset = Preset::new(self.key_bits, self.value_bits, self.group).unwrap();
        Shape::new(preset, self.kv_heads, self.head_dim).unwrap()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DecodeCase {
    pub name: String,
    preset: String,
    kv_heads: usize,
    head_dim: usize,
    pub records: Slice,
}

impl DecodeCase {
    pub fn shape(&self) -> Shape {
        Shape::new(Preset::parse(&self.preset).unwrap(), self.kv_heads, self.head_dim).unwrap()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateCase {
    pub name: String,
    pub rows: usize,
    pub head_dim: usize,
    pub seed: u32,
    pub output: Slice,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NormalizeCase {
    pub name: String,
    pub side: String,
    pub rows: usize,
    pub columns: usize,
    pub scale: f32,
    pub kind: String,
    pub seed: u32,
    pub iterations: u32,
    pub row_scale: Slice,
    pub column_scale: Slice,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackCase {
    pub name: String,
    pub rows: usize,
    pub columns: usize,
    pub bits: u32,
    pub seed: u32,
    pub codes: Slice,
    pub scale: Slice,
    pub zero: Slice,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExactTokens {
    pub tokens: usize,
    pub key_seed: u32,
    pub value_seed: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queries {
    pub tokens: usize,
    pub seed: u32,
    pub scale: f32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttendCase {
    pub name: String,
    pub records: String,
    pub sink: ExactTokens,
    pub tail: ExactTokens,
    pub queries: Queries,
    pub preset: String,
    #[serde(flatten)]
    pub layer: LayerConfig,
    pub output: Slice,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheCase {
    pub name: String,
    pub config: Config,
    pub tokens: HashMap<String, ExactTokens>,
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    pub preset: String,
    layers: Vec<LayerConfig>,
    pub iterations: u32,
    pub exact_window: usize,
}

impl Config {
    pub fn layers(&self) -> Vec<Layer> {
        self.layers.iter().map(LayerConfig::layer).collect()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerConfig {
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    softmax_scale: Option<f64>,
    sliding_window: Option<usize>,
    soft_cap: Option<f64>,
    sink_logits: Option<Vec<f64>>,
    /// Fields that nothing here knows; `deny_unknown_fields` does not go with `flatten`.
    #[serde(flatten)]
    unknown: HashMap<String, serde_json::Value>,
}

impl LayerConfig {
    pub fn layer(&self) -> Layer {
        assert!(
            self.unknown.is_empty(),
            "unknown fields {:?}",
            self.unknown.keys()
        );
        Layer {
            softmax_scale: self.softmax_scale,
            sliding_window: self.sliding_window,
            soft_cap: self.soft_cap,
            sink_logits: self.sink_logits.clone(),
            ..Layer::new(self.query_heads, self.kv_heads, self.head_dim)
        }
    }
}

#[derive(Deserialize)]
#[serde(
    tag = "do",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Step {
    Append {
        cache: String,
        layer: usize,
        tokens: String,
        from: usize,
        count: usize,
        chunk: usize,
    },
    Attend {
        cache: String,
        layer: usize,
        seed: u32,
        count: usize,
        output: Slice,
    },
    Records {
        cache: String,
        layer: usize,
        records: Vec<Slice>,
    },
    Length {
        cache: String,
        layer: usize,
        length: usize,
    },
    Flush {
        cache: String,
    },
    Truncate {
        cache: String,
        length: usize,
    },
    RefuseTruncate {
        cache: String,
        length: usize,
    },
    RefuseAppend {
        cache: String,
        layer: usize,
        tokens: String,
        from: usize,
        count: usize,
    },
    Fork {
        cache: String,
        #[serde(rename = "as")]
        name: String,
    },
    Save {
        cache: String,
        #[serde(rename = "as")]
        name: String,
        most_bytes: usize,
    },
    Dispose {
        cache: String,
    },
}
