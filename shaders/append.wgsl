// Takes K or V of new tokens in: rotates the rows and puts them, rounded to binary16, behind the tokens of exact tiles.
// One workgroup a row.

override D: u32;
override BLOCK: u32;
override GROUP: u32;
override KV_HEADS: u32;

struct Params {
  // Tokens to take in, and which token of the first tile is the first of them.
  tokens: u32,
  start: u32,
  // Word at which they begin in the binding.
  source: u32,
  // 0: K, 1: V
  side: u32,
  // 1 / sqrt(BLOCK)
  factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
// [token][KV head][channel], f32 or, with HALF, binary16
@group(0) @binding(1) var<storage, read> rows: array<u32>;
// Word at which each tile begins.
@group(0) @binding(2) var<storage, read> tiles: array<u32>;
// [token][K, V][KV head][channel], two channels a word
@group(0) @binding(3) var<storage, read_write> exact: array<u32>;

var<workgroup> row: array<f32, D>;

//# include half
//# include hadamard

@compute @workgroup_size(64)
fn append(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let head = group.x;
  let token = group.y + group.z * groups.y;
  if (token >= params.tokens) {
    return;
  }
  let first = (token * KV_HEADS + head) * D;
  for (var i = lane; i < D; i += 64u) {
    row[i] = valueAt(first + i);
  }
  transformRow(lane);
  let place = params.start + token;
  let to = tiles[place / GROUP] + (((place % GROUP) * 2u + params.side) * KV_HEADS + head) * (D / 2u);
  for (var i = lane; i < D / 2u; i += 64u) {
    exact[to + i] = packHalves(row[2u * i] * params.factor, row[2u * i + 1u] * params.factor);
  }
}

fn valueAt(index: u32) -> f32 {
//# if HALF
  return halfOf(rows[params.source + index / 2u], index);
//# else
  return bitcast<f32>(rows[params.source + index]);
//# end
}
