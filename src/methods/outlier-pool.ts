import { roundToHalf } from "./half-precision.js";

/** How many tokens a pool holds. */
export interface PoolOptions {
  /** Outliers at any time. */
  readonly tokens: number;
  /** Room for those that were outliers once. */
  readonly displaced: number;
  /** The first layers, which go without. */
  readonly exemptLayers: number;
}

/** Bits of the position of a token in a pool. */
const POSITION_BITS = 32;

/** Tokens that are to be rounded with placeholders in them, and what comes back in their place. */
export interface HeldTokens {
  /** Keys with placeholders. */
  readonly k: Float32Array;
  /** Values with placeholders. */
  readonly v: Float32Array;
  /** What the pool grew by. */
  readonly bits: number;
  /** Puts the exact rows back. */
  restore(k: Float32Array, v: Float32Array): void;
}

/**
 * Outlier tokens held exactly, K and V, apart from the codes of their group: at any time those of smallest
 * `sum(|k|)` of all that left the window. Such keys are attention sinks, small beside the rest, and stretch the
 * groups they are in. A token that a later one displaces stays exact, in what room there is for those; once that does
 * not suffice, no more are looked for. In its group a held token's row becomes the mean of the group's others, so that
 * it stretches nothing; nothing attends to that placeholder.
 *
 * Source: OTT, arXiv 2505.10938, by its description; one pool to a KV head is our reading.
 */
export class OutlierPool {
  readonly #options: PoolOptions;
  /** `sum(|k|)` of the present outliers. */
  #present: number[] = [];
  #displaced = 0;
  #full = false;

  constructor(options: PoolOptions) {
    this.#options = options;
  }

  /**
   * Looks for outliers in each group of the tokens that leave the window.
   * @param k `[tokens, headDim]`
   * @param v the same
   * @param group divides the tokens
   */
  hold(k: Float32Array, v: Float32Array, headDim: number, group: number): HeldTokens {
    const held = { k: k.slice(), v: v.slice() };
    const found: number[] = [];
    for (let first = 0; first < k.length / headDim; first += group) {
      const size = group * headDim;
      const tokens = this.#trace(k.subarray(first * headDim, first * headDim + size), headDim);
      for (const rows of [held.k, held.v]) {
        fillPlaceholders(rows.subarray(first * headDim, first * headDim + size), tokens, headDim);
      }
      found.push(...tokens.map((token) => first + token));
    }
    const restore = (target: Float32Array, source: Float32Array): void => {
      for (const token of found) {
        const [start, end] = [token * headDim, (token + 1) * headDim];
        target.set(roundToHalf(source.subarray(start, end)), start);
      }
    };
    return {
      ...held,
      bits: found.length * (2 * 16 * headDim + POSITION_BITS),
      restore: (keys, values) => {
        restore(keys, k);
        restore(values, v);
      },
    };
  }

  /** The new outliers of one group, in no order. */
  #trace(k: Float32Array, headDim: number): number[] {
    if (this.#full) return [];
    const fresh = Array.from({ length: k.length / headDim }, (_, token) => {
      let sum = 0;
      for (let i = token * headDim; i < (token + 1) * headDim; i++) sum += Math.abs(k[i]);
      return { token, sum };
    });
    const old = this.#present.map((sum) => ({ token: -1, sum }));
    // Of equals, the older stays.
    const chosen = [...old, ...fresh].sort((a, b) => a.sum - b.sum).slice(0, this.#options.tokens);
    const tokens = chosen.map(({ token }) => token).filter((token) => token >= 0);
    const displaced = old.length - (chosen.length - tokens.length);
    if (this.#displaced + displaced > this.#options.displaced) {
      this.#full = true;
      return [];
    }
    this.#displaced += displaced;
    this.#present = chosen.map(({ sum }) => sum);
    return tokens;
  }
}

/** Makes rows of a group the mean of its other rows. */
function fillPlaceholders(rows: Float32Array, tokens: readonly number[], headDim: number): void {
  const count = rows.length / headDim;
  for (let channel = 0; channel < headDim; channel++) {
    let sum = 0;
    for (let token = 0; token < count; token++) {
      if (!tokens.includes(token)) sum += rows[token * headDim + channel];
    }
    const mean = count > tokens.length ? sum / (count - tokens.length) : 0;
    for (const token of tokens) rows[token * headDim + channel] = mean;
  }
}
