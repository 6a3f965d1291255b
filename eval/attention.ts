/** Caches as the decoder attends to them. */
import type { Attention } from "../examples/llama/attention.js";
import type { Config } from "../examples/llama/config.js";
import { F32Attention } from "../examples/llama/f32-attention.js";
import { type Method, MethodCache } from "../src/methods/index.js";
import { join } from "../src/methods/join.js";

/** Tokens whose queries a method that wants some sees at once, as if a prompt began with one call of so many. */
const PROMPT = 256;

/** What a layer holds back until then. */
interface HeldBack {
  readonly k: Float32Array[];
  readonly v: Float32Array[];
  readonly q: Float32Array[];
  tokens: number;
}

/**
 * A method's cache, simulated, of up to `capacity` tokens. What it gives back is attended to by the exact run's kernels,
 * several times as fast as the simulation's own attention.
 */
export class MethodAttention implements Attention {
  readonly cache: MethodCache;
  readonly #kernels: F32Attention;
  readonly #width: number;
  readonly #queryWidth: number;
  readonly #lengths: number[];
  /** Of each layer, where tokens begin that the kernels have as they no longer are, or not at all. */
  readonly #stale: number[];
  readonly #heldBack: (HeldBack | undefined)[];

  private constructor(method: Method, config: Config, kernels: F32Attention) {
    const { layers, queryHeads, kvHeads, headDim } = config;
    this.cache = new MethodCache(method, { layers, queryHeads, kvHeads, headDim });
    this.#kernels = kernels;
    this.#width = kvHeads * headDim;
    this.#queryWidth = queryHeads * headDim;
    this.#lengths = new Array<number>(layers).fill(0);
    this.#stale = new Array<number>(layers).fill(0);
    this.#heldBack = Array.from({ length: layers }, () =>
      method.needs.queries ? { k: [], v: [], q: [], tokens: 0 } : undefined,
    );
  }

  /** @param module the decoder's kernels */
  static async open(
    method: Method,
    config: Config,
    module: WebAssembly.Module,
    capacity: number,
  ): Promise<MethodAttention> {
    return new MethodAttention(method, config, await F32Attention.open(module, config, capacity));
  }

  get length(): number {
    return this.#lengths[0];
  }

  append(layer: number, k: Float32Array, v: Float32Array): void {
    const tokens = k.length / this.#width;
    this.#lengths[layer] += tokens;
    const heldBack = this.#heldBack[layer];
    if (heldBack) {
      heldBack.k.push(k.slice());
      heldBack.v.push(v.slice());
      heldBack.tokens += tokens;
      this.#kernels.append(layer, k, v);
      this.#stale[layer] = this.#lengths[layer];
      return;
    }
    const before = this.cache.compressedRange(layer);
    this.cache.append(layer, k, v, tokens);
    const after = this.cache.compressedRange(layer);
    for (const end of ["keyEnd", "valueEnd"] as const) {
      if (after[end] > before[end]) this.#stale[layer] = Math.min(this.#stale[layer], before[end]);
    }
  }

  attend(layer: number, q: Float32Array): Float32Array {
    const heldBack = this.#heldBack[layer];
    if (heldBack) {
      heldBack.q.push(q.slice());
      if (heldBack.tokens >= PROMPT) this.#release(layer, heldBack);
      return this.#kernels.attend(layer, q);
    }
    const from = this.#stale[layer];
    const { k, v } = this.cache.read(layer);
    this.#kernels.replace(layer, from, k.subarray(from * this.#width), v.subarray(from * this.#width));
    this.#stale[layer] = this.#lengths[layer];
    return this.#kernels.attend(layer, q);
  }

  #release(layer: number, { k, v, q, tokens }: HeldBack): void {
    this.cache.append(layer, join(k), join(v), tokens);
    const queries = join(q);
    // For the method to see them; what comes of it is known.
    this.cache.attend(layer, queries, queries.length / this.#queryWidth);
    this.#heldBack[layer] = undefined;
  }
}

/** What went through one layer's attention in one call. */
export interface Recorded {
  k: Float32Array;
  v: Float32Array;
  q: Float32Array;
  out: Float32Array;
}

/** Attention that keeps what the newest call of each layer had and gave. */
export class Recorder implements Attention {
  readonly layers: Recorded[];

  constructor(
    private readonly inner: Attention,
    layers: number,
  ) {
    const none = new Float32Array(0);
    this.layers = Array.from({ length: layers }, () => ({ k: none, v: none, q: none, out: none }));
  }

  get length(): number {
    return this.inner.length;
  }

  async append(layer: number, k: Float32Array, v: Float32Array): Promise<void> {
    Object.assign(this.layers[layer], { k: k.slice(), v: v.slice() });
    await this.inner.append(layer, k, v);
  }

  async attend(layer: number, q: Float32Array): Promise<Float32Array> {
    const recorded = this.layers[layer];
    recorded.q = q.slice();
    recorded.out = (await this.inner.attend(layer, q)).slice();
    return recorded.out;
  }
}
