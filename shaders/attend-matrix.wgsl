// What attend-tiles does, for four rows, heads of 128 and tiles of 128, with products of 8-bit integers on matrix units.
//
// A workgroup of four subgroups goes through the tiles of one split, one at a time. Subgroup h has row h: its
// invocations make the row's factors, weights and sums. The left matrix of a product has three rows for each row: its
// factors as integers of 23 bits, in three signed digits. The right matrix has codes.
//
// Codes lie as [k][column], and the right matrix wants them as [column][k]: an invocation takes 16 columns of four
// k and turns them. So that invocations side by side write to different banks, column c is at place
// c % 16 * 8 + c / 16.

//# include matrix

override D: u32;
override ROWS: u32;
override KEY_BITS: u32;
override VALUE_BITS: u32;
override THREADS: u32;
override K_SCALE: u32;
override K_ZERO: u32;
override K_TOKEN: u32;
override V_CODES: u32;
override V_SCALE: u32;
override V_TOKEN: u32;
override V_ZERO: u32;
override RECORD: u32;
override EXACT_WORDS: u32;
override EXACT_COLUMNS: u32;
override EXACT_TEAMS: u32;
override EXACT_AHEAD: u32;

//# include attend-params

@group(0) @binding(1) var<storage, read> records: array<vec2u>;

// Workgroup memory is 12,128 bytes, so that four workgroups share the 48 KiB of a multiprocessor.
//
// Digits of 32 k at a time lie as [digit][row][k]: words from one such step to the next. The left matrix has four rows
// that nothing reads: what they are made of follows.
const DIGITS_STEP: u32 = 104u;
// Codes, 64 k of 128 columns at a time, lie by 32 places, those of a subgroup: words from one place to the next, of a
// subgroup in all, and, in their place, from one row of sums to the next.
const CODES_ROW: u32 = 20u;
const CODES: u32 = 648u;
const SUMS_ROW: u32 = 40u;
// What a code is as a byte: counted in units, from a middle.
override KEY_UNIT: f32 = f32(1u << KEY_BITS) / 256.0;
override KEY_MIDDLE: f32 = 0.5 * f32(1u << KEY_BITS);
override VALUE_UNIT: f32 = f32(1u << VALUE_BITS) / 256.0;
override VALUE_MIDDLE: f32 = 0.5 * f32(1u << VALUE_BITS);
// Largest factor as an integer, of three digits from -128 to 127.
const LARGEST: f32 = 8.35e6;

var<workgroup> digits: array<i32, 440>;
var<workgroup> codes: array<array<i32, CODES>, 4>;

//# include attend-rows

// How attend-exact gets at it.
fn rowsAt(part: u32, index: u32) -> Rows {
  return bitcast<vec4f>(vec4i(codes[part][index], codes[part][index + 1u], codes[part][index + 2u], codes[part][index + 3u]));
}

fn setRows(part: u32, index: u32, value: Rows) {
  //# for i in 0..4
  codes[part][index + $i] = bitcast<i32>(value[$i]);
  //# end
}

fn stagedAt(index: u32) -> Rows {
  return rowsAt(index / 128u, index % 128u * 4u);
}

fn stage(index: u32, value: Rows) {
  setRows(index / 128u, index % 128u * 4u, value);
}

fn queriesAt(channel: u32) -> Rows {
  return rowsAt(channel / 32u, 512u + channel % 32u * 4u);
}

fn summedAt(index: u32) -> Rows {
  let at = 4u * index;
  return bitcast<vec4f>(vec4i(digits[at], digits[at + 1u], digits[at + 2u], digits[at + 3u]));
}

fn setSummed(index: u32, value: Rows) {
  //# for i in 0..4
  digits[4u * index + $i] = bitcast<i32>(value[$i]);
  //# end
}

//# include attend-exact
//# include attend-maximum

// The sums of a row at an invocation's columns: of its digits, put together.
fn sumsAt(head: u32, lane: u32) -> vec4f {
  //# for d in 0..3
  let digit_d = vec4i(
    //# for i in 0..4
    codes[lane / 8u % 4u][(4u * $d + head % 4u) * SUMS_ROW + 8u * $i + lane % 8u],
    //# end
  );
  //# end
  return fma(vec4f(digit_2), vec4f(65536.0), vec4f(digit_1 * 256 + digit_0));
}

// Four words of four bytes as columns.
fn turned(a: vec4u) -> vec4u {
  let low = vec2u(0x00ff00ffu);
  let even = (a.xz & low) | ((a.yw & low) << vec2u(8u));
  let odd = ((a.xz >> vec2u(8u)) & low) | (a.yw & ~low);
  return vec4u(
    (even.x & 0xffffu) | (even.y << 16u),
    (odd.x & 0xffffu) | (odd.y << 16u),
    (even.x >> 16u) | (even.y & 0xffff0000u),
    (odd.x >> 16u) | (odd.y & 0xffff0000u),
  );
}

// The largest of all that the invocations of a subgroup have. For integers that takes one instruction, for floats ten.
fn largestOf(x: vec4f) -> f32 {
  return valueOf(mostOf(orderOf(max(max(x.x, x.y), max(x.z, x.w)))));
}

fn halves(words: vec2u) -> vec4f {
  return vec4f(unpack2x16float(words.x), unpack2x16float(words.y));
}

// The integers nearest to factors of at most LARGEST, as digits: of each factor a byte of each of three words.
fn digitsOf(factors: vec4f) -> vec4u {
  return turned((bitcast<vec4u>(vec4i(round(factors))) + 0x808080u) ^ vec4u(0x808080u));
}

//# for b in 2..5
//# if $b == KEY_BITS || $b == VALUE_BITS
// The bits of each byte that a code comes to, as a number from -128 to 127: it counts 2^(8 - b), and 0 is in the middle.
const HIGH_b: u32 = (0x100u - (1u << (8u - $b))) * 0x01010101u;

// What an invocation turns of a tile: 16 codes of each of eight rows.
fn fetched_b(start: u32, row: u32, step: u32, sixteen: u32) -> array<vec2u, 8> {
  return array<vec2u, 8>(
    //# for c in 0..2
    //# for i in 0..4
    //# if $b == 4
    records[start / 2u + (row + step * $c + $i) * 8u + sixteen],
    //# else
    vec2u(records[start / 2u + (row + step * $c + $i) * 4u + sixteen / 2u][sixteen % 2u], 0u),
    //# end
    //# end
    //# end
  );
}

// Multiplies all digits by all codes of a tile. By then all have read the last product's sums.
fn multiply_b(words: array<vec2u, 8>, thread: u32) {
  let place = thread % 8u * CODES_ROW + thread / 8u % 16u;
  let subgroup = thread / 32u % 4u;
  var product_0 = Product();
  var product_1 = Product();
  //# for c in 0..2
  //# for w in 0..$b / 2
  let turned_c_w = turned(vec4u(words[4 * $c][$w], words[4 * $c + 1][$w], words[4 * $c + 2][$w], words[4 * $c + 3][$w]));
  //# for n in 0..32 / $b
  codes[(32 / $b * $w + $n) / 4][place + $n % 4 * (8u * CODES_ROW)] =
    bitcast<i32>(((turned_c_w[$n / (8 / $b)] << (8u - $b * ($n % (8 / $b) + 1))) & HIGH_b) ^ 0x80808080u);
  //# end
  //# end
  workgroupBarrier();
  //# for s in 0..2
  let left_c_s = leftAt(2u * $c + $s);
  //# for n in 0..2
  product_n = multiplied(left_c_s, rightAt(subgroup, 16u * $n, $s), product_n);
  //# end
  //# end
  workgroupBarrier();
  //# end
  //# for n in 0..2
  storeProduct(subgroup, 16u * $n, product_n);
  //# end
  workgroupBarrier();
}
//# end
//# end

//# for k in KEY_BITS..KEY_BITS + 1
//# for v in VALUE_BITS..VALUE_BITS + 1
@compute @workgroup_size(THREADS)
fn attend_matrix(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let block = group.x;
  let kvHead = group.y;
  let lane = thread % 32u;
  let head = thread / 32u;

  // Four channels of the row, rotated as in hadamard.
  let number = block * 4u + head;
  var query = vec4f(0.0);
  if (number < params.rows) {
    let queryHead = kvHead * params.headsPerKvHead + number % params.headsPerKvHead;
    let begin = (number / params.headsPerKvHead * params.queryHeads + queryHead) * D + 4u * lane;
    //# if HALF
    let word = params.start + begin / 2u;
    query = vec4f(unpack2x16float(q[word]), unpack2x16float(q[word + 1u]));
    //# else
    let word = params.start + begin;
    query = bitcast<vec4f>(vec4u(q[word], q[word + 1u], q[word + 2u], q[word + 3u]));
    //# end
  }
  query = vec4f(query.x + query.y, query.x - query.y, query.z + query.w, query.z - query.w);
  query = vec4f(query.xy + query.zw, query.xy - query.zw);
  for (var stride = 1u; stride < 32u; stride *= 2u) {
    let other = exchanged(query, stride);
    query = select(query + other, other - query, (lane & stride) != 0u);
  }
  query *= inverseSqrt(f32(D)) * params.softmaxScale;

  if (group.z >= params.recordSplits) {
    //# for i in 0..4
    codes[lane / 8u][512u + lane % 8u * 16u + 4u * $i + head] = bitcast<i32>(query[$i]);
    //# end
    workgroupBarrier();
    attendExact(block, kvHead, group.z - params.recordSplits, thread);
    return;
  }

  let split = group.z;
  let first = split * params.tilesPerSplit;
  let end = min(first + params.tilesPerSplit, params.tiles);
  let position = params.position + number / params.headsPerKvHead;
  // The 16 columns of codes and the four k of them that it turns.
  let sixteen = thread % 8u;
  let four = thread / 8u;
  // The first of four columns, tokens and then channels, whose sums it takes.
  let column = lane % 8u * 16u + lane / 8u * 4u;
  // Where it writes digits.
  let digit = lane / 8u * DIGITS_STEP + head * 8u + lane % 8u;

  var top = HIDDEN;
  var total = 0.0;
  var sum = vec4f(0.0);

  var entry = tiles[min(first, end - 1u)];
  var record = entry.x + kvHead * RECORD;
  var keys = fetched_k(record, four * 4u, 64u, sixteen);
  var keyScale = records[(record + K_SCALE) / 2u + lane];
  var keyZero = records[(record + K_ZERO) / 2u + lane];
  for (var tile = first; tile < end; tile++) {
    let present = record;
    let start = entry.y;
    // On their way meanwhile.
    let values = fetched_v(present + V_CODES, four % 8u * 16u + four / 8u * 4u, 8u, sixteen);
    let keyToken = records[(present + K_TOKEN + column / 2u) / 2u];
    let valueToken = records[(present + V_TOKEN + column / 2u) / 2u];
    let valueZero = records[(present + V_ZERO + column / 2u) / 2u];
    let valueScale = records[(present + V_SCALE + column / 2u) / 2u];
    entry = tiles[min(tile + 1u, end - 1u)];
    record = entry.x + kvHead * RECORD;

    // Factors of the channels, and what zero points come to.
    var factors = query * halves(keyScale);
    let constant = sumOf(dot(query, halves(keyZero)) + KEY_MIDDLE * dot(factors, vec4f(1.0)));
    var largest = largestOf(abs(factors));
    var written = digitsOf(factors * select(0.0, LARGEST / largest, largest > 1e-30));
    var unit = largest / LARGEST;
    //# for d in 0..3
    digits[digit + 32u * $d] = bitcast<i32>(written[$d]);
    //# end

    multiply_k(keys, thread);
    // Those of the next tile.
    keys = fetched_k(record, four * 4u, 64u, sixteen);
    keyScale = records[(record + K_SCALE) / 2u + lane];
    keyZero = records[(record + K_ZERO) / 2u + lane];

    // Scores of four tokens.
    var scores = fma(sumsAt(head, lane), vec4f(unit * KEY_UNIT), vec4f(constant)) * halves(keyToken);
    //# if CAPPED
    scores = capped(scores, params.softCap);
    //# end
    // Without a branch around it, which costs more.
    let tokens = start + column + vec4u(0u, 1u, 2u, 3u);
    let seen = (tokens <= vec4u(position)) & (tokens + params.window > vec4u(position));
    scores = select(vec4f(HIDDEN), scores, seen);
    largest = largestOf(scores);
    let raised = max(top, largest);
    let shrink = expOf(vec4f(top - raised)).x;
    let portion = expOf(vec4f(largest - raised)).x;
    top = raised;

    // Weights, times V's scale of the token.
    let weights = select(expOf(scores - largest), vec4f(0.0), scores <= vec4f(HIDDEN));
    let valueTokens = halves(valueToken);
    total = total * shrink + portion * dot(weights, vec4f(1.0));
    factors = weights * valueTokens;
    let valueConstant = sumOf(dot(weights, halves(valueZero)) + VALUE_MIDDLE * dot(factors, vec4f(1.0)));
    largest = largestOf(abs(valueTokens));
    written = digitsOf(factors * select(0.0, LARGEST / largest, largest > 1e-30));
    unit = largest / LARGEST;
    //# for d in 0..3
    digits[digit + 32u * $d] = bitcast<i32>(written[$d]);
    //# end
    workgroupBarrier();
    multiply_v(values, thread);
    let sums = fma(sumsAt(head, lane), vec4f(unit * VALUE_UNIT), vec4f(valueConstant));
    sum = fma(sums, portion * halves(valueScale), sum * shrink);
    workgroupBarrier();
  }

  let slot = params.slot + split;
  let base = ((slot * params.kvHeads + kvHead) * params.blocks + block) * 4u + head;
  //# for i in 0..4
  partials[base * D + column + $i] = sum[$i];
  //# end
  total = sumOf(total);
  if (lane == 0u) {
    totals[base] = vec2f(top, total);
  }
}
//# end
//# end
