// Round to nearest and codes of 2 to 8 bits. Eight codes, one byte each in a 64-bit lane, close up to 8 * bits bits in
// three steps, each joining neighbours: the same for every width.

import { held, largest4, nearest4, smallest4 } from "./lanes";
import { CODE_SCALE, CODE_ZERO, COLUMN_INVERSE, LOWS, QUADS, ROW_INVERSE, CODE_STEPS } from "./memory";

// Codes of one byte each from `count` packed ones. Eight, one byte each in a 64-bit lane, come apart from 8 * bits bits in three
// steps. Reads up to 8 bytes past the end.
function open(source: usize, target: usize, count: i32, bits: i32): void {
  const four = i64x2.splat(((<i64>1) << (4 * bits)) - 1);
  const two = i32x4.splat((1 << (2 * bits)) - 1);
  const one = i16x8.splat(<i16>(<i32>(1 << bits) - 1));
  for (const end = target + <usize>count; target < end; target += 16, source += 2 * bits) {
    let x = v128.load64_lane(source + bits, v128.load64_zero(source), 1);
    x = v128.or(v128.and(x, four), i64x2.shl(v128.and(i64x2.shr_u(x, 4 * bits), four), 32));
    x = v128.or(v128.and(x, two), i32x4.shl(v128.and(i32x4.shr_u(x, 2 * bits), two), 16));
    x = v128.or(v128.and(x, one), i16x8.shl(v128.and(i16x8.shr_u(x, bits), one), 8));
    v128.store(target, x);
  }
}

// Divided, not multiplied by an inverse: where a value lies half-way between two codes, the last bit decides.
@inline
function codes4(x: v128, inverse: v128, low: v128, step: v128): v128 {
  return nearest4(f32x4.div(f32x4.sub(f32x4.mul(x, inverse), low), step));
}

// Rounds each row of the tile in QUADS, times COLUMN_INVERSE and ROW_INVERSE, to `bits` per value at `target`; CODE_SCALE
// and CODE_ZERO get the rows' pairs. Writes up to 8 bytes past the end.
//
// The row's inverse scale cancels from the codes; it counts only where the code scale is at its floor.
export function packRows(rows: i32, columns: i32, bits: i32, target: usize): void {
  const quadBytes = (<usize>columns) << 4;
  const packedBytes = (<usize>columns * bits) >> 3;
  let quad = QUADS;
  for (let at: usize = 0; at < (<usize>rows) << 2; at += 16, quad += quadBytes) {
    findSteps(quad, at, columns, <f32>((1 << bits) - 1));
    for (let row: usize = 0; row < 4; row++, target += packedBytes) {
      const at = row << 2;
      packRow(quad + (at << 2), columns, load<f32>(LOWS + at), load<f32>(CODE_STEPS + at), bits, target);
    }
  }
}

// The rounding pairs of the four rows of `quad`, number `at / 4` and on, and in LOWS and CODE_STEPS the same
// without the rows' scales.
function findSteps(quad: usize, at: usize, columns: i32, levels: f32): void {
  let a = f32x4.splat(Infinity);
  let b = a;
  let c = a;
  let d = a;
  let aa = f32x4.splat(-Infinity);
  let bb = aa;
  let cc = aa;
  let dd = aa;
  for (
    let i: usize = COLUMN_INVERSE, end: usize = i + ((<usize>columns) << 2);
    i < end;
    i += 16, quad += 64
  ) {
    const inverse = v128.load(i);
    const w = f32x4.mul(v128.load(quad), inverse);
    a = f32x4.pmin(a, w);
    aa = f32x4.pmax(aa, w);
    const x = f32x4.mul(v128.load(quad, 16), inverse);
    b = f32x4.pmin(b, x);
    bb = f32x4.pmax(bb, x);
    const y = f32x4.mul(v128.load(quad, 32), inverse);
    c = f32x4.pmin(c, y);
    cc = f32x4.pmax(cc, y);
    const z = f32x4.mul(v128.load(quad, 48), inverse);
    d = f32x4.pmin(d, z);
    dd = f32x4.pmax(dd, z);
  }
  const low = smallest4(a, b, c, d);
  const range = f32x4.sub(largest4(aa, bb, cc, dd), low);
  const inverse = v128.load(ROW_INVERSE + at);
  const scale = f32x4.pmax(f32x4.splat(1e-10), f32x4.div(f32x4.mul(range, inverse), f32x4.splat(levels)));
  v128.store(CODE_SCALE + at, scale);
  v128.store(CODE_ZERO + at, f32x4.mul(low, inverse));
  v128.store(LOWS, low);
  v128.store(CODE_STEPS, f32x4.div(scale, inverse));
}

// Packs a row of a quad: `bits` per value at `target`. Writes up to 8 bytes past the end.
function packRow(row: usize, columns: i32, low: f32, step: f32, bits: i32, target: usize): void {
  const origin = f32x4.splat(low);
  const divisor = f32x4.splat(step);
  const pairs = held(0, pairUp(bits));
  const fours = held(1, pairUp(2 * bits));
  let inverse: usize = COLUMN_INVERSE;
  for (const end = inverse + ((<usize>columns) << 2); inverse < end; inverse += 64, row += 256) {
    const ab = i16x8.narrow_i32x4_u(
      codes4(v128.load(row), v128.load(inverse), origin, divisor),
      codes4(v128.load(row, 64), v128.load(inverse, 16), origin, divisor),
    );
    const cd = i16x8.narrow_i32x4_u(
      codes4(v128.load(row, 128), v128.load(inverse, 32), origin, divisor),
      codes4(v128.load(row, 192), v128.load(inverse, 48), origin, divisor),
    );
    closeSixteen(ab, cd, pairs, fours, bits, target);
    target += 2 * bits;
  }
}

// Packs `count` codes of one byte each: `bits` per value at `target`. Writes up to 8 bytes past the end.
export function closeCodes(source: usize, count: i32, bits: i32, target: usize): void {
  const pairs = held(0, pairUp(bits));
  const fours = held(1, pairUp(2 * bits));
  for (const end = source + <usize>count; source < end; source += 16, target += 2 * bits) {
    const codes = v128.load(source);
    closeSixteen(
      i16x8.extend_low_i8x16_u(codes),
      i16x8.extend_high_i8x16_u(codes),
      pairs,
      fours,
      bits,
      target,
    );
  }
}

// Neighbours of 16 bits, the second `places` further up, join by products with 1 and that power of two.
@inline
function pairUp(places: i32): v128 {
  return i32x4.splat(1 | (1 << (16 + places)));
}

// Packs sixteen codes, of 16 bits each: first neighbours join, then pairs of them, then fours.
@inline
function closeSixteen(ab: v128, cd: v128, pairs: v128, fours: v128, bits: i32, target: usize): void {
  if (bits == 8) {
    v128.store(target, i8x16.narrow_i16x8_u(ab, cd));
  } else {
    const x = i32x4.dot_i16x8_s(
      i16x8.narrow_i32x4_u(i32x4.dot_i16x8_s(ab, pairs), i32x4.dot_i16x8_s(cd, pairs)),
      fours,
    );
    const eights = v128.or(
      v128.and(x, i64x2.splat(0x00000000ffffffff)),
      i64x2.shl(i64x2.shr_u(x, 32), 4 * bits),
    );
    v128.store64_lane(target, eights, 0);
    v128.store64_lane(target + bits, eights, 1);
  }
}

// Codes of `rows` rows at `source`, one byte each, to `target`. Reads up to 8 bytes past the end.
export function openRows(source: usize, rows: i32, columns: i32, bits: i32, target: usize): void {
  open(source, target, rows * columns, bits);
}

// `code * scale + zero` of each row, with one scale and zero a row, from codes of one byte each.
export function scaleRows(
  codes: usize,
  rows: i32,
  columns: i32,
  scale: usize,
  zero: usize,
  target: usize,
): void {
  for (let i = 0; i < rows; i++) {
    const rowScale = v128.load32_splat(scale + ((<usize>i) << 2));
    const rowZero = v128.load32_splat(zero + ((<usize>i) << 2));
    for (const end = codes + <usize>columns; codes < end; codes += 8, target += 32) {
      const pairs = v128.load8x8_u(codes);
      const a = f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_u(pairs));
      const b = f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_u(pairs));
      v128.store(target, f32x4.add(f32x4.mul(a, rowScale), rowZero));
      v128.store(target, f32x4.add(f32x4.mul(b, rowScale), rowZero), 16);
    }
  }
}
