// Of the moments of queries, how much of a later channel's error each channel is to make up for. With H as
// src/reference/refine.ts has it, `H = L diagonal(d) L^T`: L, below its diagonal, is what is looked for. One workgroup a KV
// head; an invocation has every THREADSth channel, and goes through earlier ones by fours.

override D: u32;
override THREADS: u32;
override FOURS: u32 = D / 4u;

struct Params {
  // Word at which the moments begin in the binding.
  start: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// [KV head][channel][channel], the upper triangle counts.
@group(0) @binding(1) var<storage, read> moments: array<f32>;
// [KV head][channel][earlier channel], zeros for others; all of them where the moments are of no queries.
@group(0) @binding(2) var<storage, read_write> factors: array<vec4f>;

const QUERY_WEIGHT = 10.0;
// Bits of 0.5 and of infinity.
const HALF_ONE = 0x3f000000u;
const INFINITE = 0x7f800000u;

// Of the present four channels, times d of earlier ones: columns are those, by fours.
var<workgroup> earlier: array<mat4x4f, FOURS>;
// What H has for the four among themselves, less what earlier channels explain.
var<workgroup> corner: array<vec4f, 4>;
var<workgroup> diagonal: array<f32, D>;

// Whether x is a number, and at least 0.5.
fn counts(x: f32) -> bool {
  let bits = bitcast<u32>(x);
  return bits >= HALF_ONE && bits < INFINITE;
}

@compute @workgroup_size(THREADS)
fn factor_queries(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let ofHead = params.start + head * D * D;
  let rows = head * D * FOURS;
  var trace = 0.0;
  for (var i = 0u; i < D; i++) {
    trace += moments[ofHead + i * D + i];
  }
  // Each query adds 1: less is of none.
  var isFactored = counts(trace);
  let weight = QUERY_WEIGHT * f32(D) / trace;

  for (var four = 0u; four < FOURS; four++) {
    for (var i = lane; i < four; i += THREADS) {
      let d = vec4f(diagonal[4u * i], diagonal[4u * i + 1u], diagonal[4u * i + 2u], diagonal[4u * i + 3u]);
      let at = rows + 4u * four * FOURS + i;
      earlier[i] = transpose(mat4x4f(
        factors[at] * d,
        factors[at + FOURS] * d,
        factors[at + 2u * FOURS] * d,
        factors[at + 3u * FOURS] * d,
      ));
    }
    workgroupBarrier();
    //# for c in 0..(D + THREADS - 1) / THREADS
    let channel_c = $c * THREADS + lane;
    let isLater_c = channel_c >= 4u * four && channel_c < D;
    var rest_c = vec4f(0.0);
    if (isLater_c) {
      for (var i = 0u; i < 4u; i++) {
        let other = 4u * four + i;
        let moment = moments[ofHead + min(other, channel_c) * D + max(other, channel_c)];
        rest_c[i] = weight * moment + select(0.0, 1.0, other == channel_c);
      }
      for (var i = 0u; i < four; i++) {
        rest_c -= earlier[i] * factors[rows + channel_c * FOURS + i];
      }
      if (channel_c < 4u * four + 4u) {
        corner[channel_c % 4u] = rest_c;
      }
    }
    //# end
    workgroupBarrier();
    // The same for the four by themselves, then for all channels from them on.
    let d0 = corner[0].x;
    let l10 = corner[1].x / d0;
    let l20 = corner[2].x / d0;
    let l30 = corner[3].x / d0;
    let d1 = corner[1].y - l10 * corner[1].x;
    let r21 = corner[2].y - l10 * corner[2].x;
    let r31 = corner[3].y - l10 * corner[3].x;
    let l21 = r21 / d1;
    let l31 = r31 / d1;
    let d2 = corner[2].z - l20 * corner[2].x - l21 * r21;
    let r32 = corner[3].z - l20 * corner[3].x - l21 * r31;
    let l32 = r32 / d2;
    let d3 = corner[3].w - l30 * corner[3].x - l31 * r31 - l32 * r32;
    isFactored = isFactored && counts(d0) && counts(d1) && counts(d2) && counts(d3);
    let ds = vec4f(d0, d1, d2, d3);
    if (lane < 4u) {
      diagonal[4u * four + lane] = ds[lane];
    }
    //# for c in 0..(D + THREADS - 1) / THREADS
    if (isLater_c) {
      var left = rest_c;
      left.y -= l10 * left.x;
      left.z -= l20 * left.x + l21 * left.y;
      left.w -= l30 * left.x + l31 * left.y + l32 * left.z;
      let isEarlier = vec4u(4u * four) + vec4u(0u, 1u, 2u, 3u) < vec4u(channel_c);
      factors[rows + channel_c * FOURS + four] = select(vec4f(0.0), left / ds, isEarlier);
    } else if (channel_c < D) {
      factors[rows + channel_c * FOURS + four] = vec4f(0.0);
    }
    //# end
    storageBarrier();
    workgroupBarrier();
  }
  if (!isFactored) {
    for (var i = lane; i < D * FOURS; i += THREADS) {
      factors[rows + i] = vec4f(0.0);
    }
  }
}
