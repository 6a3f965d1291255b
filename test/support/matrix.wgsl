// What shaders/matrix.wgsl does, in plain WGSL, for GPUs without matrix units: matrices stay where they lie, and each of 32
// invocations has eight sums of a product.

struct Left {
  word: u32,
}
struct Right {
  subgroup: u32,
  word: u32,
}
struct Product {
  sums: array<i32, 8>,
}

// To be set first.
var<private> invocation: u32;
var<workgroup> exchange: array<vec4u, 128>;

fn leftAt(step: u32) -> Left {
  return Left(step * DIGITS_STEP);
}

fn rightAt(subgroup: u32, columns: u32, step: u32) -> Right {
  return Right(subgroup, columns * CODES_ROW + step * 8u);
}

fn storeProduct(subgroup: u32, column: u32, product: Product) {
  for (var i = 0u; i < 8u; i++) {
    let at = invocation % 32u * 8u + i;
    codes[subgroup][column + at / 16u * SUMS_ROW + at % 16u] = product.sums[i];
  }
}

fn multiplied(left: Left, right: Right, product: Product) -> Product {
  var result = product;
  for (var i = 0u; i < 8u; i++) {
    let at = invocation % 32u * 8u + i;
    for (var k = 0u; k < 8u; k++) {
      let four = bitcast<u32>(digits[left.word + at / 16u * 8u + k]);
      result.sums[i] += dot4I8Packed(four, bitcast<u32>(codes[right.subgroup][right.word + at % 16u * CODES_ROW + k]));
    }
  }
  return result;
}

fn share(x: vec4u) {
  workgroupBarrier();
  exchange[invocation] = x;
  workgroupBarrier();
}

fn sharedBy(lane: u32) -> vec4u {
  return exchange[invocation / 32u * 32u + lane];
}

fn mostOf(x: u32) -> u32 {
  share(vec4u(x));
  var most = x;
  for (var i = 0u; i < 32u; i++) {
    most = max(most, sharedBy(i).x);
  }
  return most;
}

fn sumOf(x: f32) -> f32 {
  share(vec4u(bitcast<u32>(x)));
  var sum = 0.0;
  for (var i = 0u; i < 32u; i++) {
    sum += bitcast<f32>(sharedBy(i).x);
  }
  return sum;
}

fn exchanged(x: vec4f, distance: u32) -> vec4f {
  share(bitcast<vec4u>(x));
  return bitcast<vec4f>(sharedBy((invocation % 32u) ^ distance));
}
