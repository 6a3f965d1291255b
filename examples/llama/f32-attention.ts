/** Attention over plain f32, to compare with: keys as they come, values by channels, so that both are rows of a matrix. */
import type { Attention } from "./attention.js";
import type { Config } from "./config.js";
import { Kernels, type Matrix, wholeFours } from "./kernels.js";

/** Query tokens that are worked on at a time. */
const TOKENS = 64;
const F32 = 0;

/** An uncompressed cache for up to `capacity` tokens, in memory of its own. */
export class F32Attention implements Attention {
  readonly #config: Config;
  readonly #kernels: Kernels;
  /** A multiple of four. */
  readonly #capacity: number;
  /** Of each layer, `[kvHeads, capacity, headDim]`. */
  readonly #keys: readonly number[];
  /** Of each layer, `[kvHeads, headDim, capacity]`. */
  readonly #values: readonly number[];
  readonly #lengths: number[];
  readonly #queries: number;
  readonly #weights: number;
  readonly #sums: number;
  readonly #scratch: number;

  private constructor(kernels: Kernels, config: Config, capacity: number) {
    const { layers, queryHeads, kvHeads, headDim } = config;
    const rows = TOKENS * (queryHeads / kvHeads);
    this.#kernels = kernels;
    this.#config = config;
    this.#capacity = wholeFours(capacity);
    const elements = kvHeads * this.#capacity * headDim;
    const reserve = (): number => kernels.reserve(4 * elements);
    this.#keys = Array.from({ length: layers }, reserve);
    this.#values = Array.from({ length: layers }, reserve);
    this.#lengths = new Array<number>(layers).fill(0);
    this.#queries = kernels.reserve(wholeFours(rows) * headDim * 4);
    this.#sums = kernels.reserve(wholeFours(rows) * headDim * 4);
    this.#weights = kernels.reserve(wholeFours(rows) * this.#capacity * 4);
    this.#scratch = kernels.reserveScratch(Math.max(this.#capacity, headDim), rows);
    kernels.grow();
  }

  /** @param module `build/llama.wasm`, compiled */
  static async open(module: WebAssembly.Module, config: Config, capacity: number): Promise<F32Attention> {
    return new F32Attention(await Kernels.open(module), config, capacity);
  }

  get length(): number {
    return this.#lengths[0];
  }

  append(layer: number, k: Float32Array, v: Float32Array): void {
    this.replace(layer, this.#lengths[layer], k, v);
  }

  /**
   * Puts tokens in the place of others, or adds them.
   * @param from position of the first of them
   * @param k `[tokens, kvHeads, headDim]`
   * @param v the same
   */
  replace(layer: number, from: number, k: Float32Array, v: Float32Array): void {
    const { kvHeads, headDim } = this.#config;
    const capacity = this.#capacity;
    const tokens = k.length / (kvHeads * headDim);
    if (from + tokens > capacity) throw new RangeError(`a cache for ${capacity} tokens is full`);
    for (let head = 0; head < kvHeads; head++) {
      const part = head * capacity * headDim;
      const keys = this.#kernels.floats(this.#keys[layer] + 4 * part, capacity * headDim);
      const values = this.#kernels.floats(this.#values[layer] + 4 * part, capacity * headDim);
      for (let token = 0; token < tokens; token++) {
        const at = (token * kvHeads + head) * headDim;
        keys.set(k.subarray(at, at + headDim), (from + token) * headDim);
        for (let channel = 0; channel < headDim; channel++) {
          values[channel * capacity + from + token] = v[at + channel];
        }
      }
    }
    this.#lengths[layer] = Math.max(this.#lengths[layer], from + tokens);
  }

  attend(layer: number, q: Float32Array): Float32Array {
    const width = this.#config.queryHeads * this.#config.headDim;
    const tokens = q.length / width;
    const out = new Float32Array(q.length);
    for (let from = 0; from < tokens; from += TOKENS) {
      const to = Math.min(tokens, from + TOKENS);
      const first = this.#lengths[layer] - tokens + from;
      for (let head = 0; head < this.#config.kvHeads; head++) {
        this.#attendHead(
          layer,
          head,
          q.subarray(from * width, to * width),
          out.subarray(from * width),
          first,
        );
      }
    }
    return out;
  }

  /**
   * Attention of the query heads of one KV head.
   * @param first position of the first query
   */
  #attendHead(layer: number, head: number, q: Float32Array, out: Float32Array, first: number): void {
    const { queryHeads, kvHeads, headDim } = this.#config;
    const group = queryHeads / kvHeads;
    const tokens = q.length / (queryHeads * headDim);
    const rows = tokens * group;
    // All that the last query sees, and up to three tokens more, whose weights are 0.
    const columns = wholeFours(first + tokens);
    const part = 4 * head * this.#capacity * headDim;
    const keys = this.#matrix(this.#keys[layer] + part, columns, headDim, headDim);
    const values = this.#matrix(this.#values[layer] + part, headDim, columns, this.#capacity);

    const queries = this.#kernels.floats(this.#queries, rows * headDim);
    const ofHead = (token: number): number => (token * kvHeads + head) * group * headDim;
    for (let token = 0; token < tokens; token++) {
      const from = ofHead(token);
      queries.set(q.subarray(from, from + group * headDim), token * group * headDim);
    }
    this.#kernels.multiply(keys, this.#queries, rows, this.#weights, this.#scratch);
    const weights = this.#kernels.floats(this.#weights, rows * columns);
    for (let row = 0; row < rows; row++) {
      const seen = first + Math.floor(row / group) + 1;
      softmax(weights.subarray(row * columns, (row + 1) * columns), seen, 1 / Math.sqrt(headDim));
    }
    this.#kernels.multiply(values, this.#weights, rows, this.#sums, this.#scratch);
    const sums = this.#kernels.floats(this.#sums, rows * headDim);
    for (let token = 0; token < tokens; token++) {
      const from = token * group * headDim;
      out.set(sums.subarray(from, from + group * headDim), ofHead(token));
    }
  }

  #matrix(address: number, rows: number, columns: number, stride: number): Matrix {
    return { type: F32, address, rows, columns, rowBytes: 4 * stride };
  }
}

/** Turns the first `seen` scores into weights, and the others into 0. */
function softmax(scores: Float32Array, seen: number, scale: number): void {
  let largest = scores[0];
  for (let i = 1; i < seen; i++) if (scores[i] > largest) largest = scores[i];
  let total = 0;
  for (let i = 0; i < seen; i++) total += scores[i] = Math.exp((scores[i] - largest) * scale);
  const factor = 1 / total;
  for (let i = 0; i < seen; i++) scores[i] *= factor;
  scores.fill(0, seen);
}
