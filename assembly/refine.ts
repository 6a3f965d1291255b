// The refined encoder: scales and codes chosen for what attention makes of them. What it does and why is said in
// src/reference/refine.ts.

import { HALF_MAX, loadHalf4, loadHalves, roundHalf, storeHalves } from "./half";
import { largest, smallest, sum } from "./lanes";
import {
  BEST_COLUMN_SCALE,
  CODE_SCALE,
  CODE_ZERO,
  COLUMN_INVERSE,
  COLUMN_SCALE,
  COLUMN_SUM,
  K_BYTES,
  QUADS,
  ROW_SPREAD,
  TILE,
} from "./memory";
import { normalizeTile } from "./normalize";
import { closeCodes } from "./pack";
import { loadKeyQuads, loadValueQuads } from "./quads";
import { rotateRow } from "./rotate";
import { fill, invert, magnitude, multiply, scale } from "./vectors";

const NARROWER: f32 = 0.4;
const RANGES = 4;
const MOST_NARROWED_KEY_BITS = 2;
const QUERY_WEIGHT: f32 = 10;
const TOKEN_DECAY: f32 = 0.9692332344763441; // e^(-1/32)
const TOKEN_SHARE: f32 = 0.15;
const MOST_COLUMN_EXPONENT = 14;

// The row that is being rounded: what is to be rounded, divided by the columns' scales.
const LINE: usize = ROW_SPREAD;
// Of V: by channel, the errors so far, the older the less.
const OWED: usize = COLUMN_SUM;
// Of K: the errors of channels that are done, `[rows, columns]`.
const ERRORS: usize = TILE;

// Encodes the K tile of one head from `group` exact tokens at `source`, one every `stride` bytes. `factor`: of the queries, or
// 0; see `factorQueries`.
export function refineKeys(
  source: usize,
  stride: usize,
  headDim: i32,
  group: i32,
  bits: i32,
  iterations: i32,
  factor: usize,
  codes: usize,
  scale: usize,
  zero: usize,
  token: usize,
): void {
  loadKeyQuads(source, stride, group, headDim);
  refineTile(true, headDim, group, bits, iterations, factor, codes, scale, zero, token);
}

// Encodes the V tile likewise.
export function refineValues(
  source: usize,
  stride: usize,
  headDim: i32,
  group: i32,
  bits: i32,
  iterations: i32,
  codes: usize,
  scale: usize,
  token: usize,
  zero: usize,
): void {
  loadValueQuads(source, stride, group, headDim);
  refineTile(false, group, headDim, bits, iterations, 0, codes, token, zero, scale);
}

// Encodes the tile in QUADS. One function for both sides, so that what it calls is there once.
function refineTile(
  isKeys: bool,
  rows: i32,
  columns: i32,
  bits: i32,
  iterations: i32,
  factor: usize,
  codes: usize,
  rowScale: usize,
  rowZero: usize,
  columnScale: usize,
): void {
  findColumnScales(rows, columns, iterations);
  fill(OWED, columns, 0);
  const ranges = isKeys && bits > MOST_NARROWED_KEY_BITS ? 1 : RANGES;
  for (let i = 0; i < rows; i++) {
    const row = isKeys ? rows - 1 - i : i;
    if (factor) correctChannel(row, rows, columns, factor);
    else if (isKeys) openRow(row, columns);
    else correctToken(row, columns, bits);
    roundRow(row, columns, bits, ranges);
    if (factor) noteChannel(row, columns);
    else if (!isKeys) noteToken(row, columns);
  }
  // Packing writes past the end: the scales that lie there come after.
  closeCodes(K_BYTES, rows * columns, bits, codes);
  storeHalves(CODE_SCALE, rowScale, rows);
  storeHalves(CODE_ZERO, rowZero, rows);
  storeHalves(COLUMN_SCALE, columnScale, columns);
}

// a * b + c, rounded twice: unlike `madd`, the same in all builds, which are carried as what differs.
@inline
function plusProduct(a: v128, b: v128, c: v128): v128 {
  return f32x4.add(f32x4.mul(a, b), c);
}

@inline
function exponentOf(x: f32): i32 {
  return <i32>(reinterpret<u32>(x) >> 23) - 127;
}

// 2 to the power of n, for normal numbers.
@inline
function powerOfTwo(n: i32): f32 {
  return reinterpret<f32>((n + 127) << 23);
}

// Scales of the columns, rounded to binary16, in COLUMN_SCALE; their inverses in COLUMN_INVERSE.
function findColumnScales(rows: i32, columns: i32, iterations: i32): void {
  normalizeTile(rows, columns, iterations);
  invert(BEST_COLUMN_SCALE, COLUMN_INVERSE, columns);
  let most = f32x4.splat(0);
  let at: usize = QUADS;
  for (let row = 0; row < rows; row += 4) {
    for (let i: usize = COLUMN_INVERSE, end = i + ((<usize>columns) << 2); i < end; i += 16, at += 64) {
      const larger = f32x4.pmax(
        f32x4.pmax(f32x4.abs(v128.load(at)), f32x4.abs(v128.load(at, 16))),
        f32x4.pmax(f32x4.abs(v128.load(at, 32)), f32x4.abs(v128.load(at, 48))),
      );
      most = f32x4.pmax(most, f32x4.mul(larger, v128.load(i)));
    }
  }
  const largestValue = largest(most);
  if (largestValue > 0) {
    const room = MOST_COLUMN_EXPONENT - exponentOf(magnitude(BEST_COLUMN_SCALE, columns));
    scale(BEST_COLUMN_SCALE, powerOfTwo(min(exponentOf(largestValue) >> 1, room)), columns);
  }
  storeHalves(BEST_COLUMN_SCALE, LINE, columns);
  loadHalves(LINE, COLUMN_SCALE, columns);
  invert(COLUMN_SCALE, COLUMN_INVERSE, columns);
}

// Where the first four values of a row lie in QUADS; the next ones, 64 bytes further each.
@inline
function rowOf(row: i32, columns: i32): usize {
  return QUADS + <usize>(row >> 2) * ((<usize>columns) << 4) + ((<usize>(row & 3)) << 4);
}

// A row as it is, divided by the columns' scales, to LINE.
function openRow(row: i32, columns: i32): void {
  let at = rowOf(row, columns);
  for (let i: usize = 0; i < (<usize>columns) << 2; i += 16, at += 64) {
    v128.store(LINE + i, f32x4.mul(v128.load(at), v128.load(COLUMN_INVERSE + i)));
  }
}

// The same, with what a token of V makes up for.
function correctToken(row: i32, columns: i32, bits: i32): void {
  const end = (<usize>columns) << 2;
  const first = rowOf(row, columns);
  let own = f32x4.splat(0);
  let owed = own;
  for (let i: usize = 0, at = first; i < end; i += 16, at += 64) {
    own = plusProduct(v128.load(at), v128.load(at), own);
    owed = plusProduct(v128.load(OWED + i), v128.load(OWED + i), owed);
  }
  const most = sum(owed);
  const limit: f32 = most > 0 ? sqrt(sum(own) / most) / <f32>(2 << bits) : 0;
  const share = f32x4.splat(-min(TOKEN_SHARE, limit));
  for (let i: usize = 0, at = first; i < end; i += 16, at += 64) {
    const value = plusProduct(v128.load(OWED + i), share, v128.load(at));
    v128.store(LINE + i, f32x4.mul(value, v128.load(COLUMN_INVERSE + i)));
  }
}

// Takes the errors of a rounded token in; LINE holds what decodes, see `roundRow`.
function noteToken(row: i32, columns: i32): void {
  const decay = f32x4.splat(TOKEN_DECAY);
  let at = rowOf(row, columns);
  for (let i: usize = 0; i < (<usize>columns) << 2; i += 16, at += 64) {
    const error = f32x4.sub(v128.load(LINE + i), v128.load(at));
    v128.store(OWED + i, plusProduct(v128.load(OWED + i), decay, error));
  }
}

// The same of a channel of K.
function noteChannel(channel: i32, columns: i32): void {
  let at = rowOf(channel, columns);
  const errors = ERRORS + ((<usize>(channel * columns)) << 2);
  for (let i: usize = 0; i < (<usize>columns) << 2; i += 16, at += 64) {
    v128.store(errors + i, f32x4.sub(v128.load(LINE + i), v128.load(at)));
  }
}

// The same as `openRow`, with what a channel of K makes up for: the errors of the later ones, times its row of the factor,
// which is divided by its own element there. Columns go by 16: their sums stay in registers.
function correctChannel(channel: i32, headDim: i32, columns: i32, factor: usize): void {
  const shares = factor + ((<usize>(channel * headDim)) << 2);
  const end = shares + ((<usize>headDim) << 2);
  const rowBytes = (<usize>columns) << 2;
  let at = rowOf(channel, columns);
  for (let i: usize = 0; i < rowBytes; i += 64, at += 256) {
    let a = f32x4.splat(0);
    let b = a;
    let c = a;
    let d = a;
    let errors = ERRORS + <usize>(channel + 1) * rowBytes + i;
    for (let share = shares + ((<usize>(channel + 1)) << 2); share < end; share += 4, errors += rowBytes) {
      const by = v128.load32_splat(share);
      a = plusProduct(v128.load(errors), by, a);
      b = plusProduct(v128.load(errors, 16), by, b);
      c = plusProduct(v128.load(errors, 32), by, c);
      d = plusProduct(v128.load(errors, 48), by, d);
    }
    v128.store(LINE + i, f32x4.sub(v128.load(at), a));
    v128.store(LINE + i, f32x4.sub(v128.load(at, 64), b), 16);
    v128.store(LINE + i, f32x4.sub(v128.load(at, 128), c), 32);
    v128.store(LINE + i, f32x4.sub(v128.load(at, 192), d), 48);
  }
  multiply(LINE, COLUMN_INVERSE, columns);
}

@inline
function clampCodes(x: v128, top: v128): v128 {
  return f32x4.pmin(top, f32x4.pmax(f32x4.splat(0), x));
}

// Rounds LINE: a scale and a zero point to CODE_SCALE and CODE_ZERO, codes to K_BYTES, and what decodes to LINE.
function roundRow(row: i32, columns: i32, bits: i32, ranges: i32): void {
  const end = LINE + ((<usize>columns) << 2);
  let low = f32x4.splat(Infinity);
  let high = f32x4.splat(-Infinity);
  for (let i = LINE; i < end; i += 16) {
    const x = v128.load(i);
    low = f32x4.pmin(low, x);
    high = f32x4.pmax(high, x);
  }
  const lowest = smallest(low);
  const range = largest(high) - lowest;
  // Sums are of what lies above the lowest value: an offset costs no digits.
  const origin = f32x4.splat(lowest);
  let sums = f32x4.splat(0);
  let squares = sums;
  for (let i = LINE; i < end; i += 16) {
    const x = f32x4.sub(v128.load(i), origin);
    sums = f32x4.add(sums, x);
    squares = plusProduct(x, x, squares);
    v128.store(i, x);
  }
  const share: f32 = 1 / <f32>columns;
  const mean = sum(sums) * share;
  const variance = sum(squares) * share - mean * mean;
  const topCode = <f32>((1 << bits) - 1);
  const top = f32x4.splat(topCode);
  let scale: f32 = 0;
  let zero: f32 = 0;
  let least: f32 = Infinity;
  for (let n = 0; n < ranges; n++) {
    const narrower = (<f32>n * NARROWER) / <f32>(1 << bits);
    const step = (range * (1 - narrower)) / topCode;
    if (!(step > 0)) break;
    const inverse = f32x4.splat(1 / step);
    const first = f32x4.splat((-range * narrower * 0.5) / step);
    let codes = f32x4.splat(0);
    let codeSquares = codes;
    let products = codes;
    for (let i = LINE; i < end; i += 16) {
      const x = v128.load(i);
      const code = clampCodes(f32x4.nearest(plusProduct(x, inverse, first)), top);
      codes = f32x4.add(codes, code);
      codeSquares = plusProduct(code, code, codeSquares);
      products = plusProduct(code, x, products);
    }
    const meanCode = sum(codes) * share;
    const common = sum(products) * share - meanCode * mean;
    if (!(common > 0)) continue;
    const fitted = variance / common;
    const error = fitted * fitted * (sum(codeSquares) * share - meanCode * meanCode) - variance;
    if (error < least) {
      least = error;
      scale = fitted;
      zero = mean - fitted * meanCode;
    }
  }
  scale = roundHalf(min(scale, HALF_MAX));
  // A scale too small for binary16 leaves all codes the same value.
  if (scale == 0) zero = mean;
  zero = roundHalf(max(-HALF_MAX, min(HALF_MAX, lowest + zero)));
  store<f32>(CODE_SCALE + ((<usize>row) << 2), scale);
  store<f32>(CODE_ZERO + ((<usize>row) << 2), zero);
  chooseCodes(row, columns, scale, zero, lowest - zero, top);
}

// The codes nearest to LINE, less `offset`; what decodes goes to LINE.
function chooseCodes(row: i32, columns: i32, scale: f32, zero: f32, offset: f32, top: v128): void {
  // Of a constant row all codes are 0.
  const inverse = f32x4.splat(scale > 0 ? 1 / scale : 0);
  const first = f32x4.mul(f32x4.splat(offset), inverse);
  const scales = f32x4.splat(scale);
  const zeros = f32x4.splat(zero);
  let target = K_BYTES + <usize>(row * columns);
  for (let i: usize = 0; i < (<usize>columns) << 2; i += 16, target += 4) {
    const x = plusProduct(v128.load(LINE + i), inverse, first);
    const code = clampCodes(f32x4.nearest(x), top);
    v128.store(LINE + i, f32x4.mul(plusProduct(code, scales, zeros), v128.load(COLUMN_SCALE + i)));
    const pairs = i16x8.narrow_i32x4_u(i32x4.trunc_sat_f32x4_s(code), i32x4.splat(0));
    v128.store32_lane(target, i8x16.narrow_i16x8_u(pairs, pairs), 0);
  }
}

// Adds the queries of the heads that read one KV head to its moment, `[headDim, headDim]` at `target`, upper triangle: each
// rotated, and divided by its length. `perHead` of them lie one after another at `source`, those of the next token `stride`
// bytes further. They go by fours, so that the moment is loaded and stored a quarter as often.
export function addQueries(
  source: usize,
  half: bool,
  tokens: i32,
  perHead: i32,
  stride: usize,
  headDim: i32,
  target: usize,
): void {
  const bytes = (<usize>headDim) << 2;
  const rowBytes = half ? bytes >> 1 : bytes;
  let count = 0;
  for (let token = 0; token < tokens; token++, source += stride) {
    for (let row: usize = 0; row < <usize>perHead; row++) {
      const query = TILE + <usize>count * bytes;
      if (half) {
        loadHalves(source + row * rowBytes, query, headDim);
        rotateRow(query, query, headDim);
      } else {
        rotateRow(source + row * rowBytes, query, headDim);
      }
      toUnitLength(query, headDim);
      if (++count == 4) {
        addFour(headDim, target);
        count = 0;
      }
    }
  }
  if (count == 0) return;
  fill(TILE + <usize>count * bytes, (4 - count) * headDim, 0);
  addFour(headDim, target);
}

// Leaves zeros as they are. Divided by the largest value first: squares must not overflow.
function toUnitLength(x: usize, count: i32): void {
  const largestValue = magnitude(x, count);
  if (largestValue == 0) return;
  const end = x + ((<usize>count) << 2);
  // Divided, as the inverse of the least numbers is infinite.
  const divisor = f32x4.splat(largestValue);
  for (let i = x; i < end; i += 16) v128.store(i, f32x4.div(v128.load(i), divisor));
  let squares = f32x4.splat(0);
  for (let i = x; i < end; i += 16) squares = plusProduct(v128.load(i), v128.load(i), squares);
  scale(x, 1 / sqrt(sum(squares)), count);
}

// Adds the products of four rows in TILE.
function addFour(headDim: i32, target: usize): void {
  const bytes = (<usize>headDim) << 2;
  for (let i: usize = 0; i < bytes; i += 4, target += bytes) {
    const a = v128.load32_splat(TILE + i);
    const b = v128.load32_splat(TILE + bytes + i);
    const c = v128.load32_splat(TILE + 2 * bytes + i);
    const d = v128.load32_splat(TILE + 3 * bytes + i);
    for (let j = i & ~15; j < bytes; j += 16) {
      const at = TILE + j;
      const ab = plusProduct(v128.load(at), a, f32x4.mul(v128.load(at + bytes), b));
      const cd = plusProduct(v128.load(at + 2 * bytes), c, f32x4.mul(v128.load(at + 3 * bytes), d));
      v128.store(target + j, f32x4.add(v128.load(target + j), f32x4.add(ab, cd)));
    }
  }
}

// Of a moment, what `refineKeys` needs: U with `U^T U = H`, upper triangular, `[headDim, headDim]` at `target`, each row divided
// by its diagonal. False where no query was added, or where no queries add up to it.
export function factorQueries(moment: usize, headDim: i32, target: usize): bool {
  const bytes = (<usize>headDim) << 2;
  let trace: f32 = 0;
  for (let i: usize = 0; i < bytes; i += 4) trace += load<f32>(moment + i * <usize>headDim + i);
  if (!(trace > 0)) return false;
  memory.copy(target, moment, bytes * <usize>headDim);
  scale(target, (QUERY_WEIGHT * <f32>headDim) / trace, headDim * headDim);
  for (let i: usize = 0; i < bytes; i += 4) {
    const own = target + i * <usize>headDim + i;
    store<f32>(own, load<f32>(own) + 1);
  }
  for (let i: usize = 0; i < bytes; i += 4) {
    const row = target + i * <usize>headDim;
    // At least 1, short of rounding; but a saved cache may hold what no queries add up to.
    if (!(load<f32>(row + i) >= 0.5)) return false;
    const inverse: f32 = 1 / load<f32>(row + i);
    for (let later = i + 4; later < bytes; later += 4) {
      // The square root of the diagonal, twice.
      const by = f32x4.splat(-load<f32>(row + later) * inverse);
      const other = target + later * <usize>headDim;
      for (let j = later & ~15; j < bytes; j += 16) {
        v128.store(other + j, plusProduct(v128.load(row + j), by, v128.load(other + j)));
      }
    }
    for (let j = i & ~15; j < bytes; j += 16) {
      v128.store(row + j, f32x4.mul(v128.load(row + j), f32x4.splat(inverse)));
    }
  }
  return true;
}
