// The decode step over an uncompressed cache: attention of one query token, ROWS = 4 query heads per KV head,
// over K and V in binary16, `[KV head][token][channel]` each, which is read faster than heads in between tokens.
// A workgroup takes the tokens of one split for one KV head, 128 at a time, with a running maximum. Rows are
// read 16 bytes an invocation, in whole cache sectors; values are fetched before the scores are there. A second
// kernel merges the splits.

override D: u32;
// Invocations that share a value row: D / 8.
override COLUMNS: u32;
// How many such teams there are: 256 / COLUMNS.
override TEAMS: u32;

struct Params {
  tokens: u32,
  tokensPerSplit: u32,
  kvHeads: u32,
  splits: u32,
  softmaxScale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> keys: array<vec4u>;
@group(0) @binding(2) var<storage, read> values: array<vec4u>;
// [query head][channel]
@group(0) @binding(3) var<storage, read> q: array<f32>;
// [KV head][split]: D sums of four rows, their maxima and the sums of their weights.
@group(0) @binding(4) var<storage, read_write> partials: array<vec4f>;

var<workgroup> queries: array<vec4f, D>;
var<workgroup> work: array<vec4f, 512>;
var<workgroup> weights: array<vec4f, 128>;
var<workgroup> reduced: array<vec4f, 16>;

@compute @workgroup_size(256)
fn attend(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let split = group.x;
  let kvHead = group.y;
  let first = split * params.tokensPerSplit;
  let end = min(first + params.tokensPerSplit, params.tokens);
  for (var i = lane; i < D; i += 256u) {
    let at = kvHead * 4u * D + i;
    queries[i] = params.softmaxScale * vec4f(q[at], q[at + D], q[at + 2u * D], q[at + 3u * D]);
  }
  let column = lane % COLUMNS;
  let team = lane / COLUMNS;
  var top = vec4f(-1e30);
  var total = vec4f(0.0);
  //# for c in 0..8
  var sum_c = vec4f(0.0);
  //# end
  workgroupBarrier();

  for (var start = first; start < end; start += 128u) {
    // Four invocations share a key row; an invocation takes two rows, 64 tokens apart.
    let row = (kvHead * params.tokens + start + lane / 4u) * (D / 8u) + lane % 4u;
    let other = row + 64u * (D / 8u);
    //# for i in 0..D / 32
    let key_i = keys[row + $i * 4u];
    let otherKey_i = keys[other + $i * 4u];
    //# end
    let valueRow = (kvHead * params.tokens + start + team) * (D / 8u) + column;
    //# for i in 0..128 * D / 2048
    let value_i = values[valueRow + $i * TEAMS * (D / 8u)];
    //# end

    var score = vec4f(0.0);
    var otherScore = vec4f(0.0);
    //# for i in 0..D / 32
    //# for w in 0..4
    {
      let query = queries[$i * 32u + lane % 4u * 8u + $w * 2u];
      let nextQuery = queries[$i * 32u + lane % 4u * 8u + $w * 2u + 1u];
      let pair = unpack2x16float(key_i[$w]);
      let otherPair = unpack2x16float(otherKey_i[$w]);
      score = fma(query, vec4f(pair.x), fma(nextQuery, vec4f(pair.y), score));
      otherScore = fma(query, vec4f(otherPair.x), fma(nextQuery, vec4f(otherPair.y), otherScore));
    }
    //# end
    //# end
    work[lane] = score;
    work[lane + 256u] = otherScore;
    workgroupBarrier();
    if (lane < 128u) {
      score = (work[lane * 4u] + work[lane * 4u + 1u]) + (work[lane * 4u + 2u] + work[lane * 4u + 3u]);
      score = select(vec4f(-1e30), score, start + lane < end);
      weights[lane] = score;
    }
    workgroupBarrier();
    if (lane < 16u) {
      var most = weights[lane];
      for (var i = 1u; i < 8u; i++) {
        most = max(most, weights[lane + 16u * i]);
      }
      reduced[lane] = most;
    }
    workgroupBarrier();
    var most = top;
    for (var i = 0u; i < 16u; i++) {
      most = max(most, reduced[i]);
    }
    let shrink = exp(top - most);
    top = most;
    total *= shrink;
    if (lane < 128u) {
      let weight = exp(score - top);
      weights[lane] = weight;
      total += weight;
    }
    workgroupBarrier();
    //# for c in 0..8
    sum_c *= shrink;
    //# end
    //# for i in 0..128 * D / 2048
    {
      let weight = weights[team + $i * TEAMS];
      //# for w in 0..4
      let pair_w = unpack2x16float(value_i[$w]);
      //# end
      sum_0 = fma(weight, vec4f(pair_0.x), sum_0);
      sum_1 = fma(weight, vec4f(pair_0.y), sum_1);
      sum_2 = fma(weight, vec4f(pair_1.x), sum_2);
      sum_3 = fma(weight, vec4f(pair_1.y), sum_3);
      sum_4 = fma(weight, vec4f(pair_2.x), sum_4);
      sum_5 = fma(weight, vec4f(pair_2.y), sum_5);
      sum_6 = fma(weight, vec4f(pair_3.x), sum_6);
      sum_7 = fma(weight, vec4f(pair_3.y), sum_7);
    }
    //# end
    workgroupBarrier();
  }

  let base = (kvHead * params.splits + split) * (D + 2u);
  //# for c in 0..8
  work[lane] = sum_c;
  workgroupBarrier();
  if (lane < COLUMNS) {
    var sum = vec4f(0.0);
    for (var i = 0u; i < TEAMS; i++) {
      sum += work[i * COLUMNS + lane];
    }
    partials[base + lane * 8u + $c] = sum;
  }
  workgroupBarrier();
  //# end
  work[lane] = total;
  workgroupBarrier();
  if (lane < 16u) {
    var sum = work[lane];
    for (var i = 1u; i < 8u; i++) {
      sum += work[lane + 16u * i];
    }
    reduced[lane] = sum;
  }
  workgroupBarrier();
  if (lane == 0u) {
    var sum = reduced[0];
    for (var i = 1u; i < 16u; i++) {
      sum += reduced[i];
    }
    partials[base + D] = top;
    partials[base + D + 1u] = sum;
  }
}

@group(0) @binding(1) var<storage, read> merged: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

// A workgroup merges 16 channels of the four rows of a KV head; 16 invocations share a channel's splits.
@compute @workgroup_size(256)
fn combine(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let kvHead = group.x;
  let channel = group.y * 16u + lane % 16u;
  let base = kvHead * params.splits * (D + 2u);
  var top = vec4f(-1e30);
  for (var split = lane; split < params.splits; split += 256u) {
    top = max(top, merged[base + split * (D + 2u) + D]);
  }
  work[lane] = top;
  for (var half = 128u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      work[lane] = max(work[lane], work[lane + half]);
    }
  }
  workgroupBarrier();
  top = work[0];
  workgroupBarrier();
  var sum = vec4f(0.0);
  var total = vec4f(0.0);
  for (var split = lane / 16u; split < params.splits; split += 16u) {
    let at = base + split * (D + 2u);
    let weight = exp(merged[at + D] - top);
    total = fma(weight, merged[at + D + 1u], total);
    sum = fma(weight, merged[at + channel], sum);
  }
  work[lane] = sum;
  work[lane + 256u] = total;
  for (var half = 128u; half >= 16u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      work[lane] += work[lane + half];
      work[lane + 256u] += work[lane + half + 256u];
    }
  }
  if (lane < 16u) {
    let merged = work[lane] / work[lane + 256u];
    for (var row = 0u; row < 4u; row++) {
      result[(kvHead * 4u + row) * D + channel] = merged[row];
    }
  }
}
