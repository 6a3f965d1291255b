// Exact tokens: rotated, in binary16. One token is K of all heads, then V of all heads: `[2, kvHeads, headDim]`.

import { loadHalf4, storeHalves } from "./half";
import { TRANSPOSED } from "./memory";
import { rotateRow } from "./rotate";

// Rotates `tokens` tokens of K or of V, `[tokens, kvHeads, headDim]` of f32 (or binary16 when `half`), and puts them
// to `target`, one every `stride` bytes. Returns the first row that is not finite, or -1.
export function writeTokens(
  source: usize,
  half: bool,
  tokens: i32,
  kvHeads: i32,
  headDim: i32,
  target: usize,
  stride: usize,
): i32 {
  const row: usize = TRANSPOSED;
  const bytes = (<usize>headDim) << (half ? 1 : 2);
  for (let token = 0; token < tokens; token++, target += stride) {
    for (let head = 0; head < kvHeads; head++, source += bytes) {
      if (half) loadHalvesOrNaN(source, row, headDim);
      rotateRow(half ? row : source, row, headDim);
      if (!storeHalves(row, target + ((<usize>head * headDim) << 1), headDim)) return token * kvHeads + head;
    }
  }
  return -1;
}

// Input of callers may hold infinities and NaN, which `loadHalf4` takes for numbers: here they stay what they are.
function loadHalvesOrNaN(source: usize, target: usize, count: i32): void {
  const exponent = i32x4.splat(0x7c00);
  for (const end = source + ((<usize>count) << 1); source < end; source += 8, target += 16) {
    const bad = i32x4.eq(v128.and(v128.load16x4_s(source), exponent), exponent);
    v128.store(target, v128.bitselect(f32x4.splat(NaN), loadHalf4(source), bad));
  }
}
