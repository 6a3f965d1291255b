// Rounds tiles of exact tokens with scales of its own choosing, for the same decoder: what it does and why is said in
// src/reference/refine.ts. One workgroup a tile and KV head, or SPAN of its rows; rows go one after another, as each may make up
// for the errors of those before it, and an invocation has four neighbouring columns. The columns' scales lie in the record.
//
// FACTORED: keys are rounded for the queries that have been seen.

override KEYS: bool;
override ROWS: u32;
override COLUMNS: u32;
override BITS: u32;
// How many ranges are tried for a row.
override RANGES: u32;
override SPAN: u32;
override THREADS: u32;
override FOURS: u32 = COLUMNS / 4u;
// Of the codes of two rows, which fill whole words whatever the columns.
override STREAM_WORDS: u32 = COLUMNS * BITS / 16u;

//# include encode-params
//# include half

const NARROWER = 0.4;
const TOKEN_DECAY = 0.9692332344763441; // e^(-1/32)
const TOKEN_SHARE = 0.15;
const HUGE = 3e38;

// The row that is being rounded, divided by the columns' scales.
var<workgroup> line: array<vec4f, FOURS>;
// Of rows in turn, the lowest and the highest value: see `inOrder`.
var<workgroup> lowests: array<atomic<i32>, 2>;
var<workgroup> highests: array<atomic<i32>, 2>;
// What each invocation has found of a range: sums of codes, of their squares, of code times value, and of values; and of
// squared values.
var<workgroup> partials: array<vec4f, THREADS>;
var<workgroup> squares: array<f32, THREADS>;
// Of each range: squared error, scale, zero point; and the row's mean.
var<workgroup> candidates: array<vec4f, RANGES>;
var<workgroup> stream: array<atomic<u32>, STREAM_WORDS>;
//# if !KEYS
// Squared lengths of the row and of what is owed, a quarter each.
var<workgroup> quarters: array<vec2f, 4>;
//# end

var<private> lane: u32;
// Whether the invocation's columns are columns of the tile.
var<private> isOwner: bool;
// Of the row: its lowest value, scale and zero point.
var<private> lowest: f32;
var<private> scale: f32;
var<private> zero: f32;

fn exactAt(row: u32) -> vec4f {
  let at = tileStart + row * rowStep + 4u * lane * columnStep;
  //# if KEYS
  return vec4f(
    halfOf(exact[at / 2u], at),
    halfOf(exact[(at + columnStep) / 2u], at),
    halfOf(exact[(at + 2u * columnStep) / 2u], at),
    halfOf(exact[(at + 3u * columnStep) / 2u], at),
  );
  //# else
  return vec4f(unpack2x16float(exact[at / 2u]), unpack2x16float(exact[at / 2u + 1u]));
  //# end
}

//# if FACTORED
//# include refine-queries
//# end

// Integers in the order of the numbers, and back.
fn inOrder(bits: i32) -> i32 {
  return bits ^ ((bits >> 31u) & 0x7fffffff);
}

fn totalOf(x: vec4f) -> f32 {
  return dot(x, vec4f(1.0));
}

// The nearest finite binary16.
fn roundHalf(x: f32) -> f32 {
  return unpack2x16float(toHalf(clamp(x, -HALF_MAX, HALF_MAX))).x;
}

// The nearest codes.
fn codesOf(x: vec4f, inverse: f32, first: f32) -> vec4f {
  return clamp(round(x * inverse + first), vec4f(0.0), vec4f(f32((1u << BITS) - 1u)));
}

// Sums of one range of the row in `line`, over every so many columns.
fn sumRange(range: f32) {
  let lanes = THREADS / RANGES;
  let narrower = f32(lane / lanes) * NARROWER / f32(1u << BITS);
  let distance = range * (1.0 - narrower) / f32((1u << BITS) - 1u);
  let inverse = select(0.0, 1.0 / distance, distance > 0.0);
  let first = -range * narrower * 0.5 * inverse;
  var codes = vec4f(0.0);
  var codeSquares = vec4f(0.0);
  var products = vec4f(0.0);
  var values = vec4f(0.0);
  var valueSquares = vec4f(0.0);
  for (var i = lane % lanes; i < FOURS; i += lanes) {
    // Above the lowest value, so that an offset costs no digits.
    let x = line[i] - lowest;
    let code = codesOf(x, inverse, first);
    codes += code;
    codeSquares += code * code;
    products += code * x;
    values += x;
    valueSquares += x * x;
  }
  partials[lane] = vec4f(totalOf(codes), totalOf(codeSquares), totalOf(products), totalOf(values));
  squares[lane] = totalOf(valueSquares);
}

// Of the range of the invocation's number, the scale and zero point with which errors do not depend on values.
fn fitRange() {
  let lanes = THREADS / RANGES;
  var means = vec4f(0.0);
  var square = 0.0;
  for (var i = lane * lanes; i < (lane + 1u) * lanes; i++) {
    means += partials[i];
    square += squares[i];
  }
  means /= f32(COLUMNS);
  let mean = means.w;
  let variance = square / f32(COLUMNS) - mean * mean;
  let covariance = means.z - means.x * mean;
  var candidate = vec4f(HUGE, 0.0, 0.0, mean);
  if (covariance > 0.0) {
    let fitted = variance / covariance;
    let error = fitted * fitted * (means.y - means.x * means.x) - variance;
    candidate = vec4f(error, fitted, mean - fitted * means.x, mean);
  }
  candidates[lane] = candidate;
}

// Chooses `scale` and `zero` for the row in `line`, whose extremes lie there; finds `lowest`.
fn fitRow(turn: u32) {
  workgroupBarrier();
  lowest = bitcast<f32>(inOrder(atomicLoad(&lowests[turn])));
  let range = bitcast<f32>(inOrder(atomicLoad(&highests[turn]))) - lowest;
  if (lane == 0u) {
    openExtremes(1u - turn);
  }
  sumRange(range);
  workgroupBarrier();
  if (lane < RANGES) {
    fitRange();
  }
  workgroupBarrier();
  var best = candidates[0];
  for (var i = 1u; i < RANGES; i++) {
    if (candidates[i].x < best.x) {
      best = candidates[i];
    }
  }
  scale = roundHalf(best.y);
  // A scale too small for binary16 leaves all codes the same value.
  zero = roundHalf(lowest + select(best.z, best.w, scale == 0.0));
}

fn openExtremes(turn: u32) {
  atomicStore(&lowests[turn], 0x7fffffff);
  atomicStore(&highests[turn], -0x7fffffff);
}

// Puts the invocation's codes of a row into the stream.
fn putCodes(row: u32, code: vec4f) {
  let codes = vec4u(code) << (vec4u(0u, 1u, 2u, 3u) * BITS);
  let bits = codes.x | codes.y | codes.z | codes.w;
  let position = ((row % 2u) * COLUMNS + 4u * lane) * BITS;
  let shift = position % 32u;
  atomicOr(&stream[position / 32u], bits << shift);
  if (shift + 4u * BITS > 32u) {
    atomicOr(&stream[position / 32u + 1u], bits >> (32u - shift));
  }
}

// Stores the codes and scales of two rows: of each, scale and zero point.
fn storePair(row: u32, even: vec2f, odd: vec2f) {
  workgroupBarrier();
  for (var i = lane; i < STREAM_WORDS; i += THREADS) {
    records[record + params.codes + row / 2u * STREAM_WORDS + i] = atomicExchange(&stream[i], 0u);
  }
  if (lane == 0u) {
    records[record + params.rowScale + row / 2u] = packHalves(even.x, odd.x);
    records[record + params.rowZero + row / 2u] = packHalves(even.y, odd.y);
  }
}

@compute @workgroup_size(THREADS)
fn refine(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) invocation: u32) {
  let number = group.y * params.stride + group.x;
  let job = number / (ROWS / SPAN);
  if (job >= params.count) {
    return;
  }
  let firstRow = number % (ROWS / SPAN) * SPAN;
  openRecord(job);
  lane = invocation;
  isOwner = lane < FOURS;
  //# if FACTORED
  openFactor(job);
  //# end

  for (var i = lane; i < STREAM_WORDS; i += THREADS) {
    atomicStore(&stream[i], 0u);
  }
  if (lane == 0u) {
    openExtremes(0u);
  }
  workgroupBarrier();
  var columnScale = vec4f(1.0);
  if (isOwner) {
    let at = record + params.columnScale + 2u * lane;
    columnScale = vec4f(unpack2x16float(records[at]), unpack2x16float(records[at + 1u]));
  }
  let inverseColumn = 1.0 / columnScale;
  // Of V, the errors so far, the older the less.
  var owed = vec4f(0.0);

  for (var i = 0u; i < SPAN; i++) {
    //# if KEYS
    let row = firstRow + SPAN - 1u - i;
    //# else
    let row = firstRow + i;
    //# end
    var present = vec4f(0.0);
    if (isOwner) {
      present = exactAt(row);
    }
    var value = present;
    //# if FACTORED
    if (isOwner) {
      value = correctChannel(row);
    }
    //# end
    //# if !KEYS
    partials[lane] = vec4f(dot(value, value), dot(owed, owed), 0.0, 0.0);
    workgroupBarrier();
    if (lane < 4u) {
      var sum = vec2f(0.0);
      for (var other = lane; other < THREADS; other += 4u) {
        sum += partials[other].xy;
      }
      quarters[lane] = sum;
    }
    workgroupBarrier();
    let lengths = quarters[0] + quarters[1] + quarters[2] + quarters[3];
    // At first nothing is owed.
    let limit = sqrt(lengths.x / max(lengths.y, 1e-20)) / f32(2u << BITS);
    value -= min(TOKEN_SHARE, limit) * owed;
    //# end

    let balanced = value * inverseColumn;
    if (isOwner) {
      line[lane] = balanced;
      let low = min(min(balanced.x, balanced.y), min(balanced.z, balanced.w));
      let high = max(max(balanced.x, balanced.y), max(balanced.z, balanced.w));
      atomicMin(&lowests[i % 2u], inOrder(bitcast<i32>(low)));
      atomicMax(&highests[i % 2u], inOrder(bitcast<i32>(high)));
    }
    let before = vec2f(scale, zero);
    fitRow(i % 2u);
    if (isOwner) {
      // Of a constant row all codes are 0.
      let inverse = select(0.0, 1.0 / scale, scale > 0.0);
      let code = codesOf(balanced - lowest, inverse, (lowest - zero) * inverse);
      putCodes(row, code);
      //# if FACTORED || !KEYS
      let error = (code * scale + zero) * columnScale - present;
      //# if FACTORED
      noteChannel(row, error);
      //# else
      owed = TOKEN_DECAY * owed + error;
      //# end
      //# end
    }
    if (i % 2u == 1u) {
      //# if KEYS
      storePair(row, vec2f(scale, zero), before);
      //# else
      storePair(row, before, vec2f(scale, zero));
      //# end
    }
  }
}
