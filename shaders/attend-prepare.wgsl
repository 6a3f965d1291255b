// Rotates queries and multiplies them by the softmax scale. The result, [KV head][block of ROWS
// rows][channel][row], has zeros for rows that complete the last block.

override D: u32;
override BLOCK: u32;
override ROWS: u32;

struct Params {
  // Where the first query token begins, in words.
  start: u32,
  rows: u32,
  headsPerKvHead: u32,
  queryHeads: u32,
  blocks: u32,
  softmaxScale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<u32>;
@group(0) @binding(2) var<storage, read_write> prepared: array<f32>;

var<workgroup> row: array<f32, D>;

//# include hadamard
//# include half

@compute @workgroup_size(64)
fn attend_prepare(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let number = group.x;
  let kvHead = group.y;
  let head = kvHead * params.headsPerKvHead + number % params.headsPerKvHead;
  let first = (number / params.headsPerKvHead * params.queryHeads + head) * D;
  for (var i = lane; i < D; i += 64u) {
    var x = 0.0;
    if (number < params.rows) {
      //# if HALF
      x = halfOf(q[params.start + (first + i) / 2u], i);
      //# else
      x = bitcast<f32>(q[params.start + first + i]);
      //# end
    }
    row[i] = x;
  }
  transformRow(lane);
  let block = kvHead * params.blocks + number / ROWS;
  for (var i = lane; i < D; i += 64u) {
    let x = row[i] * (inverseSqrt(f32(BLOCK)) * params.softmaxScale);
    prepared[(block * D + i) * ROWS + number % ROWS] = x;
  }
}
