import { rotationBlock } from "../format.js";

/**
 * Rotates rows by the normalized Walsh-Hadamard matrix (Sylvester order, no random signs): `y = x H / sqrt(n)`. It is
 * its own inverse. `n` is `headDim` for powers of two; other heads are rotated in contiguous blocks of
 * their largest power-of-two divisor.
 *
 * All arithmetic is f32, one addition at a time, strides 1, 2, 4, …, and one multiplication at the end: an engine that
 * does the same operations in this order gets the same bits.
 *
 * Source: arXiv 2606.03458, section on rotation (after QuaRot); vLLM's KVarN multiplies by the same matrix.
 * @param x rows of `headDim` values
 * @param headDim multiple of 16 from 16 to 512
 * @param out as long as `x`; may be `x`
 * @returns `out`
 */
export function rotate(
  x: Float32Array,
  headDim: number,
  out: Float32Array = new Float32Array(x.length),
): Float32Array {
  const n = rotationBlock(headDim);
  const factor = Math.fround(1 / Math.sqrt(n));
  if (out !== x) out.set(x);
  for (let start = 0; start < out.length; start += n) {
    const block = out.subarray(start, start + n);
    butterfly(block);
    for (let i = 0; i < n; i++) block[i] = Math.fround(block[i] * factor);
  }
  return out;
}

/** The unnormalized transform of one block of a power-of-two length, in place. */
function butterfly(block: Float32Array): void {
  for (let stride = 1; stride < block.length; stride *= 2) {
    for (let pair = 0; pair < block.length; pair += 2 * stride) {
      for (let i = pair; i < pair + stride; i++) {
        const a = block[i];
        const b = block[i + stride];
        block[i] = Math.fround(a + b);
        block[i + stride] = Math.fround(a - b);
      }
    }
  }
}
