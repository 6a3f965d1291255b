// Merges the partial results of one row by the log-sum-exp of their scores, in the order of their slots, adds
// the sink logit to the denominator and rotates the sum back.

override D: u32;
override BLOCK: u32;
// Invocations of a workgroup: a power of two from 64.
override THREADS: u32;
override SHARES: u32;
// D * SHARES: each channel's slots are summed in so many shares.
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
// [slot][KV head][row]: D sums, the maximum that they are relative to and the sum of the weights.
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read> sinkLogits: array<f32>;
@group(0) @binding(3) var<storage, read_write> result: array<f32>;

const HIDDEN: f32 = -3.4028234e38;

var<workgroup> row: array<f32, D>;
var<workgroup> sums: array<f32, SUMS>;
var<workgroup> weights: array<f32, THREADS>;
var<workgroup> reduced: array<f32, THREADS>;

//# include hadamard

fn partial(slot: u32, at: u32) -> f32 {
  return partials[slot * params.kvHeads * params.paddedRows * (D + 2u) + at];
}

@compute @workgroup_size(THREADS)
fn attend_combine(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let number = group.x;
  let kvHead = group.y;
  let head = kvHead * params.headsPerKvHead + number % params.headsPerKvHead;
  let at = (kvHead * params.paddedRows + number) * (D + 2u);

  var top = HIDDEN;
  for (var slot = lane; slot < params.slots; slot += THREADS) {
    top = max(top, partial(slot, at + D));
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
    sums[i] = 0.0;
  }
  for (var first = 0u; first < params.slots; first += THREADS) {
    let count = min(THREADS, params.slots - first);
    if (lane < count) {
      let weight = exp(max(partial(first + lane, at + D) - top, -100.0));
      weights[lane] = weight;
      denominator += weight * partial(first + lane, at + D + 1u);
    }
    workgroupBarrier();
    for (var i = lane; i < SUMS; i += THREADS) {
      var sum = sums[i];
      // Four at a time, so that they are on their way together; the last ones may count again, for nothing.
      for (var slot = i / D; slot < count; slot += 4u * SHARES) {
        //# for u in 0..4
        let at_u = slot + $u * SHARES;
        let value_u = partial(first + min(at_u, count - 1u), at + i % D);
        //# end
        //# for u in 0..4
        sum = fma(select(0.0, weights[min(at_u, count - 1u)], at_u < count), value_u, sum);
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
    var sum = sums[i];
    for (var share = 1u; share < SHARES; share++) {
      sum += sums[share * D + i];
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
