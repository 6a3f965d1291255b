/** What the GPU cannot say before a call returns: whether tokens fit binary16. */
import { fromHalf, HALF_MAX, toHalf } from "../half.js";
import { rotate } from "../reference/rotate.js";
import { nonFiniteError, type TensorData, toFloat32 } from "../tensor.js";

/** Squares of all binary16, by their bits; NaN for those that are not finite. */
let squares: Float64Array | undefined;

/**
 * Throws `non-finite` where a value is, or would become so once rotated and rounded to binary16.
 * @param data `[tokens, kvHeads, headDim]`
 */
export function checkTokens(name: string, data: TensorData, kvHeads: number, headDim: number): void {
  const table =
    data instanceof Uint16Array
      ? (squares ??= Float64Array.from(
          { length: 65536 },
          (_, bits) => fromHalf(bits) ** 2 + 0 * fromHalf(bits),
        ))
      : undefined;
  for (let row = 0; row < data.length / headDim; row++) {
    const start = row * headDim;
    let length = 0;
    if (table) for (let i = start; i < start + headDim; i++) length += table[data[i]];
    else for (let i = start; i < start + headDim; i++) length += data[i] * data[i];
    // No element of a rotated row exceeds the row's length. Not `>`: this catches NaN, too.
    if (length < HALF_MAX * HALF_MAX * 0.999) continue;
    const rotated = rotate(toFloat32(data.subarray(start, start + headDim)), headDim);
    if (rotated.some((value) => !Number.isFinite(fromHalf(toHalf(value))))) {
      throw nonFiniteError(name, data, row, kvHeads, headDim);
    }
  }
}
