/** The moments of queries as a saved cache has them: symmetric, so of each KV head the upper triangle, row by row. */

/** Heads of one layer. */
interface Heads {
  readonly kvHeads: number;
  readonly headDim: number;
}

/** How many numbers the triangles of a layer are. */
export function triangleLength({ kvHeads, headDim }: Heads): number {
  return (kvHeads * headDim * (headDim + 1)) / 2;
}

/**
 * @param moments `[kvHeads, headDim, headDim]`; only the upper triangles are looked at
 * @returns the triangles, one KV head after the other
 */
export function triangles(moments: Float32Array, heads: Heads): Float32Array {
  const result = new Float32Array(triangleLength(heads));
  eachRow(heads, (row, at, length) => result.set(moments.subarray(row, row + length), at));
  return result;
}

/** Undoes {@link triangles}; below the diagonals lie zeros. */
export function squares(packed: Float32Array, heads: Heads): Float32Array {
  const result = new Float32Array(heads.kvHeads * heads.headDim ** 2);
  eachRow(heads, (row, at, length) => result.set(packed.subarray(at, at + length), row));
  return result;
}

/** Where a row's part begins in the square and in the triangle, and how long it is. */
function eachRow(
  { kvHeads, headDim }: Heads,
  visit: (square: number, triangle: number, length: number) => void,
): void {
  let at = 0;
  for (let row = 0; row < kvHeads * headDim; row++) {
    const first = row % headDim;
    visit(row * headDim + first, at, headDim - first);
    at += headDim - first;
  }
}
