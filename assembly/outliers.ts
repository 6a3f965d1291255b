// What choosing outlier tokens takes: sums over the exact tokens of a tile. In f64 sums of so many binary16 are exact, so
// that every engine finds the same tokens and puts the same in their place.

import { loadHalf4 } from "./half";

// The sum of the magnitudes of each token's K, of one head, one token every `stride` bytes, to f64 `[tokens]`.
export function keyNorms(keys: usize, stride: usize, tokens: i32, headDim: i32, target: usize): void {
  const bytes = (<usize>headDim) << 1;
  for (const end = target + ((<usize>tokens) << 3); target < end; target += 8, keys += stride) {
    // Several sums: with one, each addition would wait for the last.
    let a = f64x2.splat(0);
    let b = a;
    let c = a;
    let d = a;
    for (let at = keys; at < keys + bytes; at += 16) {
      const x = f32x4.abs(loadHalf4(at));
      const y = f32x4.abs(loadHalf4(at, 8));
      a = f64x2.add(a, f64x2.promote_low_f32x4(x));
      b = f64x2.add(b, highDoubles(x));
      c = f64x2.add(c, f64x2.promote_low_f32x4(y));
      d = f64x2.add(d, highDoubles(y));
    }
    const sums = f64x2.add(f64x2.add(a, b), f64x2.add(c, d));
    store<f64>(target, f64x2.extract_lane(sums, 0) + f64x2.extract_lane(sums, 1));
  }
}

// The sum of all tokens of K or of V, of one head, to f64 `[headDim]`.
export function sumTokens(source: usize, stride: usize, tokens: i32, headDim: i32, target: usize): void {
  const bytes = (<usize>headDim) << 1;
  memory.fill(target, 0, bytes << 2);
  for (let token = 0; token < tokens; token++, source += stride) {
    for (let at: usize = 0, sums = target; at < bytes; at += 8, sums += 32) {
      const x = loadHalf4(source + at);
      v128.store(sums, f64x2.add(v128.load(sums), f64x2.promote_low_f32x4(x)));
      v128.store(sums, f64x2.add(v128.load(sums, 16), highDoubles(x)), 16);
    }
  }
}

@inline
function highDoubles(x: v128): v128 {
  return f64x2.promote_low_f32x4(v128.shuffle<i64>(x, x, 1, 1));
}
