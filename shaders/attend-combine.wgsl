// Merges the partial results of one row by the log-sum-exp of their scores, in the order of their slots, adds
// the sink logit to the denominator and rotates the sum back.

override D: u32;
override BLOCK: u32;
// Invocations of a workgroup: a power of two from 64, and at least D / 4.
override THREADS: u32;
// Channels go by fours. Each four's slots are summed in so many shares.
override SHARES: u32;
// Slots of a share that are fetched together.
override AHEAD: u32;
// Slots that are weighed at a time: as many multiples of AHEAD * SHARES as there are invocations for.
override AT_ONCE: u32;

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
// As attend-tiles and attend-blocks write them.
@group(0) @binding(1) var<storage, read> partials: array<vec4f>;
@group(0) @binding(2) var<storage, read> totals: array<vec2f>;
@group(0) @binding(3) var<storage, read> sinkLogits: array<f32>;
@group(0) @binding(4) var<storage, read_write> result: array<f32>;

const HIDDEN: f32 = -3.4028234e38;

var<workgroup> row: array<f32, D>;
var<workgroup> sums: array<vec4f, THREADS>;
var<workgroup> weights: array<f32, THREADS>;
var<workgroup> reduced: array<f32, THREADS>;
var<workgroup> narrowed: array<f32, 16>;

//# include hadamard

// Four channels of a row. Slots that do not exist have those of the last.
fn partialAt(slot: u32, own: u32, column: u32) -> vec4f {
  let rows = params.kvHeads * params.paddedRows;
  return partials[(min(slot, params.slots - 1u) * rows + own) * (D / 4u) + column];
}

@compute @workgroup_size(THREADS)
fn attend_combine(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let number = group.x;
  let kvHead = group.y;
  let head = kvHead * params.headsPerKvHead + number % params.headsPerKvHead;
  let own = kvHead * params.paddedRows + number;
  let rows = params.kvHeads * params.paddedRows;
  let column = lane % (D / 4u);
  let share = lane / (D / 4u);

  // Asked for at once: what comes then is short, and waits for the slowest of these.
  var total = totals[min(lane, params.slots - 1u) * rows + own];
  //# for u in 0..AHEAD
  var next_u = partialAt(share + $u * SHARES, own, column);
  //# end

  var top = select(HIDDEN, total.x, lane < params.slots);
  for (var slot = lane + THREADS; slot < params.slots; slot += THREADS) {
    top = max(top, totals[slot * rows + own].x);
  }
  reduced[lane] = top;
  workgroupBarrier();
  if (lane < 16u) {
    for (var i = lane + 16u; i < THREADS; i += 16u) {
      top = max(top, reduced[i]);
    }
    narrowed[lane] = top;
  }
  workgroupBarrier();
  top = narrowed[0];
  for (var i = 1u; i < 16u; i++) {
    top = max(top, narrowed[i]);
  }
  var denominator = 0.0;
  if (params.hasSinks != 0u) {
    let logit = sinkLogits[head];
    top = max(top, logit);
    if (lane == 0u) {
      denominator = exp(max(logit - top, -100.0));
    }
  }

  var sum = vec4f(0.0);
  for (var first = 0u; first < params.slots; first += AT_ONCE) {
    let count = min(AT_ONCE, params.slots - first);
    if (first > 0u) {
      workgroupBarrier();
      total = totals[min(first + lane, params.slots - 1u) * rows + own];
    }
    // Slots beyond the last have no weight.
    let weight = select(0.0, exp(max(total.x - top, -100.0)), lane < count);
    weights[lane] = weight;
    denominator = fma(weight, total.y, denominator);
    workgroupBarrier();
    if (share < SHARES) {
      for (var slot = share; slot < count; slot += AHEAD * SHARES) {
        //# for u in 0..AHEAD
        let value_u = next_u;
        next_u = partialAt(first + slot + (AHEAD + $u) * SHARES, own, column);
        //# end
        //# for u in 0..AHEAD
        sum = fma(vec4f(weights[slot + $u * SHARES]), value_u, sum);
        //# end
      }
    }
  }

  sums[lane] = sum;
  reduced[lane] = denominator;
  workgroupBarrier();
  if (lane < 16u) {
    for (var i = lane + 16u; i < THREADS; i += 16u) {
      denominator += reduced[i];
    }
    narrowed[lane] = denominator;
  }
  workgroupBarrier();
  denominator = narrowed[0];
  for (var i = 1u; i < 16u; i++) {
    denominator += narrowed[i];
  }
  for (var i = lane; i < D; i += THREADS) {
    var value = 0.0;
    for (var other = 0u; other < SHARES; other++) {
      value += sums[other * (D / 4u) + i / 4u][i % 4u];
    }
    // A row that sees nothing has no weights.
    row[i] = select(0.0, value / denominator, denominator > 0.0);
  }
  // The transform takes 64 invocations; for the others there is no pair from D on.
  transformRow(select(D, lane, lane < 64u));
  let token = number / params.headsPerKvHead;
  let first = (token * params.kvHeads * params.headsPerKvHead + head) * D;
  for (var i = lane; i < D; i += THREADS) {
    result[params.start + first + i] = row[i] * inverseSqrt(f32(BLOCK));
  }
}
