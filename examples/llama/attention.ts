/** What the decoder asks of a cache: to keep keys and values, and to attend to them. */
import type { KvarnCache } from "kvarn";

/** The attention of one sequence, with all that it remembers. Tensors are in f32; keys and queries come after RoPE. */
export interface Attention {
  /** Tokens in the first layer: the position of the next one. */
  readonly length: number;
  /**
   * Adds tokens to a layer. `k` and `v` are only there during the call.
   * @param k `[tokens, kvHeads, headDim]`
   * @param v the same
   */
  append(layer: number, k: Float32Array, v: Float32Array): Promise<void> | void;
  /**
   * Attention of a layer's newest tokens over all that they see.
   * @param q `[tokens, queryHeads, headDim]`; only there during the call
   * @returns the same shape
   */
  attend(layer: number, q: Float32Array): Promise<Float32Array> | Float32Array;
}

/** Attention over a cache of this package. */
export class KvarnAttention implements Attention {
  constructor(readonly cache: KvarnCache) {}

  get length(): number {
    return this.cache.length(0);
  }

  async append(layer: number, k: Float32Array, v: Float32Array): Promise<void> {
    await this.cache.append(layer, k, v);
  }

  async attend(layer: number, q: Float32Array): Promise<Float32Array> {
    return this.cache.attend(layer, q);
  }
}
