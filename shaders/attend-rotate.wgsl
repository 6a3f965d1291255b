// The queries of ROWS = 4 rows of one KV head, rotated and times the softmax scale, for attend-blocks.

override D: u32;
override BLOCK: u32;
override ROWS: u32;
// Of a workgroup of attend-blocks.
override BLOCK_ROWS: u32;

struct Params {
  // Where the first query token begins, in words.
  start: u32,
  rows: u32,
  queryHeads: u32,
  headsPerKvHead: u32,
  softmaxScale: f32,
  // Of BLOCK_ROWS rows.
  blocks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// [token][query head][channel], f32 or binary16.
@group(0) @binding(1) var<storage, read> q: array<u32>;
// [KV head][block][channel][row], four rows in one.
@group(0) @binding(2) var<storage, read_write> queries: array<Rows>;

//# include attend-rows
//# include attend-queries

@compute @workgroup_size(64)
fn attend_rotate(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  takeQueries(group.x, group.y, lane);
  let block = group.x / (BLOCK_ROWS / 4u);
  let four = group.x % (BLOCK_ROWS / 4u);
  for (var i = lane; i < D; i += 64u) {
    let channel = (group.y * params.blocks + block) * D + i;
    queries[channel * (BLOCK_ROWS / 4u) + four] = row[i];
  }
}
