/** One head out of the rows of all. */

/**
 * Copies what belongs to one KV head.
 * @param rows `[tokens, kvHeads, headDim]`
 * @returns `[tokens, headDim]`
 */
export function oneHead(
  rows: Float32Array,
  { kvHeads, headDim }: { kvHeads: number; headDim: number },
  head: number,
): Float32Array {
  const width = kvHeads * headDim;
  const tokens = rows.length / width;
  const result = new Float32Array(tokens * headDim);
  for (let token = 0; token < tokens; token++) {
    const from = token * width + head * headDim;
    result.set(rows.subarray(from, from + headDim), token * headDim);
  }
  return result;
}
