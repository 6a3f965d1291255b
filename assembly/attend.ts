// Attention of query rows with one tile after another, all in the rotated frame, with a running maximum.
//
// Query rows are those of one KV head: rows of one query token (its `shared` query heads) after one another, tokens in
// order. Per row: the query times the softmax scale (f32 `[headDim]`), the weighted sum of values so far (likewise), and
// the running maximum and the sum of weights so far (two f32).
//
// The scales of a record are folded: K's channel scales go into the query, its token scales onto the sums of codes;
// V's token scales go into the weights, its channel scales onto the sums. So codes are never turned into values.

import { sumCodes } from "./dots";
import { loadHalves } from "./half";
import { fold, foldInto, largestCoefficient, toIntegers } from "./integers";
import { storeTransposed } from "./lanes";
import {
  BEST_COLUMN_SCALE,
  CODE_SCALE,
  CODE_ZERO,
  COEFFICIENTS,
  DOTS,
  HEADS,
  K_BYTES,
  K_SCALE,
  K_TOKEN,
  K_ZERO,
  ROWS,
  SCORE_BYTES,
  SCORES,
  TILE,
  TRANSPOSED,
  V_BYTES,
  V_SCALE,
  V_TOKEN,
  V_ZERO,
} from "./memory";
import { openRows } from "./pack";
import { loadKeyPanels, loadValuePanels, pairToPanels, panelBytes, scaleToPanels, STRIP } from "./panels";
import { rotateRows } from "./rotate";
import { accumulate, exp1, soften, visibleFrom, visibleTo } from "./softmax";
import { sumPairs, sumPanels } from "./sums";
import { scale } from "./vectors";

// From so many rows on, a record's codes are taken apart for all of them, which takes as long as four rows; fewer go by fours
// over packed codes. Both give the same bits: integers add up to the same in any order.
const MANY_ROWS = 24;

// Takes queries `[tokens, queryHeads, headDim]` (f32, or binary16 when `half`) to rows by KV head, rotated and times
// `softmaxScale`, and clears what goes with them.
export function prepareQueries(
  source: usize,
  half: bool,
  tokens: i32,
  queryHeads: i32,
  kvHeads: i32,
  headDim: i32,
  softmaxScale: f32,
  queries: usize,
  sums: usize,
  states: usize,
): void {
  const perHead = queryHeads / kvHeads;
  const rowBytes = (<usize>headDim) << 2;
  for (let token = 0; token < tokens; token++) {
    for (let head = 0; head < queryHeads; head++, source += half ? rowBytes >> 1 : rowBytes) {
      const row = ((head / perHead) * tokens + token) * perHead + (head % perHead);
      const query = queries + <usize>row * rowBytes;
      if (half) loadHalves(source, query, headDim);
      else memory.copy(query, source, rowBytes);
      rotateRows(query, 1, headDim);
      scale(query, softmaxScale, headDim);
      memory.fill(sums + <usize>row * rowBytes, 0, rowBytes);
      store<f32>(states + ((<usize>row) << 3), -Infinity);
      store<f32>(states + ((<usize>row) << 3), 0, 4);
    }
  }
}

// The reverse: rows' sums over their weights, rotated back, to `[tokens, queryHeads, headDim]`. `sinks`: one logit for
// each query head that takes its share of the weights, or 0.
export function finishQueries(
  tokens: i32,
  queryHeads: i32,
  kvHeads: i32,
  headDim: i32,
  sinks: usize,
  sums: usize,
  states: usize,
  target: usize,
): void {
  const perHead = queryHeads / kvHeads;
  const rowBytes = (<usize>headDim) << 2;
  for (let token = 0; token < tokens; token++) {
    for (let head = 0; head < queryHeads; head++, target += rowBytes) {
      const row = ((head / perHead) * tokens + token) * perHead + (head % perHead);
      const state = states + ((<usize>row) << 3);
      let weights = load<f32>(state, 4);
      let factor: f32 = 1;
      if (sinks) {
        const most = load<f32>(state);
        const sink = load<f32>(sinks + ((<usize>head) << 2));
        const newMost = max(most, sink);
        factor = exp1(most - newMost);
        weights = weights * factor + exp1(sink - newMost);
      }
      memory.copy(target, sums + <usize>row * rowBytes, rowBytes);
      scale(target, factor / weights, headDim);
      rotateRows(target, 1, headDim);
    }
  }
}

// Attends `rows` rows to a record, `tokens` of them at positions from `start` on, by 16-bit integer dots.
export function attendRecord(
  headDim: i32,
  tokens: i32,
  keyBits: i32,
  valueBits: i32,
  kCodes: usize,
  kScale: usize,
  kZero: usize,
  kToken: usize,
  vCodes: usize,
  vScale: usize,
  vToken: usize,
  vZero: usize,
  start: i32,
  rows: i32,
  queries: usize,
  sums: usize,
  states: usize,
): void {
  // In the order in which a record lies in memory, as hardware foresees it: sums go through codes column by column.
  const many = rows >= MANY_ROWS;
  takeCodes(kCodes, headDim, tokens, keyBits, many, K_BYTES);
  loadHalves(kScale, K_SCALE, headDim);
  loadHalves(kZero, K_ZERO, headDim);
  loadHalves(kToken, K_TOKEN, tokens);
  takeCodes(vCodes, tokens, headDim, valueBits, many, V_BYTES);
  loadHalves(vScale, V_SCALE, headDim);
  loadHalves(vToken, V_TOKEN, tokens);
  loadHalves(vZero, V_ZERO, tokens);
  if (many) {
    pairToPanels(K_BYTES, headDim, tokens, TILE);
    pairToPanels(V_BYTES, tokens, headDim, TRANSPOSED);
    attendPairs(headDim, tokens, keyBits, valueBits, start, rows, queries, sums, states);
  } else {
    attendCodes(headDim, tokens, keyBits, valueBits, start, rows, queries, sums, states);
  }
}

// Brings codes near: as they are packed, or one byte each, if they are to be `opened` or their width does not divide a byte.
@inline
function takeCodes(codes: usize, rows: i32, columns: i32, bits: i32, opened: bool, target: usize): void {
  if (opened || !dividesByte(bits)) openRows(codes, rows, columns, bits, target);
  else memory.copy(target, codes, (<usize>rows * columns * bits) >> 3);
}

// Few rows, to codes in K_BYTES and V_BYTES; scales are in place.
function attendCodes(
  headDim: i32,
  tokens: i32,
  keyBits: i32,
  valueBits: i32,
  start: i32,
  rows: i32,
  queries: usize,
  sums: usize,
  states: usize,
): void {
  const keyWidth = dividesByte(keyBits) ? keyBits : 8;
  const valueWidth = dividesByte(valueBits) ? valueBits : 8;
  const rowBytes = (<usize>headDim) << 2;
  const keyLimit = largestCoefficient(headDim);
  const valueLimit = largestCoefficient(tokens);

  for (let row = 0; row < rows; row += <i32>HEADS) {
    const heads = min(<i32>HEADS, rows - row);
    if (visibleFrom(row, start) >= visibleTo(row + heads - 1, start, tokens)) continue;
    const at = <usize>row * rowBytes;
    toIntegers(queries + at, rowBytes, 0, heads, K_SCALE, K_ZERO, headDim, keyLimit, keyBits);
    const scoreBytes = sumCodes(K_BYTES, headDim, tokens, keyWidth, heads);
    for (let head = 0; head < heads; head++) {
      const scores = DOTS + <usize>head * scoreBytes;
      fold(scores, head, K_TOKEN, tokens);
      soften(scores, row + head, head, start, tokens, 0, tokens, states);
    }
    toIntegers(DOTS, scoreBytes, 0, heads, V_TOKEN, V_ZERO, tokens, valueLimit, valueBits);
    const sumBytes = sumCodes(V_BYTES, tokens, headDim, valueWidth, heads);
    for (let head = 0; head < heads; head++) {
      const out = sums + at + <usize>head * rowBytes;
      foldInto(out, DOTS + <usize>head * sumBytes, head, V_SCALE, headDim);
    }
  }
}

// Many rows, to panels of pairs of codes, K's in TILE and V's in TRANSPOSED; scales are in place.
function attendPairs(
  headDim: i32,
  tokens: i32,
  keyBits: i32,
  valueBits: i32,
  start: i32,
  rows: i32,
  queries: usize,
  sums: usize,
  states: usize,
): void {
  const rowBytes = (<usize>headDim) << 2;
  const keyPanel = panelBytes(headDim >> 1);
  const valuePanel = panelBytes(tokens >> 1);
  const keyLimit = largestCoefficient(headDim);
  const valueLimit = largestCoefficient(tokens);
  for (let row = 0; row < rows; row += <i32>ROWS) {
    const count = min(<i32>ROWS, rows - row);
    // What any of the rows sees, in whole panels.
    const from = visibleFrom(row, start) & ~15;
    const to = (visibleTo(row + count - 1, start, tokens) + 15) & ~15;
    if (from >= to) continue;
    const columns = to - from;
    const fromBytes = (<usize>from) << 2;
    const at = <usize>row * rowBytes;
    for (let i = 0; i < count; i += 4) {
      const query = queries + at + <usize>i * rowBytes;
      toIntegers(query, rowBytes, i, min(4, count - i), K_SCALE, K_ZERO, headDim, keyLimit, keyBits);
    }
    const keys = TILE + <usize>(from >> 3) * keyPanel;
    sumPairs(keys, keyPanel, columns >> 3, headDim, count, SCORES, SCORE_BYTES);
    for (let i = 0; i < count; i++) {
      const scores = SCORES + <usize>i * SCORE_BYTES;
      fold(scores, i, K_TOKEN + fromBytes, columns);
      soften(scores, row + i, i, start, tokens, from, to, states);
    }
    const token = V_TOKEN + fromBytes;
    const zero = V_ZERO + fromBytes;
    for (let i = 0; i < count; i += 4) {
      const scores = SCORES + <usize>i * SCORE_BYTES;
      toIntegers(scores, SCORE_BYTES, i, min(4, count - i), token, zero, columns, valueLimit, valueBits);
    }
    const values = TRANSPOSED + <usize>(from >> 1) * STRIP;
    sumPairs(values, valuePanel, headDim >> 3, columns, count, DOTS, rowBytes);
    for (let i = 0; i < count; i++) {
      const offset = <usize>i * rowBytes;
      foldInto(sums + at + offset, DOTS + offset, i, V_SCALE, headDim);
    }
  }
}

// The same in f32: codes become values first.
export function attendRecordF32(
  headDim: i32,
  tokens: i32,
  keyBits: i32,
  valueBits: i32,
  kCodes: usize,
  kScale: usize,
  kZero: usize,
  kToken: usize,
  vCodes: usize,
  vScale: usize,
  vToken: usize,
  vZero: usize,
  start: i32,
  rows: i32,
  queries: usize,
  sums: usize,
  states: usize,
): void {
  openPanels(kCodes, headDim, tokens, keyBits, kScale, kZero, kToken, TILE);
  openPanels(vCodes, tokens, headDim, valueBits, vToken, vZero, vScale, TRANSPOSED);
  attendPanels(headDim, tokens, start, rows, queries, sums, states);
}

// A tile of a record as panels of f32.
function openPanels(
  codes: usize,
  rows: i32,
  columns: i32,
  bits: i32,
  rowScale: usize,
  rowZero: usize,
  columnScale: usize,
  target: usize,
): void {
  loadHalves(rowScale, CODE_SCALE, rows);
  loadHalves(rowZero, CODE_ZERO, rows);
  loadHalves(columnScale, BEST_COLUMN_SCALE, columns);
  openRows(codes, rows, columns, bits, K_BYTES);
  scaleToPanels(K_BYTES, rows, columns, target);
}

// Attends `rows` rows to `tokens` exact tokens, K and V of one head, one token every `stride` bytes.
export function attendExact(
  headDim: i32,
  tokens: i32,
  keys: usize,
  values: usize,
  stride: usize,
  start: i32,
  rows: i32,
  queries: usize,
  sums: usize,
  states: usize,
): void {
  loadKeyPanels(keys, stride, tokens, headDim, TILE);
  loadValuePanels(values, stride, tokens, headDim, TRANSPOSED);
  attendPanels(headDim, tokens, start, rows, queries, sums, states);
}

// To panels of f32, K's in TILE, V's in TRANSPOSED.
function attendPanels(
  headDim: i32,
  tokens: i32,
  start: i32,
  rows: i32,
  queries: usize,
  sums: usize,
  states: usize,
): void {
  const rowBytes = (<usize>headDim) << 2;
  const keyPanel = panelBytes(headDim);
  const valuePanel = panelBytes(tokens);
  for (let row = 0; row < rows; row += <i32>ROWS) {
    const count = min(<i32>ROWS, rows - row);
    // What any of the rows sees: scores by whole panels.
    const from = visibleFrom(row, start) & ~15;
    const end = visibleTo(row + count - 1, start, tokens);
    if (from >= end) continue;
    const to = (end + 15) & ~15;
    interleave(queries + <usize>row * rowBytes, rowBytes, headDim, count);
    const keys = TILE + <usize>(from >> 3) * keyPanel;
    sumPanels(keys, keyPanel, (to - from) >> 3, headDim, count, SCORES, SCORE_BYTES);
    for (let i = 0; i < count; i++) {
      soften(SCORES + <usize>i * SCORE_BYTES, row + i, i, start, tokens, from, to, states);
    }
    interleave(SCORES, SCORE_BYTES, end - from, count);
    sumPanels(TRANSPOSED + <usize>from * STRIP, valuePanel, headDim >> 3, end - from, count, DOTS, rowBytes);
    for (let i = 0; i < count; i++) {
      accumulate(sums + <usize>(row + i) * rowBytes, i, DOTS + <usize>i * rowBytes, headDim);
    }
  }
}

@inline
function dividesByte(bits: i32): bool {
  return (8 / bits) * bits == 8;
}

// Rows, one every `stride` bytes, to COEFFICIENTS, `[rows / 4][count][4]`; zeros where rows are missing.
function interleave(source: usize, stride: usize, count: i32, rows: i32): void {
  const zero = f32x4.splat(0);
  let target: usize = COEFFICIENTS;
  for (let row = 0; row < rows; row += 4, source += 4 * stride, target += (<usize>count) << 4) {
    const left = rows - row;
    let out = target;
    for (let at = source, end = source + ((<usize>count) << 2); at < end; at += 16, out += 64) {
      storeTransposed(
        v128.load(at),
        left > 1 ? v128.load(at + stride) : zero,
        left > 2 ? v128.load(at + 2 * stride) : zero,
        left > 3 ? v128.load(at + 3 * stride) : zero,
        out,
        16,
      );
    }
  }
}
