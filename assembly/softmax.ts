// The softmax over tiles one after another: which tokens a row of queries sees, and its running maximum and sum of weights,
// two f32 a row.

import { exp4, expAll, setConstants, tanh4 } from "./exp";
import { largest, madd, sum } from "./lanes";
import { DECAYS } from "./memory";

// What the rows of a block share: set for one call of an exported function.
let shared: i32;
let position: i32;
let window: i32;
let softCap: f32;

// Tokens of a tile that no row sees, a bit for each: those 0 to 63, and the rest.
let hiddenLow: u64;
let hiddenHigh: u64;

// Sets which tokens the rows of the following calls see: those of query token i, at position `first + i`, see the
// `slidingWindow` tokens up to their own position. `cap` of 0: none.
export function setMask(queryHeadsPerKvHead: i32, first: i32, slidingWindow: i32, cap: f32): void {
  shared = queryHeadsPerKvHead;
  position = first;
  window = slidingWindow;
  softCap = cap;
  setConstants();
}

// Hides tokens of the tiles of the following calls, beyond what rows see by their positions: a bit for each, the first 32 of
// a tile in `a`. Holds until it is called again.
export function hideTokens(a: u32, b: u32, c: u32, d: u32): void {
  hiddenLow = (<u64>a) | ((<u64>b) << 32);
  hiddenHigh = (<u64>c) | ((<u64>d) << 32);
}

// Positions in a tile that begins at `start`, from and to, that a row sees: none where they are not in order. Neither is
// less for a later row, so that neighbouring rows see those from what the first sees to what the last sees.
export function visibleFrom(row: i32, start: i32): i32 {
  // The window may be as wide as an i32: its far end is clamped before it can wrap.
  const own = position + row / shared;
  return max(0, (window > own ? 0 : own - window + 1) - start);
}

export function visibleTo(row: i32, start: i32, tokens: i32): i32 {
  return min(tokens, position + row / shared + 1 - start);
}

@inline
export function exp1(x: f32): f32 {
  return f32x4.extract_lane(exp4(f32x4.splat(x)), 0);
}

// Scores of one row to weights: capped, masked, e to the power of what they are below the running maximum. The row's state
// is brought up to date; what brings its earlier sums to the present maximum goes to DECAYS, the `index`th. `scores` are
// those of the columns from `from` to before `to`, multiples of 16; columns that are no tokens get no weight.
export function soften(
  scores: usize,
  row: i32,
  index: i32,
  start: i32,
  tokens: i32,
  from: i32,
  to: i32,
  states: usize,
): void {
  const end = scores + ((<usize>(to - from)) << 2);
  if (softCap > 0) cap(scores, end);
  hide(scores, 0, min(visibleFrom(row, start), to) - from);
  hide(scores, max(visibleTo(row, start, tokens), from) - from, to - from);
  if (hiddenLow | hiddenHigh) {
    hideSet(scores, hiddenLow, 0, from, to);
    hideSet(scores, hiddenHigh, 64, from, to);
  }

  const state = states + ((<usize>row) << 3);
  const decay = DECAYS + ((<usize>index) << 2);
  const before = load<f32>(state);
  let most4 = f32x4.splat(before);
  for (let at = scores; at < end; at += 64) {
    const ab = f32x4.pmax(v128.load(at), v128.load(at, 16));
    const cd = f32x4.pmax(v128.load(at, 32), v128.load(at, 48));
    most4 = f32x4.pmax(most4, f32x4.pmax(ab, cd));
  }
  const most = largest(most4);
  if (most == -Infinity) {
    // Nothing seen yet, nor here.
    memory.fill(scores, 0, end - scores);
    store<f32>(decay, 1);
    return;
  }
  const total = expAll(scores, end, most);
  const factor = exp1(before - most);
  store<f32>(decay, factor);
  store<f32>(state, most);
  store<f32>(state, load<f32>(state, 4) * factor + sum(total), 4);
}

// Scores from one column to another to those of tokens that are not seen.
@inline
function hide(scores: usize, from: i32, to: i32): void {
  for (let i = from; i < to; i++) store<f32>(scores + ((<usize>i) << 2), -Infinity);
}

// The same for 64 tokens from `first` on whose bits are set.
function hideSet(scores: usize, bits: u64, first: i32, from: i32, to: i32): void {
  for (; bits; bits &= bits - 1) {
    const token = first + <i32>ctz(bits);
    if (token >= from && token < to) store<f32>(scores + ((<usize>(token - from)) << 2), -Infinity);
  }
}

// `softCap * tanh(x / softCap)`.
function cap(scores: usize, end: usize): void {
  const most = f32x4.splat(softCap);
  const inverse = f32x4.splat(1 / softCap);
  for (; scores < end; scores += 16) {
    v128.store(scores, f32x4.mul(most, tanh4(f32x4.mul(v128.load(scores), inverse))));
  }
}

// A row's sums so far, brought to the present maximum, plus what one tile adds.
export function accumulate(sums: usize, index: i32, added: usize, headDim: i32): void {
  const factor = v128.load32_splat(DECAYS + ((<usize>index) << 2));
  for (const end = sums + ((<usize>headDim) << 2); sums < end; sums += 64, added += 64) {
    v128.store(sums, madd(v128.load(sums), factor, v128.load(added)));
    v128.store(sums, madd(v128.load(sums, 16), factor, v128.load(added, 16)), 16);
    v128.store(sums, madd(v128.load(sums, 32), factor, v128.load(added, 32)), 32);
    v128.store(sums, madd(v128.load(sums, 48), factor, v128.load(added, 48)), 48);
  }
}
