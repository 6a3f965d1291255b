// Rotates rows of D values: the Walsh-Hadamard transform in blocks of BLOCK, the largest power of two that divides D. One
// workgroup a row.

override D: u32;
override BLOCK: u32;

struct Params {
  rows: u32,
  // 1 / sqrt(BLOCK)
  factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

var<workgroup> row: array<f32, D>;

//# include hadamard

@compute @workgroup_size(64)
fn rotate(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = group.x + group.y * groups.x;
  if (index >= params.rows) {
    return;
  }
  for (var i = lane; i < D; i += 64u) {
    row[i] = x[index * D + i];
  }
  transformRow(lane);
  for (var i = lane; i < D; i += 64u) {
    x[index * D + i] = row[i] * params.factor;
  }
}
