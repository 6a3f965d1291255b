// Functions of four f32 at a time.

import { madd } from "./lanes";
import { ONES, POWERS, ROUNDER } from "./memory";

const LOG2E: f32 = 1.44269504088896341;
// From here on powers are normal numbers.
const LEAST: f32 = -87;
// The polynomial for 2^r, |r| <= 1/2, of least relative error among those that are 1 at 0.
const C1: f32 = 6.931469776e-1;
const C2: f32 = 2.402224208e-1;
const C3: f32 = 5.550733744e-2;
const C4: f32 = 9.671512772e-3;
const C5: f32 = 1.326472735e-3;
// 1.5 * 2^23: adding it rounds to an integer.
const ROUND: f32 = 12582912;

// e^x for x <= 0, to 2e-7 plus 6e-8 times |x|, relative, and exactly 1 for 0: with y = x / ln 2, n the nearest integer and
// r the rest, a polynomial for 2^r and 2^n by its exponent bits. Below -87 it is zero, and so it is for -Infinity.
@inline
function power(
  x: v128,
  log2e: v128,
  least: v128,
  round: v128,
  c1: v128,
  c2: v128,
  c3: v128,
  c4: v128,
  c5: v128,
  one: v128,
): v128 {
  const y = f32x4.mul(x, log2e);
  const rounded = f32x4.add(y, round);
  const r = f32x4.sub(y, f32x4.sub(rounded, round));
  let p = madd(c5, r, c4);
  p = madd(p, r, c3);
  p = madd(p, r, c2);
  p = madd(p, r, c1);
  p = madd(p, r, one);
  // The low bits of `rounded` are n already.
  return v128.and(i32x4.add(p, i32x4.shl(rounded, 23)), f32x4.ge(x, least));
}

@inline
export function exp4(x: v128): v128 {
  return power(
    x,
    f32x4.splat(LOG2E),
    f32x4.splat(LEAST),
    f32x4.splat(ROUND),
    f32x4.splat(C1),
    f32x4.splat(C2),
    f32x4.splat(C3),
    f32x4.splat(C4),
    f32x4.splat(C5),
    f32x4.splat(1),
  );
}

// Puts in place what `expAll`, and rounding to integers, load.
export function setConstants(): void {
  v128.store(ROUNDER, f32x4.splat(ROUND));
  v128.store(ONES, i16x8.splat(1));
  v128.store(POWERS, f32x4.splat(LOG2E));
  v128.store(POWERS, f32x4.splat(LEAST), 16);
  v128.store(POWERS, f32x4.splat(C1), 32);
  v128.store(POWERS, f32x4.splat(C2), 48);
  v128.store(POWERS, f32x4.splat(C3), 64);
  v128.store(POWERS, f32x4.splat(C4), 80);
  v128.store(POWERS, f32x4.splat(C5), 96);
  v128.store(POWERS, f32x4.splat(1), 112);
}

// Makes e^(x - origin) of all x from one address to another, a multiple of 16; returns their sums by lanes.
export function expAll(x: usize, end: usize, origin: f32): v128 {
  const shift = f32x4.splat(origin);
  const log2e = v128.load(POWERS);
  const least = v128.load(POWERS, 16);
  const round = v128.load(ROUNDER);
  const c1 = v128.load(POWERS, 32);
  const c2 = v128.load(POWERS, 48);
  const c3 = v128.load(POWERS, 64);
  const c4 = v128.load(POWERS, 80);
  const c5 = v128.load(POWERS, 96);
  const one = v128.load(POWERS, 112);
  let total = f32x4.splat(0);
  for (; x < end; x += 64) {
    const a = power(f32x4.sub(v128.load(x), shift), log2e, least, round, c1, c2, c3, c4, c5, one);
    const b = power(f32x4.sub(v128.load(x, 16), shift), log2e, least, round, c1, c2, c3, c4, c5, one);
    v128.store(x, a);
    v128.store(x, b, 16);
    const c = power(f32x4.sub(v128.load(x, 32), shift), log2e, least, round, c1, c2, c3, c4, c5, one);
    const d = power(f32x4.sub(v128.load(x, 48), shift), log2e, least, round, c1, c2, c3, c4, c5, one);
    v128.store(x, c, 32);
    v128.store(x, d, 48);
    total = f32x4.add(total, f32x4.add(f32x4.add(a, b), f32x4.add(c, d)));
  }
  return total;
}

// tanh of four f32: a polynomial near zero, where 1 - e^(-2|x|) would cancel (its coefficients are those of the Cephes
// library's tanhf), and by e^(-2|x|), which cannot overflow, beyond.
@inline
export function tanh4(x: v128): v128 {
  const z = f32x4.mul(x, x);
  let p = f32x4.splat(-5.70498872745e-3);
  p = f32x4.add(f32x4.mul(p, z), f32x4.splat(2.06390887954e-2));
  p = f32x4.add(f32x4.mul(p, z), f32x4.splat(-5.37397155531e-2));
  p = f32x4.add(f32x4.mul(p, z), f32x4.splat(1.33314422036e-1));
  p = f32x4.add(f32x4.mul(p, z), f32x4.splat(-3.33332819422e-1));
  const near = f32x4.add(f32x4.mul(f32x4.mul(p, z), x), x);

  const one = f32x4.splat(1);
  const magnitude = f32x4.abs(x);
  const power = exp4(f32x4.mul(magnitude, f32x4.splat(-2)));
  const ratio = f32x4.div(f32x4.sub(one, power), f32x4.add(one, power));
  const far = v128.or(ratio, v128.and(x, i32x4.splat(0x80000000)));
  return v128.bitselect(near, far, f32x4.lt(magnitude, f32x4.splat(0.625)));
}
