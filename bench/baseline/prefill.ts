// Attention of many query tokens, the last of the cache, over an uncompressed f32 cache: online softmax over tiles of
// tokens, for blocks of rows (a row is one query head of one query token), as matrix products do it.
//
// Scores and weighted sums are one operation on panels of 8 columns (`attend.ts` has their layout): four rows' coefficients
// and 8 columns make eight sums, as many as engines keep in registers, so that each load of K or V serves four rows. A panel
// stays in the innermost cache for all rows of a block.

import { BLOCK } from "./attend";
import { exp2, exp2All, largest, mulAdd, prepareExp2, sum } from "./lanes";

// Bytes of one row of a panel.
const STRIP: usize = 32;
// Tokens of a tile, a multiple of BLOCK.
const TILE: i32 = 128;
const SCORE_BYTES: usize = TILE * 4;
// Rows of a block, a multiple of 4.
const ROWS: i32 = 16;
const MAX_HEAD_DIM = 512;

// A tile's values, in panels of the whole tile: [headDim / 8][TILE][8].
const valuePanels = memory.data(MAX_HEAD_DIM * TILE * 4, 64);
// A block's scores, then weights, [ROWS][TILE], and weights as coefficients, [ROWS / 4][TILE][4].
const scores = memory.data(ROWS * TILE * 4, 64);
const weights = memory.data(ROWS * TILE * 4, 64);
// What a tile adds to the rows, [ROWS][headDim].
const added = memory.data(ROWS * MAX_HEAD_DIM * 4, 64);
const decays = memory.data(ROWS * 4, 16);

// All query heads of one layer. `queries` and `out` are [queryTokens][kvHeads][group][headDim]; `keys` and `values` hold one
// KV head after another, `stride` bytes each. `scratch` takes `queryTokens * group` rows, rounded up to a multiple of 4, of
// `headDim + 2` f32.
export function prefill(
  queries: usize,
  queryTokens: i32,
  out: usize,
  keys: usize,
  values: usize,
  stride: usize,
  tokens: i32,
  headDim: i32,
  kvHeads: i32,
  group: i32,
  scale: f32,
  scratch: usize,
): void {
  const vectorBytes = (<usize>headDim) << 2;
  const rows = queryTokens * group;
  const states = scratch + <usize>((rows + 3) & ~3) * vectorBytes;
  prepareExp2();
  for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
    const offset = <usize>(kvHead * group) * vectorBytes;
    // Times log2(e): exponentials are then powers of 2.
    prepare(
      queries + offset,
      out + offset,
      rows,
      headDim,
      kvHeads,
      group,
      scale * <f32>1.4426950408889634,
      scratch,
      states,
    );
    for (let from = 0; from < tokens; from += TILE) {
      const at = <usize>from * vectorBytes;
      const count = min(TILE, tokens - from);
      gather(values + at, headDim, count);
      attendTile(
        keys + at,
        out + offset,
        rows,
        headDim,
        kvHeads,
        group,
        tokens - queryTokens - from,
        count,
        scratch,
        states,
      );
    }
    finish(out + offset, rows, headDim, kvHeads, group, states);
    keys += stride;
    values += stride;
  }
}

// Where a row's vector lies in [queryTokens][kvHeads][group][headDim], from the first of its KV head on.
@inline
function rowOffset(row: i32, kvHeads: i32, group: i32, vectorBytes: usize): usize {
  const token = row / group;
  return <usize>(token * kvHeads * group + (row - token * group)) * vectorBytes;
}

// Queries of one KV head to coefficients, [rows / 4][headDim][4]; clears its rows of `out` and their states.
function prepare(
  queries: usize,
  out: usize,
  rows: i32,
  headDim: i32,
  kvHeads: i32,
  group: i32,
  factor: f32,
  coefficients: usize,
  states: usize,
): void {
  const vectorBytes = (<usize>headDim) << 2;
  for (let row = 0; row < rows; row++) {
    const offset = rowOffset(row, kvHeads, group, vectorBytes);
    let target = coefficients + <usize>(row & ~3) * vectorBytes + ((<usize>(row & 3)) << 2);
    for (let at = queries + offset, end = at + vectorBytes; at < end; at += 4, target += 16) {
      store<f32>(target, load<f32>(at) * factor);
    }
    memory.fill(out + offset, 0, vectorBytes);
    store<f32>(states + ((<usize>row) << 3), -Infinity);
    store<f32>(states + ((<usize>row) << 3), 0, 4);
  }
}

// The values of a tile to panels of the whole tile.
function gather(values: usize, headDim: i32, count: i32): void {
  const panels = headDim >> 3;
  for (let from = 0; from < count; from += BLOCK) {
    let target = valuePanels + <usize>from * STRIP;
    for (let panel = 0; panel < panels; panel++) {
      memory.copy(target, values, <usize>BLOCK * STRIP);
      values += <usize>BLOCK * STRIP;
      target += <usize>TILE * STRIP;
    }
  }
}

// All rows of one KV head over a tile of `count` tokens. The first row's own token is the `own`th of the tile; it may lie
// before or beyond it.
function attendTile(
  keys: usize,
  out: usize,
  rows: i32,
  headDim: i32,
  kvHeads: i32,
  group: i32,
  own: i32,
  count: i32,
  coefficients: usize,
  states: usize,
): void {
  const vectorBytes = (<usize>headDim) << 2;
  for (let row = 0; row < rows; row += ROWS) {
    const block = min(ROWS, rows - row);
    // What the last row sees; scores come by whole panels, and sixteens of them.
    const end = min(count, own + (row + block - 1) / group + 1);
    if (end <= 0) continue;
    const columns = (end + 15) & ~15;
    const query = coefficients + <usize>row * vectorBytes;
    multiply(keys, <usize>headDim * STRIP, columns >> 3, headDim, query, block, scores, SCORE_BYTES);
    for (let i = 0; i < block; i++) {
      const seen = min(count, own + (row + i) / group + 1);
      weigh(i, max(0, seen), columns, states + ((<usize>(row + i)) << 3));
    }
    interleave(end, block);
    multiply(valuePanels, <usize>TILE * STRIP, headDim >> 3, end, weights, block, added, vectorBytes);
    for (let i = 0; i < block; i++) {
      const target = out + rowOffset(row + i, kvHeads, group, vectorBytes);
      add(target, added + <usize>i * vectorBytes, load<f32>(decays + ((<usize>i) << 2)), vectorBytes);
    }
  }
}

// out[row][column] = sum over k of coefficients[row / 4][k][row % 4] * panel[column / 8][k][column % 8], for whole fours of
// rows; panels are `panelBytes` apart and the rows of `out` `stride`.
function multiply(
  panel: usize,
  panelBytes: usize,
  panels: i32,
  count: i32,
  coefficients: usize,
  rows: i32,
  out: usize,
  stride: usize,
): void {
  const bytes = <usize>count * STRIP;
  for (const last = panel + <usize>panels * panelBytes; panel < last; panel += panelBytes, out += 32) {
    let weight = coefficients;
    let target = out;
    for (let row = 0; row < rows; row += 4, target += 4 * stride) {
      let a0 = f32x4.splat(0);
      let b0 = a0;
      let a1 = a0;
      let b1 = a0;
      let a2 = a0;
      let b2 = a0;
      let a3 = a0;
      let b3 = a0;
      for (let at = panel, end = panel + bytes; at < end; at += STRIP, weight += 16) {
        const x = v128.load(at);
        const y = v128.load(at, 16);
        const w0 = v128.load32_splat(weight);
        a0 = mulAdd(a0, x, w0);
        b0 = mulAdd(b0, y, w0);
        const w1 = v128.load32_splat(weight, 4);
        a1 = mulAdd(a1, x, w1);
        b1 = mulAdd(b1, y, w1);
        const w2 = v128.load32_splat(weight, 8);
        a2 = mulAdd(a2, x, w2);
        b2 = mulAdd(b2, y, w2);
        const w3 = v128.load32_splat(weight, 12);
        a3 = mulAdd(a3, x, w3);
        b3 = mulAdd(b3, y, w3);
      }
      v128.store(target, a0);
      v128.store(target, b0, 16);
      v128.store(target + stride, a1);
      v128.store(target + stride, b1, 16);
      v128.store(target + 2 * stride, a2);
      v128.store(target + 2 * stride, b2, 16);
      v128.store(target + 3 * stride, a3);
      v128.store(target + 3 * stride, b3, 16);
    }
  }
}

// Turns the scores of a block's row into weights; only the first `seen` count. Notes what brings the row's earlier sums to
// the new maximum.
function weigh(row: i32, seen: i32, columns: i32, state: usize): void {
  const from = scores + <usize>row * SCORE_BYTES;
  const end = from + ((<usize>columns) << 2);
  for (let at = from + ((<usize>seen) << 2); at < end; at += 4) store<f32>(at, -Infinity);
  const before = load<f32>(state);
  let top = f32x4.splat(before);
  for (let at = from; at < end; at += 64) {
    const ab = f32x4.pmax(v128.load(at), v128.load(at, 16));
    const cd = f32x4.pmax(v128.load(at, 32), v128.load(at, 48));
    top = f32x4.pmax(top, f32x4.pmax(ab, cd));
  }
  const maximum = largest(top);
  let decay: f32 = 1;
  if (maximum > before) {
    decay = f32x4.extract_lane(exp2(f32x4.splat(before - maximum)), 0);
    store<f32>(state, maximum);
  }
  const total = sum(exp2All(from, end, maximum));
  store<f32>(state, load<f32>(state, 4) * decay + total, 4);
  store<f32>(decays + ((<usize>row) << 2), decay);
}

// A block's weights to coefficients.
function interleave(count: i32, rows: i32): void {
  let target = weights;
  for (let row = 0; row < rows; row += 4) {
    let at = scores + <usize>row * SCORE_BYTES;
    let out = target;
    for (const end = at + ((<usize>count) << 2); at < end; at += 16, out += 64) {
      const a = v128.load(at);
      const b = v128.load(at, SCORE_BYTES);
      const c = v128.load(at, 2 * SCORE_BYTES);
      const d = v128.load(at, 3 * SCORE_BYTES);
      const abLow = v128.shuffle<f32>(a, b, 0, 4, 1, 5);
      const abHigh = v128.shuffle<f32>(a, b, 2, 6, 3, 7);
      const cdLow = v128.shuffle<f32>(c, d, 0, 4, 1, 5);
      const cdHigh = v128.shuffle<f32>(c, d, 2, 6, 3, 7);
      v128.store(out, v128.shuffle<f32>(abLow, cdLow, 0, 1, 4, 5));
      v128.store(out, v128.shuffle<f32>(abLow, cdLow, 2, 3, 6, 7), 16);
      v128.store(out, v128.shuffle<f32>(abHigh, cdHigh, 0, 1, 4, 5), 32);
      v128.store(out, v128.shuffle<f32>(abHigh, cdHigh, 2, 3, 6, 7), 48);
    }
    target += (<usize>count) << 4;
  }
}

// target = target * decay + x
function add(target: usize, x: usize, decay: f32, bytes: usize): void {
  const by = f32x4.splat(decay);
  for (const end = target + bytes; target < end; target += 64, x += 64) {
    v128.store(target, mulAdd(v128.load(x), v128.load(target), by));
    v128.store(target, mulAdd(v128.load(x, 16), v128.load(target, 16), by), 16);
    v128.store(target, mulAdd(v128.load(x, 32), v128.load(target, 32), by), 32);
    v128.store(target, mulAdd(v128.load(x, 48), v128.load(target, 48), by), 48);
  }
}

// Sums to averages.
function finish(out: usize, rows: i32, headDim: i32, kvHeads: i32, group: i32, states: usize): void {
  const vectorBytes = (<usize>headDim) << 2;
  for (let row = 0; row < rows; row++) {
    const factor = f32x4.splat(1 / load<f32>(states + ((<usize>row) << 3), 4));
    let at = out + rowOffset(row, kvHeads, group, vectorBytes);
    for (const end = at + vectorBytes; at < end; at += 16) v128.store(at, f32x4.mul(v128.load(at), factor));
  }
}
