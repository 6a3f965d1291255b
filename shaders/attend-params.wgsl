// What attend-tiles and attend-matrix are given.

struct Params {
  // In records, in a split, and the number of splits.
  tiles: u32,
  tilesPerSplit: u32,
  recordSplits: u32,
  // Of exact tokens.
  pieces: u32,
  piecesPerSplit: u32,
  // Of the first split; the first of exact tokens comes after the last of records.
  slot: u32,
  kvHeads: u32,
  // Of rows.
  blocks: u32,
  headsPerKvHead: u32,
  // Where the first query token begins, in words.
  start: u32,
  rows: u32,
  queryHeads: u32,
  softmaxScale: f32,
  // Of the first query token.
  position: u32,
  window: u32,
  // 0: none.
  softCap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
// Where a tile's records begin, in words, and its first position.
@group(0) @binding(2) var<storage, read> tiles: array<vec2u>;
// [token][K, V][KV head][channel], two a word.
@group(0) @binding(3) var<storage, read> exactTokens: array<u32>;
// Three words a piece: where it begins, its first position, its tokens.
@group(0) @binding(4) var<storage, read> pieces: array<u32>;
// [token][query head][channel], f32 or binary16.
@group(0) @binding(5) var<storage, read> q: array<u32>;
// [slot][KV head][row][channel]
@group(0) @binding(6) var<storage, read_write> partials: array<f32>;
// [slot][KV head][row]: the maximum that sums are relative to, and the sum of the weights.
@group(0) @binding(7) var<storage, read_write> totals: array<vec2f>;
