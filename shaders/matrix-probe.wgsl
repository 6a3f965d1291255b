// One product on matrix units, of bytes that are known.

//# include matrix

struct Params {
  seed: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> result: array<i32>;

const DIGITS_STEP: u32 = 0u;
const CODES_ROW: u32 = 16u;
const SUMS_ROW: u32 = 20u;

var<workgroup> digits: array<i32, 128>;
var<workgroup> codes: array<array<i32, 320>, 2>;

@compute @workgroup_size(32)
fn matrix_probe(@builtin(local_invocation_index) lane: u32) {
  for (var i = lane; i < 256u; i += 32u) {
    digits[i % 128u] = bitcast<i32>((i % 128u + 1u) * params.seed);
    codes[1][i] = bitcast<i32>((i + 1u) * params.seed);
  }
  workgroupBarrier();
  let product = multiplied(leftAt(0u), rightAt(1u, 0u, 0u), Product());
  workgroupBarrier();
  storeProduct(1u, 0u, product);
  workgroupBarrier();
  for (var i = lane; i < 256u; i += 32u) {
    result[i] = codes[1][i / 16u * SUMS_ROW + i % 16u];
  }
}
