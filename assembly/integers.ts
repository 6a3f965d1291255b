// Coefficients as 16-bit integers, for integer dots with codes, and from those back to values. A record's scales are
// folded: those of rows go into the coefficients, those of columns onto the sums.
//
// Queries go by fours, the `first`th and those after it; where there are fewer, what comes out for the others is nobody's.
// Counts are multiples of 16.

import { joinHigh, joinLow, largest, madd, nearest4, sum, zipHigh, zipLow } from "./lanes";
import {
  ACCUMULATED,
  COEFFICIENTS,
  DECAYS,
  INVERSES,
  OFFSETS,
  ONES,
  ROUNDER,
  STEPS,
  TOTALS,
  VECTOR,
} from "./memory";

// The largest coefficient with which sums over `rows` rows of what takes up to 8 bits in place fit an i32.
@inline
export function largestCoefficient(rows: i32): f32 {
  return <f32>min(32767, 0x7fffffff / (255 * rows));
}

// Makes `values * factors` of up to four queries, whose values lie `stride` bytes apart, integers up to `limit`, in
// COEFFICIENTS as pairs of i16: `[queries / 4][count / 2][4][2]`. Notes for each query the step between two integers and what
// its sums lack: `sum of values * zeros`, and what rounding took from the coefficients times the middle code of `bits` bits,
// so that only the codes' spread around it sees the rounding. Overwrites ACCUMULATED.
export function toIntegers(
  values: usize,
  stride: usize,
  first: i32,
  queries: i32,
  factors: usize,
  zeros: usize,
  count: i32,
  limit: f32,
  bits: i32,
): void {
  const at = (<usize>first) << 2;
  for (let i: usize = 0; i < <usize>queries; i++) {
    measure(values + i * stride, factors, zeros, count, limit, ACCUMULATED + i * VECTOR, at + (i << 2));
  }
  const sums = round(count, INVERSES + at, COEFFICIENTS + ((at * <usize>count) >> 1));
  const lost = f32x4.sub(
    v128.load(TOTALS + at),
    f32x4.mul(v128.load(STEPS + at), f32x4.convert_i32x4_s(sums)),
  );
  const middle = f32x4.splat(<f32>((1 << bits) - 1) * 0.5);
  v128.store(OFFSETS + at, f32x4.add(v128.load(OFFSETS + at), f32x4.mul(lost, middle)));
}

// Products of one query, their sum, that of values and zeros, and the step that makes the largest of them `limit`.
function measure(
  values: usize,
  factors: usize,
  zeros: usize,
  count: i32,
  limit: f32,
  products: usize,
  at: usize,
): void {
  let most = f32x4.splat(0);
  let least = most;
  let zero = most;
  let nextZero = most;
  let total = most;
  let nextTotal = most;
  for (const end = values + ((<usize>count) << 2); values < end; values += 64) {
    const a = v128.load(values);
    const b = v128.load(values, 16);
    const c = v128.load(values, 32);
    const d = v128.load(values, 48);
    zero = madd(a, v128.load(zeros), zero);
    nextZero = madd(b, v128.load(zeros, 16), nextZero);
    zero = madd(c, v128.load(zeros, 32), zero);
    nextZero = madd(d, v128.load(zeros, 48), nextZero);
    const ab = f32x4.mul(a, v128.load(factors));
    const bb = f32x4.mul(b, v128.load(factors, 16));
    const cb = f32x4.mul(c, v128.load(factors, 32));
    const db = f32x4.mul(d, v128.load(factors, 48));
    v128.store(products, ab);
    v128.store(products, bb, 16);
    v128.store(products, cb, 32);
    v128.store(products, db, 48);
    total = f32x4.add(total, f32x4.add(ab, bb));
    nextTotal = f32x4.add(nextTotal, f32x4.add(cb, db));
    most = f32x4.pmax(f32x4.pmax(most, ab), f32x4.pmax(bb, f32x4.pmax(cb, db)));
    least = f32x4.pmin(f32x4.pmin(least, ab), f32x4.pmin(bb, f32x4.pmin(cb, db)));
    factors += 64;
    zeros += 64;
    products += 64;
  }
  const magnitude = largest(f32x4.pmax(most, f32x4.neg(least)));
  store<f32>(STEPS + at, magnitude / limit);
  // Coefficients too small to divide by are too small to count.
  store<f32>(INVERSES + at, magnitude > 1e-30 ? limit / magnitude : 0);
  store<f32>(TOTALS + at, sum(f32x4.add(total, nextTotal)));
  store<f32>(OFFSETS + at, sum(f32x4.add(zero, nextZero)));
}

// Eight products of one query as pairs of integers.
@inline
function pairs(products: usize, factor: v128, rounder: v128): v128 {
  return i16x8.narrow_i32x4_s(
    nearest4(f32x4.mul(v128.load(products), factor), rounder),
    nearest4(f32x4.mul(v128.load(products, 16), factor), rounder),
  );
}

// Rounds four queries' products in ACCUMULATED, times their factors, to pairs at `target`; returns the sums of these.
function round(count: i32, factors: usize, target: usize): v128 {
  const first = v128.load32_splat(factors);
  const second = v128.load32_splat(factors, 4);
  const third = v128.load32_splat(factors, 8);
  const fourth = v128.load32_splat(factors, 12);
  const rounder = v128.load(ROUNDER);
  const ones = v128.load(ONES);
  let total = i32x4.splat(0);
  let at: usize = ACCUMULATED;
  for (const end = at + ((<usize>count) << 2); at < end; at += 32, target += 64) {
    const a = pairs(at, first, rounder);
    const b = pairs(at + VECTOR, second, rounder);
    const c = pairs(at + 2 * VECTOR, third, rounder);
    const d = pairs(at + 3 * VECTOR, fourth, rounder);
    const abLow = zipLow(a, b);
    const abHigh = zipHigh(a, b);
    const cdLow = zipLow(c, d);
    const cdHigh = zipHigh(c, d);
    const w = joinLow(abLow, cdLow);
    const x = joinHigh(abLow, cdLow);
    const y = joinLow(abHigh, cdHigh);
    const z = joinHigh(abHigh, cdHigh);
    v128.store(target, w);
    v128.store(target, x, 16);
    v128.store(target, y, 32);
    v128.store(target, z, 48);
    const wx = i32x4.add(i32x4.dot_i16x8_s(w, ones), i32x4.dot_i16x8_s(x, ones));
    const yz = i32x4.add(i32x4.dot_i16x8_s(y, ones), i32x4.dot_i16x8_s(z, ones));
    total = i32x4.add(total, i32x4.add(wx, yz));
  }
  return total;
}

// Sums of codes of the `index`th query to sums of values: `(dots * step + offset) * factors`.
export function fold(dots: usize, index: i32, factors: usize, count: i32): void {
  const step = v128.load32_splat(STEPS + ((<usize>index) << 2));
  const offset = v128.load32_splat(OFFSETS + ((<usize>index) << 2));
  for (const end = dots + ((<usize>count) << 2); dots < end; dots += 64, factors += 64) {
    v128.store(dots, f32x4.mul(madd(v128.load(dots), step, offset), v128.load(factors)));
    v128.store(dots, f32x4.mul(madd(v128.load(dots, 16), step, offset), v128.load(factors, 16)), 16);
    v128.store(dots, f32x4.mul(madd(v128.load(dots, 32), step, offset), v128.load(factors, 32)), 32);
    v128.store(dots, f32x4.mul(madd(v128.load(dots, 48), step, offset), v128.load(factors, 48)), 48);
  }
}

// The same, added to the query's sums so far, which are brought to the present maximum.
export function foldInto(sums: usize, dots: usize, index: i32, factors: usize, count: i32): void {
  const step = v128.load32_splat(STEPS + ((<usize>index) << 2));
  const offset = v128.load32_splat(OFFSETS + ((<usize>index) << 2));
  const decay = v128.load32_splat(DECAYS + ((<usize>index) << 2));
  for (const end = dots + ((<usize>count) << 2); dots < end; dots += 64, factors += 64, sums += 64) {
    const a = f32x4.mul(madd(v128.load(dots), step, offset), v128.load(factors));
    const b = f32x4.mul(madd(v128.load(dots, 16), step, offset), v128.load(factors, 16));
    const c = f32x4.mul(madd(v128.load(dots, 32), step, offset), v128.load(factors, 32));
    const d = f32x4.mul(madd(v128.load(dots, 48), step, offset), v128.load(factors, 48));
    v128.store(sums, madd(v128.load(sums), decay, a));
    v128.store(sums, madd(v128.load(sums, 16), decay, b), 16);
    v128.store(sums, madd(v128.load(sums, 32), decay, c), 32);
    v128.store(sums, madd(v128.load(sums, 48), decay, d), 48);
  }
}
