import { checkGroups } from "./groups.js";
import { cholesky, eigen, identity } from "./linear.js";
import type { Quantizer } from "./method.js";

/** How rounding errors are kept away from queries. */
export interface QueryAwareOptions {
  /** Directions of the queries that count, those of largest singular value. */
  readonly rank: number;
  /** How much errors along them weigh, against those along no query. */
  readonly lambda: number;
  /** Channels that are rounded together; divides the head size. */
  readonly channels: number;
  /** Rounds such channels, `[tokens, channels]`: each for itself, as the affine quantizer does along channels. */
  readonly inner: Quantizer;
}

/**
 * Rounds channels block by block and moves those still to come so that the errors made so far are hidden from the
 * queries: it lessens `e (I + lambda Q^T Q) e^T`, where e is the error of a key and Q the main directions of the queries,
 * as long as they are.
 *
 * Source: SQuat, arXiv 2503.24358; by the Cholesky factor of the inverse, as GPTQ (arXiv 2210.17323) does, which gives
 * the same as SQuat's projections.
 * @param queries `[count, headDim]`
 */
export function queryAware(queries: Float32Array, options: QueryAwareOptions): Quantizer {
  const { channels, inner } = options;
  let factor: Float64Array | undefined;
  return (rows, headDim) => {
    checkGroups(channels, headDim, "channels");
    factor ??= cholesky(inverseHessian(queries, headDim, options), headDim);
    const tokens = rows.length / headDim;
    const moved = Float64Array.from(rows);
    const result = new Float32Array(rows.length);
    let bits = 0;
    for (let first = 0; first < headDim; first += channels) {
      const block = new Float32Array(tokens * channels);
      for (let token = 0; token < tokens; token++) {
        const at = token * headDim + first;
        block.set(moved.subarray(at, at + channels), token * channels);
      }
      const stored = inner(block, channels);
      bits += stored.bits;
      for (let token = 0; token < tokens; token++) {
        const at = token * headDim;
        const rounded = stored.rows.subarray(token * channels, (token + 1) * channels);
        result.set(rounded, at + first);
        hide(moved.subarray(at, at + headDim), rounded, first, factor);
      }
    }
    return { rows: result, bits };
  };
}

/** Moves the channels of one token behind a block against the block's error. */
function hide(row: Float64Array, rounded: Float32Array, first: number, factor: Float64Array): void {
  const n = row.length;
  const end = first + rounded.length;
  for (let channel = first; channel < end; channel++) {
    // Within the block, where nothing is moved, this solves the triangle of the factor.
    let step = rounded[channel - first] - row[channel];
    for (let before = first; before < channel; before++) {
      step -= factor[channel * n + before] * row[before];
    }
    step /= factor[channel * n + channel];
    row[channel] = step;
    for (let later = end; later < n; later++) row[later] += factor[later * n + channel] * step;
  }
}

/** `(I + lambda Q^T Q)^-1`, Q the main directions of the queries. */
function inverseHessian(
  queries: Float32Array,
  headDim: number,
  { rank, lambda }: QueryAwareOptions,
): Float64Array {
  const gram = new Float64Array(headDim * headDim);
  for (let from = 0; from < queries.length; from += headDim) {
    for (let i = 0; i < headDim; i++) {
      for (let j = 0; j < headDim; j++) gram[i * headDim + j] += queries[from + i] * queries[from + j];
    }
  }
  const { values, vectors } = eigen(gram, headDim);
  const result = identity(headDim);
  for (let direction = 0; direction < Math.min(rank, headDim); direction++) {
    const weight = (lambda * values[direction]) / (1 + lambda * values[direction]);
    const v = vectors.subarray(direction * headDim, (direction + 1) * headDim);
    for (let i = 0; i < headDim; i++) {
      for (let j = 0; j < headDim; j++) result[i * headDim + j] -= weight * v[i] * v[j];
    }
  }
  return result;
}
