// Weighted sums of the rows of panels, for up to ROWS queries at once: `out[query][column] = sum over rows of
// coefficient[query][row] * panel[row][column]`. With channels as rows of K and tokens as rows of V, scores and weighted
// values are both of this form.
//
// Queries go by fours, with 8 columns each: eight sums are as many as engines keep in registers, and that only in small
// functions. Panels are the outer loop, so that one stays in the innermost cache for all queries.
//
// Coefficients lie in COEFFICIENTS. `panel` is where the first row to take lies in the first of the panels, which are `step`
// bytes apart, and `out` the first query's sum of that panel's first column; the queries' sums are `stride` bytes apart.
// Whole fours of queries are written: what comes out for those that are not there is nobody's.

import { madd } from "./lanes";
import { COEFFICIENTS } from "./memory";
import { STRIP } from "./panels";

// In f32; coefficients are `[queries / 4][rows][4]`.
export function sumPanels(
  panel: usize,
  step: usize,
  panels: i32,
  rows: i32,
  queries: i32,
  out: usize,
  stride: usize,
): void {
  const bytes = <usize>rows * STRIP;
  for (const last = panel + <usize>panels * step; panel < last; panel += step, out += 32) {
    let at: usize = COEFFICIENTS;
    let target = out;
    for (let query = 0; query < queries; query += 4, target += 4 * stride) {
      let a = f32x4.splat(0);
      let b = a;
      let c = a;
      let d = a;
      let e = a;
      let f = a;
      let g = a;
      let h = a;
      for (let row = panel, end = panel + bytes; row < end; row += STRIP, at += 16) {
        const x = v128.load(row);
        const y = v128.load(row, 16);
        const first = v128.load32_splat(at);
        a = madd(x, first, a);
        b = madd(y, first, b);
        const second = v128.load32_splat(at, 4);
        c = madd(x, second, c);
        d = madd(y, second, d);
        const third = v128.load32_splat(at, 8);
        e = madd(x, third, e);
        f = madd(y, third, f);
        const fourth = v128.load32_splat(at, 12);
        g = madd(x, fourth, g);
        h = madd(y, fourth, h);
      }
      v128.store(target, a);
      v128.store(target, b, 16);
      v128.store(target + stride, c);
      v128.store(target + stride, d, 16);
      v128.store(target + 2 * stride, e);
      v128.store(target + 2 * stride, f, 16);
      v128.store(target + 3 * stride, g);
      v128.store(target + 3 * stride, h, 16);
    }
  }
}

@inline
function dot(x: v128, coefficients: v128, sum: v128): v128 {
  return i32x4.add(sum, i32x4.dot_i16x8_s(x, coefficients));
}

// In 16-bit integers, on panels of pairs; coefficients are `[queries / 4][rows / 2][4][2]`, and sums come out as f32. The
// caller keeps the coefficients so small that the sums fit 32 bits.
export function sumPairs(
  panel: usize,
  step: usize,
  panels: i32,
  rows: i32,
  queries: i32,
  out: usize,
  stride: usize,
): void {
  const bytes = <usize>(rows >> 1) * STRIP;
  for (const last = panel + <usize>panels * step; panel < last; panel += step, out += 32) {
    let at: usize = COEFFICIENTS;
    let target = out;
    for (let query = 0; query < queries; query += 4, target += 4 * stride) {
      let a = i32x4.splat(0);
      let b = a;
      let c = a;
      let d = a;
      let e = a;
      let f = a;
      let g = a;
      let h = a;
      for (let row = panel, end = panel + bytes; row < end; row += STRIP, at += 16) {
        const x = v128.load(row);
        const y = v128.load(row, 16);
        const first = v128.load32_splat(at);
        a = dot(x, first, a);
        b = dot(y, first, b);
        const second = v128.load32_splat(at, 4);
        c = dot(x, second, c);
        d = dot(y, second, d);
        const third = v128.load32_splat(at, 8);
        e = dot(x, third, e);
        f = dot(y, third, f);
        const fourth = v128.load32_splat(at, 12);
        g = dot(x, fourth, g);
        h = dot(y, fourth, h);
      }
      v128.store(target, f32x4.convert_i32x4_s(a));
      v128.store(target, f32x4.convert_i32x4_s(b), 16);
      v128.store(target + stride, f32x4.convert_i32x4_s(c));
      v128.store(target + stride, f32x4.convert_i32x4_s(d), 16);
      v128.store(target + 2 * stride, f32x4.convert_i32x4_s(e));
      v128.store(target + 2 * stride, f32x4.convert_i32x4_s(f), 16);
      v128.store(target + 3 * stride, f32x4.convert_i32x4_s(g));
      v128.store(target + 3 * stride, f32x4.convert_i32x4_s(h), 16);
    }
  }
}
