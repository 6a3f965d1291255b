// The fast Walsh-Hadamard transform (natural order, orthonormal). Strides 1, 2, 4, … in this order, as the textbook
// loop has them, so that every backend rounds the same sums and rotates to the same bits.

import { evens, joinHigh, joinLow, odds, zipHigh, zipLow } from "./lanes";

// Orthonormal scaling belongs to the last pass only.
@inline
function scaleIf(scaled: bool, x: v128, scale: v128): v128 {
  return scaled ? f32x4.mul(x, scale) : x;
}

// Two strides over four vectors: the sums go to `row`, `step` bytes apart.
@inline
function fourPoint(
  a: v128,
  b: v128,
  c: v128,
  d: v128,
  row: usize,
  step: usize,
  scaled: bool,
  scale: v128,
): void {
  const ab = f32x4.add(a, b);
  const aMinusB = f32x4.sub(a, b);
  const cd = f32x4.add(c, d);
  const cMinusD = f32x4.sub(c, d);
  v128.store(row, scaleIf(scaled, f32x4.add(ab, cd), scale));
  v128.store(row + step, scaleIf(scaled, f32x4.add(aMinusB, cMinusD), scale));
  v128.store(row + 2 * step, scaleIf(scaled, f32x4.sub(ab, cd), scale));
  v128.store(row + 3 * step, scaleIf(scaled, f32x4.sub(aMinusB, cMinusD), scale));
}

// Strides 1, 2 and 4 over 8 elements, in three steps. In each the even lanes of two vectors meet the odd ones; after the
// third, lanes lie in their order again.
@inline
function sums(a: v128, b: v128): v128 {
  return f32x4.add(evens(a, b), odds(a, b));
}
@inline
function differences(a: v128, b: v128): v128 {
  return f32x4.sub(evens(a, b), odds(a, b));
}

@inline
function eightPoint(source: usize, target: usize): void {
  const a0 = v128.load(source, 0);
  const a1 = v128.load(source, 16);
  const a2 = sums(a0, a1);
  const a3 = differences(a0, a1);
  const a4 = sums(a2, a3);
  const a5 = differences(a2, a3);
  v128.store(target, sums(a4, a5));
  v128.store(target, differences(a4, a5), 16);
}

// Strides 1 to 16 over 32 elements.
@inline
function firstStrides(source: usize, target: usize): void {
  const a0 = v128.load(source, 0);
  const a1 = v128.load(source, 16);
  const a2 = sums(a0, a1);
  const a3 = differences(a0, a1);
  const a4 = sums(a2, a3);
  const a5 = differences(a2, a3);
  const b0 = v128.load(source, 32);
  const b1 = v128.load(source, 48);
  const b2 = sums(b0, b1);
  const b3 = differences(b0, b1);
  const b4 = sums(b2, b3);
  const b5 = differences(b2, b3);
  const c0 = v128.load(source, 64);
  const c1 = v128.load(source, 80);
  const c2 = sums(c0, c1);
  const c3 = differences(c0, c1);
  const c4 = sums(c2, c3);
  const c5 = differences(c2, c3);
  const d0 = v128.load(source, 96);
  const d1 = v128.load(source, 112);
  const d2 = sums(d0, d1);
  const d3 = differences(d0, d1);
  const d4 = sums(d2, d3);
  const d5 = differences(d2, d3);
  const none = f32x4.splat(0);
  fourPoint(sums(a4, a5), sums(b4, b5), sums(c4, c5), sums(d4, d5), target, 32, false, none);
  fourPoint(
    differences(a4, a5),
    differences(b4, b5),
    differences(c4, c5),
    differences(d4, d5),
    target + 16,
    32,
    false,
    none,
  );
}

// Strides `step` and `2 * step` (in bytes) over four vectors of every run of `4 * step` bytes.
@inline
function twoStrides(row: usize, end: usize, step: usize, scaled: bool, scale: v128): void {
  for (; row < end; row += 3 * step) {
    for (const stop = row + step; row < stop; row += 16) {
      const a = v128.load(row);
      const b = v128.load(row + step);
      const c = v128.load(row + 2 * step);
      const d = v128.load(row + 3 * step);
      fourPoint(a, b, c, d, row, step, scaled, scale);
    }
  }
}

@inline
function oneStride(row: usize, end: usize, step: usize, scaled: bool, scale: v128): void {
  for (; row < end; row += step) {
    for (const stop = row + step; row < stop; row += 16) {
      const a = v128.load(row);
      const b = v128.load(row + step);
      v128.store(row, scaleIf(scaled, f32x4.add(a, b), scale));
      v128.store(row + step, scaleIf(scaled, f32x4.sub(a, b), scale));
    }
  }
}

// Strides from `step` bytes on over a block of `bytes` bytes, two at a time, and the scale.
function lastStrides(block: usize, bytes: usize, step: usize, n: i32): void {
  const end = block + bytes;
  const scale = f32x4.splat(<f32>(1.0 / Math.sqrt(<f64>n)));
  for (; step * 4 < bytes; step *= 4) twoStrides(block, end, step, false, scale);
  if (step * 4 == bytes) twoStrides(block, end, step, true, scale);
  else oneStride(block, end, step, true, scale);
}

// Rotates a row of headDim f32 from `source` to `target`, which may be the same, in blocks of the largest power of two that
// divides headDim.
export function rotateRow(source: usize, target: usize, headDim: i32): void {
  const n = headDim & -headDim;
  const bytes = (<usize>n) << 2;
  for (const stop = source + ((<usize>headDim) << 2); source < stop; target += bytes) {
    const end = source + bytes;
    let at = target;
    if (n < 64) for (; source < end; source += 32, at += 32) eightPoint(source, at);
    else for (; source < end; source += 128, at += 128) firstStrides(source, at);
    lastStrides(target, bytes, n < 64 ? 32 : 128, n);
  }
}

// Rotates `rows` rows in place.
export function rotateRows(x: usize, rows: i32, headDim: i32): void {
  const bytes = (<usize>headDim) << 2;
  for (const end = x + <usize>rows * bytes; x < end; x += bytes) rotateRow(x, x, headDim);
}

// Rotates four rows, one every `stride` bytes, at once: to vectors of one element of each, `headDim` of them.
export function rotateFour(source: usize, stride: usize, target: usize, headDim: i32): void {
  const n = headDim & -headDim;
  const bytes = (<usize>n) << 4;
  for (const stop = target + ((<usize>headDim) << 4); target < stop; target += bytes) {
    for (let at = target; at < target + bytes; at += 128, source += 32) {
      firstOfFour(source, stride, at);
      firstOfFour(source + 16, stride, at + 64);
      oneStride(at, at + 128, 64, false, f32x4.splat(0));
    }
    lastStrides(target, bytes, 128, n);
  }
}

// Strides 1 and 2 over four elements of each row.
@inline
function firstOfFour(source: usize, stride: usize, target: usize): void {
  const a = v128.load(source);
  const b = v128.load(source + stride);
  const c = v128.load(source + 2 * stride);
  const d = v128.load(source + 3 * stride);
  const abLow = zipLow(a, b);
  const abHigh = zipHigh(a, b);
  const cdLow = zipLow(c, d);
  const cdHigh = zipHigh(c, d);
  fourPoint(
    joinLow(abLow, cdLow),
    joinHigh(abLow, cdLow),
    joinLow(abHigh, cdHigh),
    joinHigh(abHigh, cdHigh),
    target,
    16,
    false,
    a,
  );
}
