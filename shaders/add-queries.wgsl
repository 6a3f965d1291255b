// Adds queries to the moments of their KV heads: of each query, rotated and of length 1, the products of its channels. One
// workgroup adds to 16 x 16 channels, those that a triangle has; queries go by fours, ROWS = 4.

override D: u32;
override BLOCK: u32;
override ROWS: u32;

struct Params {
  // Word at which the first query token begins in the binding.
  start: u32,
  // Query heads of all query tokens, of a KV head.
  rows: u32,
  queryHeads: u32,
  headsPerKvHead: u32,
  // 1: lengths do not count.
  softmaxScale: f32,
  // Word at which the moments begin in the binding.
  moments: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// [token][query head][channel], f32 or, with HALF, binary16.
@group(0) @binding(1) var<storage, read> q: array<u32>;
// [KV head][channel][channel], upper triangles.
@group(0) @binding(2) var<storage, read_write> moments: array<f32>;

//# include attend-rows
//# include attend-queries

const LEAST_NORMAL = 0x00800000u;
const INFINITE = 0x7f800000u;

// Bits of the largest magnitude of each row: of numbers that are not negative, they are ordered as the numbers are.
var<workgroup> largest: array<atomic<u32>, 4>;
// Squared lengths, of what an invocation has and of an eighth of all.
var<workgroup> squares: array<vec4f, 64>;
var<workgroup> eighths: array<vec4f, 8>;

// Divides the rows by their largest magnitude, so that squares stay in range. One that is not finite becomes zeros, and one of
// less than normal numbers, for which division need not be right.
fn scaleRows(lane: u32) {
  if (lane < 4u) {
    atomicStore(&largest[lane], 0u);
  }
  workgroupBarrier();
  for (var i = lane; i < D; i += 64u) {
    let bits = bitcast<vec4u>(row[i]) & vec4u(0x7fffffffu);
    //# for r in 0..4
    atomicMax(&largest[$r], bits[$r]);
    //# end
  }
  workgroupBarrier();
  let most = vec4u(
    atomicLoad(&largest[0]),
    atomicLoad(&largest[1]),
    atomicLoad(&largest[2]),
    atomicLoad(&largest[3]),
  );
  let counts = (most >= vec4u(LEAST_NORMAL)) & (most < vec4u(INFINITE));
  let divisor = select(vec4f(1.0), bitcast<vec4f>(most), counts);
  for (var i = lane; i < D; i += 64u) {
    row[i] = select(vec4f(0.0), row[i] / divisor, counts);
  }
}

// One over the squared lengths; 0 for rows of zeros.
fn weightsOf(lane: u32) -> vec4f {
  var own = vec4f(0.0);
  for (var i = lane; i < D; i += 64u) {
    own += row[i] * row[i];
  }
  squares[lane] = own;
  workgroupBarrier();
  if (lane < 8u) {
    var sum = vec4f(0.0);
    for (var i = lane; i < 64u; i += 8u) {
      sum += squares[i];
    }
    eighths[lane] = sum;
  }
  workgroupBarrier();
  var sum = vec4f(0.0);
  for (var i = 0u; i < 8u; i++) {
    sum += eighths[i];
  }
  return select(vec4f(0.0), 1.0 / sum, sum > vec4f(0.0));
}

@compute @workgroup_size(64)
fn add_queries(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  if (group.x < group.y) {
    return;
  }
  // Four of the first channels, and one of the second, an invocation.
  let first = group.y * 16u + lane / 16u * 4u;
  let second = group.x * 16u + lane % 16u;
  var sums = vec4f(0.0);
  for (var block = 0u; block * 4u < params.rows; block++) {
    takeQueries(block, group.z, lane);
    scaleRows(lane);
    let weighted = weightsOf(lane) * row[second];
    sums += vec4f(
      dot(row[first], weighted),
      dot(row[first + 1u], weighted),
      dot(row[first + 2u], weighted),
      dot(row[first + 3u], weighted),
    );
    workgroupBarrier();
  }
  let at = params.moments + (group.z * D + first) * D + second;
  //# for r in 0..4
  moments[at + $r * D] += sums[$r];
  //# end
}
