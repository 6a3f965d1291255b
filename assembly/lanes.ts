// Small operations on f32 lanes that several kernels share.

import { CONSTANTS } from "./memory";

// A constant for a loop, one of up to 8. Made before the loop, V8 makes it again in every round; loaded, it stays.
@inline
export function held(number: usize, x: v128): v128 {
  v128.store(CONSTANTS + (number << 4), x);
  return v128.load(CONSTANTS + (number << 4));
}

// a * b + c: fused where relaxed SIMD offers it, else rounded twice.
@inline
export function madd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) {
    return f32x4.relaxed_madd(a, b, c);
  } else {
    return f32x4.add(f32x4.mul(a, b), c);
  }
}

// The nearest integers, ties to even, of numbers below 2^22: adding 1.5 * 2^23, `rounder`, leaves them in the low bits.
@inline
export function nearest4(x: v128, rounder: v128 = f32x4.splat(12582912)): v128 {
  return i32x4.sub(f32x4.add(x, rounder), rounder);
}

// Lanes 0 and 1 of a and b: a0 b0 a1 b1.
@inline
export function zipLow(a: v128, b: v128): v128 {
  return v128.shuffle<i32>(a, b, 0, 4, 1, 5);
}

// Lanes 2 and 3 of a and b: a2 b2 a3 b3.
@inline
export function zipHigh(a: v128, b: v128): v128 {
  return v128.shuffle<i32>(a, b, 2, 6, 3, 7);
}

// Lanes 0 and 2 of a and b: a0 a2 b0 b2.
@inline
export function evens(a: v128, b: v128): v128 {
  return v128.shuffle<i32>(a, b, 0, 2, 4, 6);
}

// Lanes 1 and 3 of a and b: a1 a3 b1 b3.
@inline
export function odds(a: v128, b: v128): v128 {
  return v128.shuffle<i32>(a, b, 1, 3, 5, 7);
}

// The lower halves of a and b: a0 a1 b0 b1.
@inline
export function joinLow(a: v128, b: v128): v128 {
  return v128.shuffle<i64>(a, b, 0, 2);
}

// The upper halves of a and b: a2 a3 b2 b3.
@inline
export function joinHigh(a: v128, b: v128): v128 {
  return v128.shuffle<i64>(a, b, 1, 3);
}

// Sums of the lanes of a, b, c and d, one in each lane.
@inline
export function sums4(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(zipLow(a, b), zipHigh(a, b));
  const cd = f32x4.add(zipLow(c, d), zipHigh(c, d));
  return f32x4.add(joinLow(ab, cd), joinHigh(ab, cd));
}

// The largest lanes of a, b, c and d, one in each lane.
@inline
export function largest4(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.pmax(zipLow(a, b), zipHigh(a, b));
  const cd = f32x4.pmax(zipLow(c, d), zipHigh(c, d));
  return f32x4.pmax(joinLow(ab, cd), joinHigh(ab, cd));
}

// The smallest lanes of a, b, c and d, one in each lane.
@inline
export function smallest4(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.pmin(zipLow(a, b), zipHigh(a, b));
  const cd = f32x4.pmin(zipLow(c, d), zipHigh(c, d));
  return f32x4.pmin(joinLow(ab, cd), joinHigh(ab, cd));
}

// The sum of the lanes.
@inline
export function sum(a: v128): f32 {
  const pairs = f32x4.add(a, joinHigh(a, a));
  return f32x4.extract_lane(pairs, 0) + f32x4.extract_lane(pairs, 1);
}

// The largest lane.
@inline
export function largest(a: v128): f32 {
  const pairs = f32x4.pmax(a, joinHigh(a, a));
  return max(f32x4.extract_lane(pairs, 0), f32x4.extract_lane(pairs, 1));
}

// The smallest lane.
@inline
export function smallest(a: v128): f32 {
  const pairs = f32x4.pmin(a, joinHigh(a, a));
  return min(f32x4.extract_lane(pairs, 0), f32x4.extract_lane(pairs, 1));
}

// Stores the transpose of four rows of four: lane i of a, b, c, d goes to `target + i * stride`.
@inline
export function storeTransposed(a: v128, b: v128, c: v128, d: v128, target: usize, stride: usize): void {
  const abLow = zipLow(a, b);
  const abHigh = zipHigh(a, b);
  const cdLow = zipLow(c, d);
  const cdHigh = zipHigh(c, d);
  v128.store(target, joinLow(abLow, cdLow));
  v128.store(target + stride, joinHigh(abLow, cdLow));
  v128.store(target + 2 * stride, joinLow(abHigh, cdHigh));
  v128.store(target + 3 * stride, joinHigh(abHigh, cdHigh));
}
