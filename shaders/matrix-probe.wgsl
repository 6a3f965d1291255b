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
var<workgroup> codes: array<array<i32, 320>, 4>;

@compute @workgroup_size(128)
fn matrix_probe(@builtin(local_invocation_index) thread: u32) {
  digits[thread] = bitcast<i32>((thread + 1u) * params.seed);
  codes[0][thread] = bitcast<i32>((thread + 1u) * params.seed);
  codes[0][thread + 128u] = bitcast<i32>((thread + 129u) * params.seed);
  workgroupBarrier();
  let product = multiplied(leftAt(0u), rightAt(0u, 0u, 0u), Product());
  workgroupBarrier();
  storeProduct(thread / 32u, 0u, product);
  workgroupBarrier();
  for (var i = thread; i < 256u; i += 128u) {
    result[i] = codes[3][i / 16u * SUMS_ROW + i % 16u];
  }
  // Who is in a subgroup.
  result[256u + thread] = i32(mostOf(thread) * 256u + u32(exchanged(vec4f(f32(thread)), 1u).x));
}
