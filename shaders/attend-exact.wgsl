// Attention of ROWS rows over exact tokens, binary16 in the rotated frame, in pieces of at most 64 tokens. A
// workgroup takes the pieces of one split for one KV head, with a running maximum.

// Where a token's values begin, `start` being where the first token's keys do.
fn valuesOf(start: u32, token: u32) -> u32 {
  let stride = params.kvHeads * D;
  return start + token * stride + stride / 2u;
}

fn attendExact(block: u32, kvHead: u32, split: u32, lane: u32) {
  let first = split * params.piecesPerSplit;
  let end = min(first + params.piecesPerSplit, params.pieces);
  let positions = params.position + rowNumbers(block * ROWS) / params.headsPerKvHead;
  let stride = params.kvHeads * D;
  let column = lane % EXACT_COLUMNS;
  let team = lane / EXACT_COLUMNS;

  var top = Rows(HIDDEN);
  var total = Rows(0.0);
  //# for j in 0..EXACT_WORDS
  var low_j = Rows(0.0);
  var high_j = Rows(0.0);
  //# end
  for (var piece = first; piece < end; piece++) {
    let start = pieces[piece * 3u] + kvHead * (D / 2u);
    let tokens = pieces[piece * 3u + 2u];

    // On their way while weights are made: the first tokens' values.
    //# for k in 0..EXACT_AHEAD
    let token_k = team + $k * EXACT_TEAMS;
    //# for j in 0..EXACT_WORDS
    let value_k_j = exactTokens[valuesOf(start, min(token_k, tokens - 1u)) + column + $j * EXACT_COLUMNS];
    //# end
    //# end

    // Eight invocations share a key row.
    for (var token = lane / 8u; token < 64u; token += THREADS / 8u) {
      var sum = Rows(0.0);
      if (token < tokens) {
        for (var i = lane % 8u; i < D / 2u; i += 8u) {
          let pair = unpack2x16float(exactTokens[start + token * stride + i]);
          sum = fma(queriesAt(2u * i), Rows(pair.x), sum);
          sum = fma(queriesAt(2u * i + 1u), Rows(pair.y), sum);
        }
      }
      stage(token * 8u + lane % 8u, sum);
    }
    workgroupBarrier();
    var score = Rows(HIDDEN);
    if (lane < tokens) {
      score = Rows(0.0);
      for (var i = 0u; i < 8u; i++) {
        score += stagedAt(lane * 8u + i);
      }
      if (params.softCap > 0.0) {
        score = capped(score, params.softCap);
      }
      score = masked(score, pieces[piece * 3u + 1u] + lane, positions, params.window);
    }
    if (lane < 64u) {
      setSummed(lane, score);
    }
    workgroupBarrier();
    if (lane < 8u) {
      var most = summedAt(lane);
      for (var i = 1u; i < 8u; i++) {
        most = max(most, summedAt(lane + 8u * i));
      }
      stage(lane, most);
    }
    workgroupBarrier();
    var most = top;
    for (var i = 0u; i < 8u; i++) {
      most = max(most, stagedAt(i));
    }
    let shrink = expOf(top - most);
    top = most;
    let weight = select(expOf(score - top), Rows(0.0), score <= Rows(HIDDEN));
    total = fma(total, shrink, weight);
    if (lane < 64u) {
      setSummed(lane, weight);
    }
    workgroupBarrier();
    //# for j in 0..EXACT_WORDS
    low_j *= shrink;
    high_j *= shrink;
    //# end
    if (team < EXACT_TEAMS) {
      // Where the last words of a row are fewer, what lies past it is summed up, too, but never written out.
      //# for k in 0..EXACT_AHEAD
      let weight_k = select(Rows(0.0), summedAt(min(token_k, 63u)), token_k < tokens);
      //# for j in 0..EXACT_WORDS
      let pair_k_j = unpack2x16float(value_k_j);
      low_j = fma(weight_k, Rows(pair_k_j.x), low_j);
      high_j = fma(weight_k, Rows(pair_k_j.y), high_j);
      //# end
      //# end
      for (var token = team + EXACT_AHEAD * EXACT_TEAMS; token < tokens; token += EXACT_TEAMS) {
        //# for j in 0..EXACT_WORDS
        let pair_j = unpack2x16float(exactTokens[valuesOf(start, token) + column + $j * EXACT_COLUMNS]);
        low_j = fma(summedAt(token), Rows(pair_j.x), low_j);
        high_j = fma(summedAt(token), Rows(pair_j.y), high_j);
        //# end
      }
    }
    workgroupBarrier();
  }

  if (team < EXACT_TEAMS) {
    //# for j in 0..EXACT_WORDS
    stage((team * EXACT_WORDS + $j) * 2u * EXACT_COLUMNS + 2u * column, low_j);
    stage((team * EXACT_WORDS + $j) * 2u * EXACT_COLUMNS + 2u * column + 1u, high_j);
    //# end
  }
  if (lane < 64u) {
    setSummed(lane, total);
  }
  workgroupBarrier();
  if (lane < 8u) {
    var sum = summedAt(lane);
    for (var i = 1u; i < 8u; i++) {
      sum += summedAt(lane + 8u * i);
    }
    setSummed(lane, sum);
  }
  workgroupBarrier();
  let slot = params.slot + params.recordSplits + split;
  let base = ((slot * params.kvHeads + kvHead) * params.blocks + block) * ROWS;
  for (var i = lane; i < D; i += THREADS) {
    var sum = stagedAt(i);
    for (var other = 1u; other < EXACT_TEAMS; other++) {
      sum += stagedAt(other * EXACT_WORDS * 2u * EXACT_COLUMNS + i);
    }
    for (var r = 0u; r < ROWS; r++) {
      partials[(base + r) * D + i] = rowOf(sum, r);
    }
  }
  if (lane < ROWS) {
    var sum = summedAt(0);
    for (var i = 1u; i < 8u; i++) {
      sum += summedAt(i);
    }
    totals[base + lane] = vec2f(rowOf(top, lane), rowOf(sum, lane));
  }
}
