// Rounds the rows of a tile, each column times its `inverse_c`, to codes of BITS bits. Whoever includes this
// has `storeCodes(at, word)` for word `at` of the tile's stream of codes.
//
// Quotients on GPUs may be off by some units in the last place. Here that would show: of values that are few,
// or integers, many lie half-way between two codes. So what is left of a division is found without rounding.

//# include patch

override BITS: u32;

// Least scale of a row, so that a constant one divides by something.
const LEAST_STEP = 1e-10;

override STREAM_WORDS: u32 = COLUMNS * BITS / 2u;

// The codes of one row of each patch.
var<workgroup> stream: array<atomic<u32>, STREAM_WORDS>;

// Of the two rows of an invocation: the smallest value, and the distance of neighbouring codes.
var<private> zeros: vec2f;
var<private> steps: vec2f;

// `x - a * b`, exact where `a * b` is near x and b has at most 12 bits.
fn restOf(x: f32, a: f32, b: f32) -> f32 {
  let high = bitcast<f32>(bitcast<u32>(a) & 0xfffff000u);
  return (x - high * b) - (a - high) * b;
}

// The f32 nearest to `range` over the largest code.
fn stepOf(range: f32) -> f32 {
  let largest = f32((1u << BITS) - 1u);
  let quotient = range / largest;
  return quotient + restOf(range, quotient, largest) / largest;
}

// `x / distance`, rounded to f32 and then to an integer, ties to even. `inverse` is near that of `distance`.
fn codeOf(x: f32, distance: f32, inverse: f32) -> u32 {
  let largest = (1u << BITS) - 1u;
  let below = clamp(floor(x * inverse), 0.0, f32(largest));
  let middle = below + 0.5;
  let rest = restOf(x, distance, middle);
  // Half a unit in the last place of `middle`: quotients as near as that are rounded to it.
  let tied = abs(rest) <= distance * bitcast<f32>(bitcast<u32>(middle) & 0x7f800000u) * 0x1p-24;
  let code = u32(below);
  let up = select(u32(rest > 0.0), code & 1u, tied);
  return min(code + up, largest);
}

// Finds `zeros` and `steps`, the scales of codes as those of rows not divided by their own scale, which
// cancels from the codes; it counts only where the step is at its least.
fn findSteps(rowScale: vec2f) {
  for (var i = index; i < STREAM_WORDS; i += 256u) {
    atomicStore(&stream[i], 0u);
  }
  for (var k = 0u; k < ROWS / 16u; k++) {
    readRow(k);
    //# for c in 0..1
    var low = x_c * inverse_c;
    var high = low;
    //# end
    //# for c in 1..COLUMNS / 16
    low = min(low, x_c * inverse_c);
    high = max(high, x_c * inverse_c);
    //# end
    placePartial(k, rowLane, columnLane, vec2f(low, high));
    if (endsChunk(k, ROWS)) {
      workgroupBarrier();
      if (isMerged(k, ROWS)) {
        var range = partials[slotOf(k)];
        for (var part = 1u; part < 16u; part++) {
          let other = partials[part * STRIDE + slotOf(k)];
          range = vec2f(min(range.x, other.x), max(range.y, other.y));
        }
        zeros = withOwn(zeros, k, range.x);
        steps = withOwn(steps, k, stepOf(range.y - range.x));
      }
      workgroupBarrier();
    }
  }
  steps = max(steps, LEAST_STEP * rowScale);
  // Of each row, for all to read.
  partials[index] = vec2f(zeros.x, steps.x);
  if (index + 256u < ROWS) {
    partials[index + 256u] = vec2f(zeros.y, steps.y);
  }
  workgroupBarrier();
}

// Stores the codes of all rows, after findSteps.
fn roundRows() {
  let rowBits = COLUMNS * BITS;
  for (var k = 0u; k < ROWS / 16u; k++) {
    readRow(k);
    let zero = partials[16u * k + rowLane].x;
    let distance = partials[16u * k + rowLane].y;
    let inverse = 1.0 / distance;
    let first = rowLane * rowBits + columnLane * (rowBits / 16u);
    var at = first / 32u;
    var shift = first % 32u;
    var word = 0u;
    //# for c in 0..COLUMNS / 16
    let code_c = codeOf(x_c * inverse_c - zero, distance, inverse);
    word |= code_c << shift;
    shift += BITS;
    if (shift >= 32u) {
      atomicOr(&stream[at], word);
      at++;
      shift -= 32u;
      // What the word had no room for.
      word = code_c >> (BITS - shift);
    }
    //# end
    if (shift > 0u) {
      atomicOr(&stream[at], word);
    }
    workgroupBarrier();
    for (var i = index; i < rowBits / 2u; i += 256u) {
      storeCodes(k * (rowBits / 2u) + i, atomicExchange(&stream[i], 0u));
    }
    workgroupBarrier();
  }
}
