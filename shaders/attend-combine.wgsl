// Merges the partial results of one row by the log-sum-exp of their scores, in the order of their slots, adds
// the sink logit to the denominator and rotates the sum back.

override D: u32;
override BLOCK: u32;
// Invocations of a workgroup: a power of two from 64.
override THREADS: u32;
// Channels go by fours. Each four's slots are summed in so many shares.
override SHARES: u32;
// D / 4 * SHARES
override SUMS: u32;

struct Params {
  // With partial results.
  slots: u32,
  kvHeads: u32,
  // Rows of a KV head and slot.
  paddedRows: u32,
  headsPerKvHead: u32,
  // Where the first query token's output begins, in words.
  start: u32,
  hasSinks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// As attend-tiles writes them.
@group(0) @binding(1) var<storage, read> partials: array<vec4f>;
@group(0) @binding(2) var<storage, read> totals: array<vec2f>;
@group(0) @binding(3) var<storage, read> sinkLogits: array<f32>;
@group(0) @binding(4) var<storage, read_write> result: array<f32>;

const HIDDEN: f32 = -3.4028234e38;

var<workgroup> row: array<f32, D>;
var<workgroup> sums: array<vec4f, SUMS>;
var<workgroup> weights: array<f32, THREADS>;
var<workgroup> reduced: array<f32, THREADS>;

//# include hadamard

@compute @workgroup_size(THREADS)
fn attend_combine(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let number = group.x;
  let kvHead = group.y;
  let head = kvHead * params.headsPerKvHead + number % params.headsPerKvHead;
  let own = kvHead * params.paddedRows + number;
  let rows = params.kvHeads * params.paddedRows;

  var top = HIDDEN;
  for (var slot = lane; slot < params.slots; slot += THREADS) {
    top = max(top, totals[slot * rows + own].x);
  }
  reduced[lane] = top;
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      reduced[lane] = max(reduced[lane], reduced[lane + half]);
    }
  }
  workgroupBarrier();
  top = reduced[0];
  var denominator = 0.0;
  if (params.hasSinks != 0u) {
    let logit = sinkLogits[head];
    top = max(top, logit);
    if (lane == 0u) {
      denominator = exp(max(logit - top, -100.0));
    }
  }

  for (var i = lane; i < SUMS; i += THREADS) {
    sums[i] = vec4f(0.0);
  }
  for (var first = 0u; first < params.slots; first += THREADS) {
    let count = min(THREADS, params.slots - first);
    if (lane < count) {
      let total = totals[(first + lane) * rows + own];
      let weight = exp(max(total.x - top, -100.0));
      weights[lane] = weight;
      denominator += weight * total.y;
    }
    workgroupBarrier();
    for (var i = lane; i < SUMS; i += THREADS) {
      var sum = sums[i];
      // Four at a time, so that they are on their way together; the last ones may count again, for nothing.
      for (var slot = i / (D / 4u); slot < count; slot += 4u * SHARES) {
        //# for u in 0..4
        let at_u = slot + $u * SHARES;
        let value_u = partials[((first + min(at_u, count - 1u)) * rows + own) * (D / 4u) + i % (D / 4u)];
        //# end
        //# for u in 0..4
        sum = fma(vec4f(select(0.0, weights[min(at_u, count - 1u)], at_u < count)), value_u, sum);
        //# end
      }
      sums[i] = sum;
    }
    workgroupBarrier();
  }

  reduced[lane] = denominator;
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      reduced[lane] += reduced[lane + half];
    }
  }
  workgroupBarrier();
  for (var i = lane; i < D; i += THREADS) {
    var sum = 0.0;
    for (var share = 0u; share < SHARES; share++) {
      sum += sums[share * (D / 4u) + i / 4u][i % 4u];
    }
    // A row that sees nothing has no weights.
    row[i] = select(0.0, sum / reduced[0], reduced[0] > 0.0);
  }
  // The transform takes 64 invocations; for the others there is no pair from D on.
  transformRow(select(D, lane, lane < 64u));
  let token = number / params.headsPerKvHead;
  let first = (token * params.kvHeads * params.headsPerKvHead + head) * D;
  for (var i = lane; i < D; i += THREADS) {
    result[params.start + first + i] = row[i] * inverseSqrt(f32(BLOCK));
  }
}
