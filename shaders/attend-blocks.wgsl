// Attention of many rows, as two matrix products: scores are queries times keys, sums are weights times values. A
// workgroup takes BLOCK_ROWS rows of one KV head through the tiles of one split, with a running maximum of the scores,
// and leaves a partial result in a slot for attend-combine. A tile is a record's, or up to GROUP exact tokens.
//
// Both products go by 16 steps at a time: what is multiplied is staged, of the rows in `left` and of the tile, as f32,
// in `right`, so that codes are taken apart once for all rows. An invocation has 4 * ROW_FOURS rows and, of 16 columns
// of invocations, one: in scoring 4 * TOKEN_FOURS tokens, in summing up, 128 channels at a time, 4 * CHANNEL_FOURS.

override D: u32;
override GROUP: u32;
override KEY_BITS: u32;
override VALUE_BITS: u32;
override THREADS: u32;
// Rows of a workgroup, 4 * ROW_FOURS for each of TEAMS = THREADS / 16 teams.
override BLOCK_ROWS: u32;
override TEAMS: u32;
// Staged fours of a step, with a gap against bank conflicts, and of all 16.
override LEFT_STRIDE: u32;
override LEFT: u32;
override RIGHT_STRIDE: u32;
override RIGHT: u32;
// Steps of a product that are written out.
override UNROLLED: u32;
// Words of K for one channel.
override KEY_ROW: u32;
// Channels of V that an invocation takes apart at a time, codes of them in a word, and how many such columns there are.
override CHANNELS: u32;
override VALUE_CODES: u32;
override COLUMNS: u32;
// Channels that are staged at a time, min(D, 128), and columns of them.
override PART: u32;
override PART_COLUMNS: u32;
// Where a record's fields lie, and its size, in words.
override K_SCALE: u32;
override K_ZERO: u32;
override K_TOKEN: u32;
override V_CODES: u32;
override V_SCALE: u32;
override V_TOKEN: u32;
override V_ZERO: u32;
override RECORD: u32;

struct Params {
  tiles: u32,
  tilesPerSplit: u32,
  // Of the first split.
  slot: u32,
  kvHeads: u32,
  // Of rows.
  blocks: u32,
  headsPerKvHead: u32,
  rows: u32,
  // Of the first query token.
  position: u32,
  window: u32,
  // 0: none.
  softCap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> records: array<u32>;
// [token][K, V][KV head][channel], two a word.
@group(0) @binding(2) var<storage, read> exactTokens: array<u32>;
// Where a tile begins, in words, its first position, its tokens, and whether it is a record.
@group(0) @binding(3) var<storage, read> tiles: array<vec4u>;
// As attend-rotate writes them: [KV head][block][channel][row], four rows in one.
@group(0) @binding(4) var<storage, read> queries: array<vec4f>;
// [slot][KV head][row][channel], four channels in one.
@group(0) @binding(5) var<storage, read_write> partials: array<vec4f>;
// [slot][KV head][row]: the maximum that sums are relative to, and the sum of the weights.
@group(0) @binding(6) var<storage, read_write> totals: array<vec2f>;

// [step][four rows]: queries, then weights.
var<workgroup> left: array<vec4f, LEFT>;
// [step][four tokens], or [step][four channels]: keys, then values.
var<workgroup> right: array<vec4f, RIGHT>;
// Of each row the largest of the scores that exceeded the maximum, see orderOf; 0: none did.
var<workgroup> largest: array<atomic<u32>, BLOCK_ROWS>;

//# include attend-rows
//# include attend-codes
//# include attend-maximum
//# include half

// The first of four tokens of a tile. Next to each other lie those that invocations next to each other stage: first
// fours of eight tokens, then second fours.
fn tokenOf(four: u32) -> u32 {
  return four % (GROUP / 8u) * 8u + four / (GROUP / 8u) * 4u;
}

// The first of four channels of a part, likewise.
fn channelOf(four: u32) -> u32 {
  return four % PART_COLUMNS * CHANNELS + four / PART_COLUMNS * 4u;
}

fn most4(x: vec4f) -> f32 {
  return max(max(x.x, x.y), max(x.z, x.w));
}

fn sum4(x: vec4f) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}

// Stages 16 channels of a record's keys, short of the scales of tokens.
fn stageKeys(record: u32, first: u32, thread: u32) {
  for (var turn = 0u; turn < (2u * GROUP + THREADS - 1u) / THREADS; turn++) {
    let i = turn * THREADS + thread;
    if (i < 2u * GROUP) {
      let eight = i % (GROUP / 8u);
      let step = i / (GROUP / 8u);
      let channel = first + step;
      //# for u in 0..KEY_WORDS
      let codes_u = keyCodes(record, channel, eight, $u);
      //# end
      let scale = halfOf(records[record + K_SCALE + channel / 2u], channel) * f32(1u << KEY_BITS);
      let zero = halfOf(records[record + K_ZERO + channel / 2u], channel) - scale;
      //# for n in 0..2
      right[step * RIGHT_STRIDE + $n * (GROUP / 8u) + eight] = fma(
        vec4f(scale),
        vec4f(
          //# for m in 0..4
          //# if KEY_WORDS == 2
          fraction(codes_n, $m * KEY_BITS, KEY_BITS),
          //# else
          fraction(codes_0, (4 * $n + $m) * KEY_BITS, KEY_BITS),
          //# end
          //# end
        ),
        vec4f(zero),
      );
      //# end
    }
  }
}

// Stages 16 channels of up to GROUP exact keys; the last of them stands for those that are missing.
fn stageExactKeys(start: u32, tokens: u32, first: u32, thread: u32) {
  for (var turn = 0u; turn < (2u * GROUP + THREADS - 1u) / THREADS; turn++) {
    let i = turn * THREADS + thread;
    if (i < 2u * GROUP) {
      let pair = i % 8u;
      let four = i / 8u;
      //# for m in 0..4
      let at_m = start + min(tokenOf(four) + $m, tokens - 1u) * params.kvHeads * D;
      let pair_m = unpack2x16float(exactTokens[at_m + first / 2u + pair]);
      //# end
      right[2u * pair * RIGHT_STRIDE + four] = vec4f(pair_0.x, pair_1.x, pair_2.x, pair_3.x);
      right[(2u * pair + 1u) * RIGHT_STRIDE + four] = vec4f(pair_0.y, pair_1.y, pair_2.y, pair_3.y);
    }
  }
}

// Stages a record's values of 16 tokens, one of each four that begins with `four`, and of one part of the channels.
fn stageValues(record: u32, four: u32, member: u32, part: u32, thread: u32) {
  for (var turn = 0u; turn < (16u * PART_COLUMNS + THREADS - 1u) / THREADS; turn++) {
    let i = turn * THREADS + thread;
    if (i < 16u * PART_COLUMNS) {
      let column = i % PART_COLUMNS;
      let step = i / PART_COLUMNS;
      let channel = part * PART + column * CHANNELS;
      if (channel < D) {
        let token = tokenOf(four + step) + member;
        //# for w in 0..VALUE_WORDS
        let codes_w = valueCodes(record + V_CODES, token, channel / CHANNELS, $w);
        //# end
        let scale = halfOf(records[record + V_TOKEN + token / 2u], token) * f32(1u << VALUE_BITS);
        let zero = halfOf(records[record + V_ZERO + token / 2u], token) - scale;
        //# for w in 0..VALUE_WORDS
        //# for u in $w * VALUE_CODES / 4..($w + 1) * VALUE_CODES / 4
        let channelScale_u = vec4f(
          unpack2x16float(records[record + V_SCALE + channel / 2u + 2u * $u]),
          unpack2x16float(records[record + V_SCALE + channel / 2u + 2u * $u + 1u]),
        );
        right[step * RIGHT_STRIDE + $u * PART_COLUMNS + column] = channelScale_u * fma(
          vec4f(scale),
          vec4f(
            //# for m in 0..4
            fraction(codes_w, (4 * $u - $w * VALUE_CODES + $m) * VALUE_BITS, VALUE_BITS),
            //# end
          ),
          vec4f(zero),
        );
        //# end
        //# end
      }
    }
  }
}

// The same of exact values.
fn stageExactValues(start: u32, tokens: u32, four: u32, member: u32, part: u32, thread: u32) {
  for (var turn = 0u; turn < (4u * PART + THREADS - 1u) / THREADS; turn++) {
    let i = turn * THREADS + thread;
    if (i < 4u * PART) {
      let place = i % (PART / 4u);
      let step = i / (PART / 4u);
      let channel = part * PART + channelOf(place);
      if (channel < D) {
        let token = min(tokenOf(four + step) + member, tokens - 1u);
        let at = start + (token * 2u + 1u) * params.kvHeads * (D / 2u) + channel / 2u;
        right[step * RIGHT_STRIDE + place] = vec4f(
          unpack2x16float(exactTokens[at]),
          unpack2x16float(exactTokens[at + 1u]),
        );
      }
    }
  }
}

@compute @workgroup_size(THREADS)
fn attend_blocks(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let block = group.x;
  let kvHead = group.y;
  let split = group.z;
  let first = split * params.tilesPerSplit;
  let end = min(first + params.tilesPerSplit, params.tiles);
  let column = thread % 16u;
  let team = thread / 16u;
  let firstRow = block * BLOCK_ROWS;
  let leastPosition = params.position + firstRow / params.headsPerKvHead;
  let lastRow = min(firstRow + BLOCK_ROWS, params.rows) - 1u;
  let mostPosition = params.position + lastRow / params.headsPerKvHead;
  let blockQueries = (kvHead * params.blocks + block) * D * (BLOCK_ROWS / 4u);

  //# for h in 0..ROW_FOURS
  let row_h = 4u * (team + $h * TEAMS);
  let positions_h = params.position + (firstRow + row_h + vec4u(0u, 1u, 2u, 3u)) / params.headsPerKvHead;
  var top_h = vec4f(HIDDEN);
  var total_h = vec4f(0.0);
  //# for i in 0..4
  //# for p in 0..PARTS
  //# for j in 0..CHANNEL_FOURS
  var sum_p_h_i_j = vec4f(0.0);
  //# end
  //# end
  //# end
  //# end

  // Workgroup memory may hold anything. The barriers before the first scores are compared let all see this.
  for (var turn = 0u; turn < (BLOCK_ROWS + THREADS - 1u) / THREADS; turn++) {
    let i = turn * THREADS + thread;
    if (i < BLOCK_ROWS) {
      atomicStore(&largest[i], 0u);
    }
  }
  for (var index = first; index < end; index++) {
    let tile = tiles[index];
    let tokens = tile.z;
    let isRecord = tile.w != 0u;
    if (tile.y > mostPosition || tile.y + tokens - 1u + params.window <= leastPosition) {
      continue;
    }
    let start = tile.x + kvHead * select(D / 2u, RECORD, isRecord);

    //# for h in 0..ROW_FOURS
    //# for i in 0..4
    //# for j in 0..TOKEN_FOURS
    var score_h_i_j = vec4f(0.0);
    //# end
    //# end
    //# end
    for (var channel = 0u; channel < D; channel += 16u) {
      workgroupBarrier();
      for (var turn = 0u; turn < (4u * BLOCK_ROWS + THREADS - 1u) / THREADS; turn++) {
        let i = turn * THREADS + thread;
        if (i < 4u * BLOCK_ROWS) {
          let query = queries[blockQueries + channel * (BLOCK_ROWS / 4u) + i];
          left[i / (BLOCK_ROWS / 4u) * LEFT_STRIDE + i % (BLOCK_ROWS / 4u)] = query;
        }
      }
      if (isRecord) {
        stageKeys(start, channel, thread);
      } else {
        stageExactKeys(start, tokens, channel, thread);
      }
      workgroupBarrier();
      for (var round = 0u; round < 16u / UNROLLED; round++) {
        //# for k in 0..UNROLLED
        //# for h in 0..ROW_FOURS
        let query_k_h = left[(round * UNROLLED + $k) * LEFT_STRIDE + $h * TEAMS + team];
        //# end
        //# for j in 0..TOKEN_FOURS
        let key_k_j = right[(round * UNROLLED + $k) * RIGHT_STRIDE + $j * 16u + column];
        //# end
        //# for h in 0..ROW_FOURS
        //# for i in 0..4
        //# for j in 0..TOKEN_FOURS
        score_h_i_j = fma(vec4f(query_k_h[$i]), key_k_j, score_h_i_j);
        //# end
        //# end
        //# end
        //# end
      }
    }

    //# for j in 0..TOKEN_FOURS
    let token_j = tokenOf(column + $j * 16u);
    //# end
    if (isRecord) {
      //# for j in 0..TOKEN_FOURS
      let keyScale_j = vec4f(
        unpack2x16float(records[start + K_TOKEN + token_j / 2u]),
        unpack2x16float(records[start + K_TOKEN + token_j / 2u + 1u]),
      );
      //# for h in 0..ROW_FOURS
      //# for i in 0..4
      score_h_i_j *= keyScale_j;
      //# end
      //# end
      //# end
    }
    if (params.softCap > 0.0) {
      //# for h in 0..ROW_FOURS
      //# for i in 0..4
      //# for j in 0..TOKEN_FOURS
      score_h_i_j = capped(score_h_i_j, params.softCap);
      //# end
      //# end
      //# end
    }
    if (tokens < GROUP || tile.y + GROUP - 1u > leastPosition || tile.y + params.window <= mostPosition) {
      //# for j in 0..TOKEN_FOURS
      let within_j = token_j + vec4u(0u, 1u, 2u, 3u);
      let at_j = select(vec4u(HIDDEN_FROM), tile.y + within_j, within_j < vec4u(tokens));
      //# for h in 0..ROW_FOURS
      //# for i in 0..4
      score_h_i_j = seen(score_h_i_j, at_j, positions_h[$i]);
      //# end
      //# end
      //# end
    }

    //# for h in 0..ROW_FOURS
    var most_h = vec4f(
      //# for i in 0..4
      most4(score_h_i_0),
      //# end
    );
    //# for j in 1..TOKEN_FOURS
    most_h = max(most_h, vec4f(
      //# for i in 0..4
      most4(score_h_i_j),
      //# end
    ));
    //# end
    if (any(most_h > top_h + SLACK)) {
      //# for i in 0..4
      atomicMax(&largest[row_h + $i], orderOf(most_h[$i]));
      //# end
    }
    //# end
    workgroupBarrier();
    //# for h in 0..ROW_FOURS
    most_h = max(top_h, vec4f(
      //# for i in 0..4
      valueOf(atomicLoad(&largest[row_h + $i])),
      //# end
    ));
    if (any(most_h > top_h)) {
      let shrink = expOf(top_h - most_h);
      top_h = most_h;
      total_h *= shrink;
      //# for i in 0..4
      //# for p in 0..PARTS
      //# for j in 0..CHANNEL_FOURS
      sum_p_h_i_j *= shrink[$i];
      //# end
      //# end
      //# end
    }
    //# for i in 0..4
    //# for j in 0..TOKEN_FOURS
    score_h_i_j = select(expOf(score_h_i_j - top_h[$i]), vec4f(0.0), score_h_i_j <= vec4f(HIDDEN));
    //# end
    //# end
    //# for j in 0..TOKEN_FOURS
    total_h += vec4f(
      //# for i in 0..4
      sum4(score_h_i_j),
      //# end
    );
    //# end
    //# end

    // Weights, of each column of invocations that of one token at a time, times these tokens' values.
    for (var member = 0u; member < GROUP / 16u; member++) {
      //# for p in 0..PARTS
      workgroupBarrier();
      //# if $p == 0
      //# for j in 0..TOKEN_FOURS
      //# for e in 0..4
      if (member == 4 * $j + $e) {
        //# for h in 0..ROW_FOURS
        left[column * LEFT_STRIDE + $h * TEAMS + team] = vec4f(
          //# for i in 0..4
          score_h_i_j[$e],
          //# end
        );
        //# end
      }
      //# end
      //# end
      //# end
      if (isRecord) {
        stageValues(start, member / 4u * 16u, member % 4u, $p, thread);
      } else {
        stageExactValues(start, tokens, member / 4u * 16u, member % 4u, $p, thread);
      }
      workgroupBarrier();
      for (var round = 0u; round < 16u / UNROLLED; round++) {
        //# for k in 0..UNROLLED
        //# for h in 0..ROW_FOURS
        let weight_k_h = left[(round * UNROLLED + $k) * LEFT_STRIDE + $h * TEAMS + team];
        //# end
        //# for j in 0..CHANNEL_FOURS
        let value_k_j = right[(round * UNROLLED + $k) * RIGHT_STRIDE + $j * 16u + column];
        //# end
        //# for h in 0..ROW_FOURS
        //# for i in 0..4
        //# for j in 0..CHANNEL_FOURS
        sum_p_h_i_j = fma(vec4f(weight_k_h[$i]), value_k_j, sum_p_h_i_j);
        //# end
        //# end
        //# end
        //# end
      }
      //# end
    }
  }

  let base = (((params.slot + split) * params.kvHeads + kvHead) * params.blocks + block) * BLOCK_ROWS;
  //# for p in 0..PARTS
  //# for j in 0..CHANNEL_FOURS
  {
    let four = column + $j * 16u;
    let channel = $p * PART + channelOf(four);
    if (four < PART / 4u && channel < D) {
      //# for h in 0..ROW_FOURS
      //# for i in 0..4
      partials[((base + row_h + $i) * D + channel) / 4u] = sum_p_h_i_j;
      //# end
      //# end
    }
  }
  //# end
  //# end

  workgroupBarrier();
  //# for h in 0..ROW_FOURS
  left[column * LEFT_STRIDE + $h * TEAMS + team] = total_h;
  //# end
  workgroupBarrier();
  if (column == 0u) {
    //# for h in 0..ROW_FOURS
    total_h = vec4f(0.0);
    for (var i = 0u; i < 16u; i++) {
      total_h += left[i * LEFT_STRIDE + $h * TEAMS + team];
    }
    //# for i in 0..4
    totals[base + row_h + $i] = vec2f(top_h[$i], total_h[$i]);
    //# end
    //# end
  }
}

// The scores of those tokens that a row sees, see masked.
fn seen(score: vec4f, at: vec4u, position: u32) -> vec4f {
  let isSeen = (at <= vec4u(position)) & (at + params.window > vec4u(position));
  return select(vec4f(HIDDEN), score, isSeen);
}
