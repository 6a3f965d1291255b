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

// Binary16 numbers from the start of `exact` to the tile's first row and column, and from one row and column to the next.
var<private> tileStart: u32;
var<private> rowStep: u32;
var<private> columnStep: u32;

// Finds where a tile and a KV head's record lie.
fn openRecord(job: u32) {
  let tile = tiles[job / params.kvHeads];
  let head = job % params.kvHeads;
  record = tile.y + head * params.recordWords;
  //# if KEYS
  rowStep = 1u;
  columnStep = 2u * params.kvHeads * ROWS;
  tileStart = 2u * tile.x + head * ROWS;
  //# else
  rowStep = 2u * params.kvHeads * COLUMNS;
  columnStep = 1u;
  tileStart = 2u * tile.x + (params.kvHeads + head) * COLUMNS;
  //# end
}
