// Attention of ROWS rows over the records of one KV head, in the rotated frame and in f32. A workgroup goes
// through the tiles of one split, TILES at a time, with a running maximum of the scores.
//
// Scores: the codes of K lie channel by channel. An invocation takes eight tokens of one tile and a slice of
// its channels, and keeps eight sums; the factors of the channels, query times scale, are staged. Values: the
// codes of V lie token by token. An invocation takes CHANNELS channels of one share of the tokens at hand.
//
// A code becomes a float without a conversion: as the upper bits of the mantissa of a number from 1 to 2, so
// that a sum over factor * (1 + code / 2^bits) is short only of a constant, which joins the zero point's
// part. Words are fetched well before they are needed, those of the next tiles while the last ones of these
// are gone through: each invocation has to have many in flight, and registers do not suffice for many more
// invocations.

//# include attend-codes
//# include attend-maximum

// What sums over values are divided by where V's scale is zero: next to nothing is left of what they count.
const NO_SCALE: f32 = 8.8817842e-16;

// Of each row the largest of the scores that exceeded the maximum, see orderOf; 0: none did.
var<workgroup> largest: array<atomic<u32>, ROWS>;

fn attendRecords(block: u32, kvHead: u32, split: u32, thread: u32) {
  let first = split * params.tilesPerSplit;
  let end = min(first + params.tilesPerSplit, params.tiles);
  let firstRow = block * ROWS;
  let positions = params.position + rowNumbers(firstRow) / params.headsPerKvHead;
  let leastPosition = params.position + firstRow / params.headsPerKvHead;
  let mostPosition = params.position + (firstRow + ROWS - 1u) / params.headsPerKvHead;

  // In scoring.
  let tile = thread / LANES;
  let slice = thread % LANES / (GROUP / 8u);
  let eight = thread % (GROUP / 8u);
  let token = eight * 8u + slice * TOKENS;
  // Its first channel, and the first pair of channels whose scales it gets.
  let begin = slice * (CHUNK / SLICES);
  let firstPair = begin / 2u + eight;
  // In summing up values: the shares of one tile take its tokens in turn.
  let column = thread % COLUMNS;
  let share = thread / COLUMNS;
  let part = share % (GROUP / SPAN);

  var top = Rows(HIDDEN);
  var total = Rows(0.0);
  //# for c in 0..CHANNELS / 2
  var even_c = Rows(0.0);
  var odd_c = Rows(0.0);
  var scale_c = vec2f(1.0);
  //# end

  // Workgroup memory may hold anything. The barriers before the first scores are compared let all see this.
  if (thread < ROWS) {
    atomicStore(&largest[thread], 0u);
  }
  var entry = tiles[min(first + tile, end - 1u)];
  var nextRecord = entry.x + kvHead * RECORD;
  var codes = nextRecord + begin * KEY_ROW;
  //# for p in 0..PAIRS
  var keyScale_p = records[nextRecord + K_SCALE + firstPair + $p * (GROUP / 8u)];
  var keyZero_p = records[nextRecord + K_ZERO + firstPair + $p * (GROUP / 8u)];
  //# end
  //# for i in 0..KEYS_AHEAD
  //# for u in 0..KEY_WORDS
  var next_i_u = keyCodes(codes, $i, eight, $u);
  //# end
  //# end
  for (var round = first; round < end; round += TILES) {
    let record = nextRecord;
    let start = entry.y;
    entry = tiles[min(round + TILES + tile, end - 1u)];
    nextRecord = entry.x + kvHead * RECORD;
    var valueTile = share / (GROUP / SPAN) * SPANS;
    var valueRecord = tiles[min(round + valueTile, end - 1u)].x + kvHead * RECORD;
    //# for n in 0..TOKENS / 2
    let keyToken_n = records[record + K_TOKEN + token / 2u + $n];
    //# end

    // Scores, each slice its part of them.
    //# for n in 0..8
    var score_n = Rows(0.0);
    //# end
    var constant = Rows(0.0);
    for (var chunk = 0u; chunk < D; chunk += CHUNK) {
      // What comes after this chunk.
      let isLast = chunk + CHUNK == D;
      let next = select(record, nextRecord, isLast);
      let nextChunk = select(chunk + CHUNK, 0u, isLast);
      //# for p in 0..PAIRS
      if (eight + $p * (GROUP / 8u) < CHUNK / SLICES / 2u) {
        let channel = 2u * (firstPair + $p * (GROUP / 8u));
        let even = row[chunk + channel];
        let odd = row[chunk + channel + 1u];
        let scale = unpack2x16float(keyScale_p) * f32(1u << KEY_BITS);
        let zero = unpack2x16float(keyZero_p);
        let low = even * scale.x;
        let high = odd * scale.y;
        staged[tile * CHUNK + channel] = low;
        staged[tile * CHUNK + channel + 1u] = high;
        constant += (even * zero.x - low) + (odd * zero.y - high);
      }
      keyScale_p = records[next + K_SCALE + nextChunk / 2u + firstPair + $p * (GROUP / 8u)];
      keyZero_p = records[next + K_ZERO + nextChunk / 2u + firstPair + $p * (GROUP / 8u)];
      //# end
      sums[thread] = constant;
      workgroupBarrier();
      for (var batch = 0u; batch < CHUNK / SLICES; batch += KEYS_AHEAD) {
        let isInChunk = batch + KEYS_AHEAD < CHUNK / SLICES;
        codes = select(next + (nextChunk + begin) * KEY_ROW, codes + KEYS_AHEAD * KEY_ROW, isInChunk);
        //# for i in 0..KEYS_AHEAD
        //# for u in 0..KEY_WORDS
        let codes_i_u = next_i_u;
        next_i_u = keyCodes(codes, $i, eight, $u);
        //# end
        //# end
        //# for i in 0..KEYS_AHEAD
        let factor_i = staged[tile * CHUNK + begin + batch + $i];
        //# for n in 0..KEY_CODES
        score_n = fma(factor_i, Rows(fraction(codes_i_0, $n * KEY_BITS, KEY_BITS)), score_n);
        //# end
        //# for n in KEY_CODES..8
        score_n = fma(factor_i, Rows(fraction(codes_i_1, ($n - KEY_CODES) * KEY_BITS, KEY_BITS)), score_n);
        //# end
        //# end
      }
      workgroupBarrier();
    }
    // On their way while weights are made.
    //# for n in 0..TOKENS / 2
    let valueToken_n = records[record + V_TOKEN + token / 2u + $n];
    let valueZero_n = records[record + V_ZERO + token / 2u + $n];
    //# end
    //# for c in 0..CHANNELS / 2
    var valueScale_c = records[valueRecord + V_SCALE + column * (CHANNELS / 2u) + $c];
    //# end
    //# for i in 0..VALUES_AHEAD
    //# for u in 0..VALUE_WORDS
    var value_i_u = valueCodes(valueRecord + V_CODES, $i * (GROUP / SPAN) + part, column, $u);
    //# end
    //# end
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

    //# for n in 0..TOKENS / 2
    let keyTokens_n = unpack2x16float(keyToken_n);
    //# for m in 2 * $n..2 * $n + 2
    score_m *= keyTokens_n[$m % 2];
    //# end
    //# end
    if (params.softCap > 0.0) {
      //# for n in 0..TOKENS
      score_n = capped(score_n, params.softCap);
      //# end
    }
    // A place behind the last tile has another go at it, unseen by any row.
    let last = select(HIDDEN_FROM, start + GROUP - 1u, round + tile < end);
    if (last > leastPosition || start + params.window <= mostPosition) {
      //# for n in 0..TOKENS
      let at_n = select(HIDDEN_FROM, start + token + $n, round + tile < end);
      score_n = masked(score_n, at_n, positions, params.window);
      //# end
    }

    var most = score_0;
    //# for n in 1..TOKENS
    most = max(most, score_n);
    //# end
    if (any(most > top + SLACK)) {
      //# for r in 0..ROWS
      atomicMax(&largest[$r], orderOf(rowOf(most, $r)));
      //# end
    }
    workgroupBarrier();
    most = top;
    //# for r in 0..ROWS
    most = withRow(most, $r, max(rowOf(most, $r), valueOf(atomicLoad(&largest[$r]))));
    //# end
    if (any(most > top)) {
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
    //# for n in 0..TOKENS / 2
    let valueTokens_n = unpack2x16float(valueToken_n) * f32(1u << VALUE_BITS);
    let valueZeros_n = unpack2x16float(valueZero_n);
    //# for m in 2 * $n..2 * $n + 2
    let weight_m = select(expOf(score_m - top), Rows(0.0), score_m <= Rows(HIDDEN));
    total += weight_m;
    constant = fma(weight_m, Rows(valueZeros_n[$m % 2] - valueTokens_n[$m % 2]), constant);
    staged[tile * GROUP + token + $m] = weight_m * valueTokens_n[$m % 2];
    //# end
    //# end
    sums[tile * LANES + token / TOKENS] = constant;
    workgroupBarrier();

    if (share < SHARES) {
      for (var span = 0u; span < SPANS; span++) {
        //# if SPANS > 1
        if (span > 0u) {
          valueTile++;
          valueRecord = tiles[min(round + valueTile, end - 1u)].x + kvHead * RECORD;
          //# for c in 0..CHANNELS / 2
          valueScale_c = records[valueRecord + V_SCALE + column * (CHANNELS / 2u) + $c];
          //# end
          //# for i in 0..VALUES_AHEAD
          //# for u in 0..VALUE_WORDS
          value_i_u = valueCodes(valueRecord + V_CODES, $i * (GROUP / SPAN) + part, column, $u);
          //# end
          //# end
        }
        //# end
        constant = Rows(0.0);
        for (var i = 0u; i < SPAN / TOKENS; i++) {
          constant += sums[valueTile * LANES + part * (SPAN / TOKENS) + i];
        }
        // Sums are in units of V's scale of the channel, which is the next tile's from here on.
        //# for c in 0..CHANNELS / 2
        let stored_c = unpack2x16float(valueScale_c);
        let unit_c = select(stored_c, vec2f(NO_SCALE), stored_c == vec2f(0.0));
        let change_c = scale_c / unit_c;
        even_c = fma(even_c, Rows(change_c.x), constant);
        odd_c = fma(odd_c, Rows(change_c.y), constant);
        scale_c = unit_c;
        //# end
        for (var batch = 0u; batch < SPAN; batch += VALUES_AHEAD) {
          let following = min(batch + VALUES_AHEAD, SPAN - VALUES_AHEAD);
          //# for i in 0..VALUES_AHEAD
          //# for u in 0..VALUE_WORDS
          let codes_i_u = value_i_u;
          value_i_u = valueCodes(valueRecord + V_CODES, (following + $i) * (GROUP / SPAN) + part, column, $u);
          //# end
          //# end
          //# for i in 0..VALUES_AHEAD
          let weight_i = staged[valueTile * GROUP + part + (batch + $i) * (GROUP / SPAN)];
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
    workgroupBarrier();
  }

  // What the shares have summed, eight channels of each invocation at a time.
  sums[thread] = total;
  let slot = params.slot + split;
  let base = ((slot * params.kvHeads + kvHead) * params.blocks + block) * ROWS;
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
      partials[(base + r) * D + channel] = rowOf(sum, r);
    }
  }
  workgroupBarrier();
  //# end
  if (thread < 8u) {
    total = Rows(0.0);
    for (var i = thread; i < THREADS; i += 8u) {
      total += sums[i];
    }
    sums[thread] = total;
  }
  workgroupBarrier();
  if (thread < ROWS) {
    total = sums[0];
    for (var i = 1u; i < 8u; i++) {
      total += sums[i];
    }
    totals[base + thread] = vec2f(rowOf(top, thread), rowOf(total, thread));
  }
}
