// What shaders that encode tiles of exact tokens into one half of their records, K or V, are given: a workgroup
// for each tile and KV head.

struct Params {
  // Tiles times KV heads.
  count: u32,
  // Workgroups side by side in the grid's first dimension.
  stride: u32,
  kvHeads: u32,
  iterations: u32,
  // Sizes and offsets in words. Of a record:
  recordWords: u32,
  codes: u32,
  rowScale: u32,
  rowZero: u32,
  columnScale: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// `[token][2 (K, V)][kvHeads][headDim]` binary16 each.
@group(0) @binding(1) var<storage, read> exact: array<u32>;
@group(0) @binding(2) var<storage, read_write> records: array<u32>;
// Of each tile the offsets, in words, of its tokens and of its records.
@group(0) @binding(3) var<storage, read> tiles: array<vec2u>;

const HALF_MAX = 65504.0;

// Words from the start of `records` to the record.
var<private> record: u32;
