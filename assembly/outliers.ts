// What choosing outlier tokens takes: sums over the exact tokens of a tile. In f64 sums of so many binary16 are exact, so
// that every engine finds the same tokens and puts the same in their place.

import { loadHalf4 } from "./half";

// The sum of the magnitudes of each token's K, of one head, one token every `stride` bytes, to f64 `[tokens]`.
export function keyNorms(keys: usize, stride: usize, tokens: i32, headDim: i32, target: usize): void {
  const bytes = (<usize>headDim) << 1;
  for (const end = target + ((<usize>tokens) << 3); target < end; target += 8, keys += stride) {
    let sums = f64x2.splat(0);
    for (let at = keys; at < keys + bytes; at += 8) {
      const x = f32x4.abs(loadHalf4(at));
      sums = f64x2.add(sums, f64x2.add(f64x2.promote_low_f32x4(x), highDoubles(x)));
    }
    store<f64>(target, f64x2.extract_lane(sums, 0) + f64x2.extract_lane(sums, 1));
  }
}

// The sum of all tokens of K or of V, of one head, to f64 `[headDim]`.
export function sumTokens(source: usize, stride: usize, tokens: i32, headDim: i32, target: usize): void {
  for (const end = source + ((<usize>headDim) << 1); source < end; source += 8, target += 32) {
    let low = f64x2.splat(0);
    let high = low;
    let at = source;
    for (let token = 0; token < tokens; token++, at += stride) {
      const x = loadHalf4(at);
      low = f64x2.add(low, f64x2.promote_low_f32x4(x));
      high = f64x2.add(high, highDoubles(x));
    }
    v128.store(target, low);
    v128.store(target, high, 16);
  }
}

@inline
function highDoubles(x: v128): v128 {
  return f64x2.promote_low_f32x4(v128.shuffle<i64>(x, x, 1, 1));
}
