// Attention of ROWS rows over the records of one KV head, in the rotated frame and in f32. A workgroup goes
// through the tiles of one split, TILES at a time, with a running maximum of the scores.
//
// Scores: the codes of K lie channel by channel. An invocation takes eight tokens of one tile and a slice of
// its channels, and keeps eight sums; the factors of the channels, query times scale, are staged. Values: the
// codes of V lie token by token. An invocation takes CHANNELS channels of one share of the tokens at hand.
//
// A code becomes a float without a conversion: as the upper bits of the mantissa of a number from 1 to 2, so
// that a sum over factor * (1 + code / 2^bits) is short only of a constant, which joins the zero point's
// part. Words are fetched well before they are needed: each invocation has to have many in flight, and
// registers do not suffice for many more invocations.

// The maximum is raised only when a score exceeds it by so much: weights up to e^16 are as good as those up
// to 1.
const SLACK: f32 = 16.0;
// A position that no row sees.
const HIDDEN_FROM: u32 = 0x7fffffffu;
// What sums over values are divided by where V's scale is zero: next to nothing is left of what they count.
const NO_SCALE: f32 = 8.8817842e-16;

// Words on their way from records to codes: each invocation's own, where it can count through them.
var<workgroup> fetched: array<u32, FETCHED>;
// The round, counted from 1, in which a score last exceeded the maximum.
var<workgroup> exceeded: atomic<u32>;

// 1 + code / 2^bits, for the code that begins at bit `at`.
fn fraction(codes: u32, at: u32, bits: u32) -> f32 {
  let to = 23u - bits;
  let mask = ((1u << bits) - 1u) << to;
  var moved = codes;
  if (at <= to) {
    moved <<= to - at;
  } else {
    moved >>= at - to;
  }
  return bitcast<f32>((moved & mask) | 0x3f800000u);
}

// The 32 bits that begin at bit `bit` after a word.
fn bitsAt(word: u32, bit: u32) -> u32 {
  let at = word + bit / 32u;
  let shift = bit % 32u;
  return (records[at] >> shift) | ((records[at + 1u] << 1u) << (31u - shift));
}

// Codes of K for one channel, counted from `start`, and eight tokens: all of them, or half.
fn keyCodes(start: u32, channel: u32, eight: u32, word: u32) -> u32 {
  //# if KEY_BITS == 4 || KEY_BITS == 8
  return records[start + (channel * (GROUP / 8u) + eight) * (KEY_BITS / 4u) + word];
  //# else
  //# if KEY_BITS == 2
  return records[start + channel * (GROUP / 16u) + eight / 2u] >> (eight % 2u * 16u);
  //# else
  return bitsAt(start + channel * (GROUP / 32u) * KEY_BITS, (eight * 8u + word * 4u) * KEY_BITS);
  //# end
  //# end
}

// Codes of V for one token, counted from `start`, and CHANNELS channels: all of them, or half.
fn valueCodes(start: u32, token: u32, column: u32, word: u32) -> u32 {
  //# if VALUE_BITS == 2 || VALUE_BITS == 4 || VALUE_BITS == 8
  return records[start + (token * COLUMNS + column) * (CHANNELS * VALUE_BITS / 32u) + word];
  //# else
  return bitsAt(start, ((token * COLUMNS + column) * CHANNELS + word * VALUE_CODES) * VALUE_BITS);
  //# end
}

fn attendRecords(block: u32, kvHead: u32, split: u32, thread: u32) {
  let first = split * params.tilesPerSplit;
  let end = min(first + params.tilesPerSplit, params.tiles);
  let firstRow = block * ROWS;
  let positions = params.position + rowNumbers(firstRow) / params.headsPerKvHead;
  let leastPosition = params.position + firstRow / params.headsPerKvHead;
  let mostPosition = params.position + (firstRow + ROWS - 1u) / params.headsPerKvHead;
  let queries = (kvHead * params.blocks + block) * D;

  let tile = thread / LANES;
  let slice = thread % LANES / (GROUP / 8u);
  let eight = thread % (GROUP / 8u);
  let column = thread % COLUMNS;
  let share = thread / COLUMNS;

  var top = Rows(HIDDEN);
  var total = Rows(0.0);
  //# for c in 0..CHANNELS / 2
  var even_c = Rows(0.0);
  var odd_c = Rows(0.0);
  var scale_c = vec2f(1.0);
  //# end

  // Workgroup memory may hold anything. The barriers before the first scores are compared let all see this.
  if (thread == 0u) {
    atomicStore(&exceeded, 0u);
  }
  for (var round = first; round < end; round += TILES) {
    let entry = tiles[min(round + tile, end - 1u)];
    let record = entry.x + kvHead * RECORD;

    // Scores, each slice its part of them.
    //# for n in 0..8
    var score_n = Rows(0.0);
    //# end
    var constant = Rows(0.0);
    for (var chunk = 0u; chunk < D; chunk += CHUNK) {
      let begin = slice * (CHUNK / SLICES);
      let codes = record + (chunk + begin) * (GROUP / 32u) * KEY_BITS;
      //# for i in 0..KEYS_AHEAD
      //# for u in 0..KEY_WORDS
      var next_i_u = keyCodes(codes, $i, eight, $u);
      //# end
      //# end
      let factors = tile * CHUNK + begin;
      for (var pair = eight; pair < CHUNK / SLICES / 2u; pair += GROUP / 8u) {
        let word = record + (chunk + begin) / 2u + pair;
        let query = queries + chunk + begin + 2u * pair;
        let scale = unpack2x16float(records[K_SCALE + word]) * f32(1u << KEY_BITS);
        let zero = unpack2x16float(records[K_ZERO + word]);
        let low = q[query] * scale.x;
        let high = q[query + 1u] * scale.y;
        staged[factors + 2u * pair] = low;
        staged[factors + 2u * pair + 1u] = high;
        constant += (q[query] * zero.x - low) + (q[query + 1u] * zero.y - high);
      }
      sums[thread] = constant;
      workgroupBarrier();
      for (var batch = 0u; batch < CHUNK / SLICES; batch += KEYS_AHEAD) {
        // The last round fetches past the codes, where the other fields lie.
        //# for i in 0..KEYS_AHEAD
        //# for u in 0..KEY_WORDS
        fetched[($i * KEY_WORDS + $u) * THREADS + thread] = next_i_u;
        next_i_u = keyCodes(codes, batch + KEYS_AHEAD + $i, eight, $u);
        //# end
        //# end
        for (var channel = 0u; channel < KEYS_AHEAD; channel += KEYS_UNROLLED) {
          //# for i in 0..KEYS_UNROLLED
          let factor_i = staged[factors + batch + channel + $i];
          //# for u in 0..KEY_WORDS
          let codes_i_u = fetched[((channel + $i) * KEY_WORDS + $u) * THREADS + thread];
          //# end
          //# for n in 0..KEY_CODES
          score_n = fma(factor_i, Rows(fraction(codes_i_0, $n * KEY_BITS, KEY_BITS)), score_n);
          //# end
          //# for n in KEY_CODES..8
          score_n = fma(factor_i, Rows(fraction(codes_i_1, ($n - KEY_CODES) * KEY_BITS, KEY_BITS)), score_n);
          //# end
          //# end
        }
      }
      workgroupBarrier();
    }
    constant = Rows(0.0);
    for (var i = 0u; i < GROUP / 8u; i++) {
      constant += sums[thread - eight + i];
    }
    //# for n in 0..8
    score_n += constant;
    //# end
    //# if SLICES > 1
    // From here on an invocation has TOKENS tokens, and all of their score.
    //# for n in 0..8
    staged[$n * THREADS + thread] = score_n;
    //# end
    workgroupBarrier();
    //# for n in 0..TOKENS
    score_n = Rows(0.0);
    for (var other = 0u; other < SLICES; other++) {
      score_n += staged[(slice * TOKENS + $n) * THREADS + tile * LANES + other * (GROUP / 8u) + eight];
    }
    //# end
    //# end

    let token = eight * 8u + slice * TOKENS;
    //# for n in 0..TOKENS
    score_n *= halfOf(records[record + K_TOKEN + (token + $n) / 2u], $n);
    //# end
    if (params.softCap > 0.0) {
      //# for n in 0..TOKENS
      score_n = capped(score_n, params.softCap);
      //# end
    }
    // A place behind the last tile has another go at it, unseen by any row.
    let last = select(HIDDEN_FROM, entry.y + GROUP - 1u, round + tile < end);
    if (last > leastPosition || entry.y + params.window <= mostPosition) {
      //# for n in 0..TOKENS
      let at_n = select(HIDDEN_FROM, entry.y + token + $n, round + tile < end);
      score_n = masked(score_n, at_n, positions, params.window);
      //# end
    }

    var most = score_0;
    //# for n in 1..TOKENS
    most = max(most, score_n);
    //# end
    tops[thread] = most;
    if (any(most > top + SLACK)) {
      atomicMax(&exceeded, round + 1u);
    }
    workgroupBarrier();
    if (atomicLoad(&exceeded) == round + 1u) {
      most = top;
      for (var i = 0u; i < THREADS; i++) {
        most = max(most, tops[i]);
      }
      let shrink = expOf(top - most);
      top = most;
      total *= shrink;
      //# for c in 0..CHANNELS / 2
      even_c *= shrink;
      odd_c *= shrink;
      //# end
    }

    // Weights, times V's scale of the token; its zero point, short of the constant, goes to a sum over
    // tokens.
    constant = Rows(0.0);
    //# for n in 0..TOKENS
    let weight_n = select(expOf(score_n - top), Rows(0.0), score_n <= Rows(HIDDEN));
    let valueScale_n = halfOf(records[record + V_TOKEN + (token + $n) / 2u], $n) * f32(1u << VALUE_BITS);
    let valueZero_n = halfOf(records[record + V_ZERO + (token + $n) / 2u], $n);
    total += weight_n;
    constant = fma(weight_n, Rows(valueZero_n - valueScale_n), constant);
    staged[tile * GROUP + token + $n] = weight_n * valueScale_n;
    //# end
    sums[tile * LANES + token / TOKENS] = constant;
    workgroupBarrier();

    if (share < SHARES) {
      for (var span = 0u; span < SPANS; span++) {
        // The shares of one tile take its tokens in turn.
        let part = share % (GROUP / SPAN);
        let valueTile = share / (GROUP / SPAN) * SPANS + span;
        let valueRecord = tiles[min(round + valueTile, end - 1u)].x + kvHead * RECORD;
        constant = Rows(0.0);
        for (var i = 0u; i < SPAN / TOKENS; i++) {
          constant += sums[valueTile * LANES + part * (SPAN / TOKENS) + i];
        }
        // Sums are in units of V's scale of the channel, which is the next tile's from here on.
        //# for c in 0..CHANNELS / 2
        let stored_c = unpack2x16float(records[valueRecord + V_SCALE + column * (CHANNELS / 2u) + $c]);
        let unit_c = select(stored_c, vec2f(NO_SCALE), stored_c == vec2f(0.0));
        let change_c = scale_c / unit_c;
        even_c = fma(even_c, Rows(change_c.x), constant);
        odd_c = fma(odd_c, Rows(change_c.y), constant);
        scale_c = unit_c;
        //# end
        let codes = valueRecord + V_CODES;
        let weights = valueTile * GROUP + part;
        //# for i in 0..VALUES_AHEAD
        //# for u in 0..VALUE_WORDS
        var next_i_u = valueCodes(codes, $i * (GROUP / SPAN) + part, column, $u);
        //# end
        //# end
        for (var batch = 0u; batch < SPAN; batch += VALUES_AHEAD) {
          //# for i in 0..VALUES_AHEAD
          //# for u in 0..VALUE_WORDS
          fetched[($i * VALUE_WORDS + $u) * THREADS + thread] = next_i_u;
          next_i_u = valueCodes(codes, (batch + VALUES_AHEAD + $i) * (GROUP / SPAN) + part, column, $u);
          //# end
          //# end
          for (var turn = 0u; turn < VALUES_AHEAD; turn += VALUES_UNROLLED) {
            //# for i in 0..VALUES_UNROLLED
            let weight_i = staged[weights + (batch + turn + $i) * (GROUP / SPAN)];
            //# for u in 0..VALUE_WORDS
            let codes_i_u = fetched[((turn + $i) * VALUE_WORDS + $u) * THREADS + thread];
            //# end
            //# for c in 0..VALUE_CODES / 2
            even_c = fma(weight_i, Rows(fraction(codes_i_0, 2 * $c * VALUE_BITS, VALUE_BITS)), even_c);
            odd_c = fma(weight_i, Rows(fraction(codes_i_0, (2 * $c + 1) * VALUE_BITS, VALUE_BITS)), odd_c);
            //# end
            //# for c in VALUE_CODES / 2..CHANNELS / 2
            let bit_i_c = (2 * $c - VALUE_CODES) * VALUE_BITS;
            even_c = fma(weight_i, Rows(fraction(codes_i_1, bit_i_c, VALUE_BITS)), even_c);
            odd_c = fma(weight_i, Rows(fraction(codes_i_1, bit_i_c + VALUE_BITS, VALUE_BITS)), odd_c);
            //# end
            //# end
          }
        }
      }
    }
    workgroupBarrier();
  }

  // What the shares have summed, eight channels of each invocation at a time.
  sums[thread] = total;
  let slot = params.slot + split;
  let base = ((slot * params.kvHeads + kvHead) * params.blocks + block) * ROWS * (D + 2u);
  //# for e in 0..CHANNELS / 8
  //# for c in $e * 4..$e * 4 + 4
  staged[(2 * $c - 8 * $e) * THREADS + thread] = even_c * scale_c.x;
  staged[(2 * $c + 1 - 8 * $e) * THREADS + thread] = odd_c * scale_c.y;
  //# end
  workgroupBarrier();
  for (var i = thread; i < 8u * COLUMNS; i += THREADS) {
    var sum = Rows(0.0);
    for (var j = 0u; j < SHARES; j++) {
      sum += staged[i / COLUMNS * THREADS + j * COLUMNS + i % COLUMNS];
    }
    let channel = i % COLUMNS * CHANNELS + 8 * $e + i / COLUMNS;
    for (var r = 0u; r < ROWS; r++) {
      partials[base + r * (D + 2u) + channel] = rowOf(sum, r);
    }
  }
  workgroupBarrier();
  //# end
  if (thread < 8u) {
    total = Rows(0.0);
    for (var i = thread; i < THREADS; i += 8u) {
      total += sums[i];
    }
    tops[thread] = total;
  }
  workgroupBarrier();
  if (thread < ROWS) {
    total = tops[0];
    for (var i = 1u; i < 8u; i++) {
      total += tops[i];
    }
    partials[base + thread * (D + 2u) + D] = rowOf(top, thread);
    partials[base + thread * (D + 2u) + D + 1u] = rowOf(total, thread);
  }
}
