import type { Queries } from "../backend.js";
import { visibleFrom } from "../cache/schedule.js";
import { type TensorData, toFloat32 } from "../tensor.js";
import type { TokenRows } from "./record.js";
import { rotate } from "./rotate.js";

/** Consecutive cached tokens: exact ones, or what a record decodes to. */
export interface TokenRun {
  /** Position of the first. */
  readonly start: number;
  /** How many. */
  readonly tokens: number;
  /** At least `tokens` tokens of one KV head. */
  read(kvHead: number): TokenRows;
}

/**
 * Attention of some query tokens over cached ones, in f64 between the rotation of q and that of the output (both
 * f32): `out = softmax(mask(softCap(q K^T * softmaxScale))) V`, with the running maximum of flash attention. A query
 * sees tokens up to its own position, and with a sliding window only the last of them. Query head h reads KV head
 * `floor(h / (queryHeads / kvHeads))`. Sink logits enter the denominator as they are, neither scaled nor capped.
 *
 * Source: arXiv 2606.03458 attends in the rotated frame like this; soft cap as in Gemma 2, sink logits as in gpt-oss.
 * @param request `q`, not rotated, and `out`, which is filled: `[queryTokens, queryHeads, headDim]`
 * @param runs covering whatever the queries see, in any order
 */
export function attend(
  request: Queries & { q: TensorData; out: Float32Array },
  kvHeads: number,
  headDim: number,
  runs: readonly TokenRun[],
): void {
  const { queryTokens, queryHeads, position, softCap, softmaxScale, out } = request;
  const q = rotate(toFloat32(request.q), headDim);
  const headsPerKvHead = queryHeads / kvHeads;
  for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
    const queries = Array.from({ length: queryTokens * headsPerKvHead }, (_, i) => {
      const token = Math.floor(i / headsPerKvHead);
      const head = kvHead * headsPerKvHead + (i % headsPerKvHead);
      return {
        offset: (token * queryHeads + head) * headDim,
        position: position + token,
        softmax: new RunningSoftmax(headDim, request.sinkLogits?.[head]),
      };
    });
    for (const run of runs) {
      const { keys, values } = run.read(kvHead);
      for (const query of queries) {
        const first = Math.max(0, visibleFrom(query.position, request.slidingWindow) - run.start);
        const end = Math.min(run.tokens, query.position + 1 - run.start);
        for (let token = first; token < end; token++) {
          const score = dot(q, query.offset, keys, token * headDim, headDim) * softmaxScale;
          const capped = softCap === 0 ? score : softCap * Math.tanh(score / softCap);
          query.softmax.add(capped, values, token * headDim);
        }
      }
    }
    for (const { offset, softmax } of queries) out.set(softmax.result(), offset);
  }
  rotate(out, headDim, out);
}

/** A sum of value rows weighted by the softmax of scores that come one by one. */
class RunningSoftmax {
  #maximum = -Infinity;
  #denominator = 0;
  readonly #numerator: Float64Array;

  constructor(headDim: number, sinkLogit: number | undefined) {
    this.#numerator = new Float64Array(headDim);
    if (sinkLogit !== undefined) {
      this.#maximum = sinkLogit;
      this.#denominator = 1;
    }
  }

  /** Adds the row of `values` that begins at `offset`. */
  add(score: number, values: TokenRows["values"], offset: number): void {
    const numerator = this.#numerator;
    if (score > this.#maximum) {
      const shrink = Math.exp(this.#maximum - score);
      this.#denominator *= shrink;
      for (let channel = 0; channel < numerator.length; channel++) numerator[channel] *= shrink;
      this.#maximum = score;
    }
    const weight = Math.exp(score - this.#maximum);
    this.#denominator += weight;
    for (let channel = 0; channel < numerator.length; channel++) {
      numerator[channel] += weight * values[offset + channel];
    }
  }

  /** `[headDim]` */
  result(): Float64Array {
    return this.#numerator.map((sum) => sum / this.#denominator);
  }
}

function dot(
  a: Float32Array,
  aOffset: number,
  b: Float32Array | Float64Array,
  bOffset: number,
  length: number,
): number {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += a[aOffset + i] * b[bOffset + i];
  return sum;
}
