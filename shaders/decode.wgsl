// Records to K and V in f32, rotated back. One workgroup a row of one token.

override D: u32;
override BLOCK: u32;
override GROUP: u32;
override KV_HEADS: u32;
override KEY_BITS: u32;
override VALUE_BITS: u32;
// Words from the start of a record to its fields, and of a whole record.
override K_SCALE: u32;
override K_ZERO: u32;
override K_TOKEN: u32;
override V_CODES: u32;
override V_SCALE: u32;
override V_TOKEN: u32;
override V_ZERO: u32;
override RECORD: u32;

struct Params {
  // Words at which the record block begins, and at which its tokens' K and V begin in the output.
  block: u32,
  k: u32,
  v: u32,
  factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> records: array<u32>;
// [token][KV head][channel]
@group(0) @binding(2) var<storage, read_write> decoded: array<f32>;

var<workgroup> row: array<f32, D>;

//# include half
//# include hadamard
//# include codes

fn word(at: u32) -> u32 {
  return records[at];
}

fn scaleAt(start: u32, index: u32) -> f32 {
  return halfOf(records[start + index / 2u], index);
}

@compute @workgroup_size(64)
fn decode(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let token = group.x;
  let head = group.y;
  let isKey = group.z == 0u;
  let start = params.block + head * RECORD;
  for (var i = lane; i < D; i += 64u) {
    if (isKey) {
      let code = f32(codeAt(start, i * GROUP + token, KEY_BITS));
      let balanced = fma(code, scaleAt(start + K_SCALE, i), scaleAt(start + K_ZERO, i));
      row[i] = balanced * scaleAt(start + K_TOKEN, token);
    } else {
      let code = f32(codeAt(start + V_CODES, token * D + i, VALUE_BITS));
      let balanced = fma(code, scaleAt(start + V_TOKEN, token), scaleAt(start + V_ZERO, token));
      row[i] = balanced * scaleAt(start + V_SCALE, i);
    }
  }
  transformRow(lane);
  let to = select(params.v, params.k, isKey) + (token * KV_HEADS + head) * D;
  for (var i = lane; i < D; i += 64u) {
    decoded[to + i] = row[i] * params.factor;
  }
}
