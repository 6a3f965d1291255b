// Codes to numbers: `code * scale + zero` of the row, or with RAW the codes themselves, four bytes a word.

override BITS: u32;
override COLUMNS: u32;

struct Params {
  // Numbers; with RAW words of four.
  count: u32,
  // Workgroups in the grid's first dimension.
  width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> codes: array<u32>;
//# if RAW
@group(0) @binding(2) var<storage, read_write> raw: array<u32>;
//# else
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read> zero: array<f32>;
@group(0) @binding(4) var<storage, read_write> values: array<f32>;
//# end

//# include codes

fn word(at: u32) -> u32 {
  return codes[at];
}

@compute @workgroup_size(64)
fn unpack(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * params.width + group.x) * 64u + lane;
  if (i >= params.count) {
    return;
  }
//# if RAW
  var bytes = 0u;
  for (var n = 0u; n < 4u; n++) {
    bytes |= codeAt(0u, 4u * i + n, BITS) << (8u * n);
  }
  raw[i] = bytes;
//# else
  let row = i / COLUMNS;
  values[i] = fma(f32(codeAt(0u, i, BITS)), scale[row], zero[row]);
//# end
}
