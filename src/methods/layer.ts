import { KvarnError } from "../errors.js";
import { join } from "./join.js";
import type { Compressor, Method } from "./method.js";

/** Which tokens of a layer are compressed: from `start` on, keys and values up to their ends. */
export interface CompressedRange {
  /** Tokens of the sink. */
  readonly start: number;
  /** Position behind the last compressed key. */
  readonly keyEnd: number;
  /** Position behind the last compressed value. */
  readonly valueEnd: number;
}

/** One KV head: its rows one after another, as attention reads them. */
class MethodHead {
  /** `[capacity, headDim]`: compressed ones as they decode, the others as they were given. */
  keys = new Float32Array(0);
  /** The same. */
  values = new Float32Array(0);
  /** Values as they will decode once they leave the window. */
  waiting = new Float32Array(0);
  compressor: Compressor | undefined;
  /** Of all attention so far, until the compressor has had them. */
  queries: Float32Array[] = [];

  /** Makes room for `length` elements of keys, and of values. */
  reserve(length: number): void {
    if (length <= this.keys.length) return;
    const capacity = Math.max(length, 2 * this.keys.length);
    const grow = (rows: Float32Array): Float32Array<ArrayBuffer> => {
      const larger = new Float32Array(capacity);
      larger.set(rows);
      return larger;
    };
    this.keys = grow(this.keys);
    this.values = grow(this.values);
    this.waiting = grow(this.waiting);
  }
}

/** One layer of a simulated cache: which tokens are compressed, and what that takes. */
export class MethodLayer {
  readonly #method: Method;
  readonly #layer: number;
  readonly #headDim: number;
  readonly #heads: readonly MethodHead[];
  #length = 0;
  #keyEnd = 0;
  #valueEnd = 0;
  /** Bits of one compressed token's values, of all heads. */
  #valueBits = 0;
  #codeBits = 0;
  #poolBits = 0;

  constructor(method: Method, layer: number, kvHeads: number, headDim: number) {
    this.#method = method;
    this.#layer = layer;
    this.#headDim = headDim;
    this.#heads = Array.from({ length: kvHeads }, () => new MethodHead());
    // Queries come later: what else a method cannot take it says now.
    if (!method.needs.queries) this.#open();
  }

  get length(): number {
    return this.#length;
  }

  /** Bits of codes, scales and zero points. */
  get codeBits(): number {
    return this.#codeBits;
  }

  get poolBits(): number {
    return this.#poolBits;
  }

  get range(): CompressedRange {
    const start = Math.min(this.#method.window.sink, this.#length);
    return { start, keyEnd: Math.max(start, this.#keyEnd), valueEnd: Math.max(start, this.#valueEnd) };
  }

  /** `[length, headDim]`, or more. */
  rows(head: number): { readonly keys: Float32Array; readonly values: Float32Array } {
    return this.#heads[head];
  }

  /** Adds tokens, `[tokens, kvHeads, headDim]`. */
  add(k: Float32Array, v: Float32Array, tokens: number): void {
    const size = this.#headDim;
    this.#heads.forEach((head, i) => {
      // And one token more, as attention reads them by pairs.
      head.reserve((this.#length + tokens + 1) * size);
      for (let token = 0; token < tokens; token++) {
        const from = (token * this.#heads.length + i) * size;
        const to = (this.#length + token) * size;
        head.keys.set(k.subarray(from, from + size), to);
        head.values.set(v.subarray(from, from + size), to);
      }
    });
    this.#length += tokens;
  }

  /** Keeps queries of a head, `[rows, headDim]`, for a method that wants them and has had none yet. */
  noteQueries(head: number, rows: Float32Array): void {
    const { compressor, queries } = this.#heads[head];
    if (this.#method.needs.queries && !compressor) queries.push(rows.slice());
  }

  /** Compresses whole blocks that have left the window. */
  compressDue(): void {
    const { sink, recent, block, recentValues } = this.#method.window;
    const from = Math.max(sink, this.#keyEnd);
    const blocks = Math.floor((this.#length - recent - from) / block);
    if (blocks > 0) this.#compress(from, from + blocks * block);
    // Values leave no sooner than keys: a block is compressed by the time its first value leaves.
    this.#release(Math.min(this.#keyEnd, this.#length - recentValues));
  }

  #compress(from: number, to: number): void {
    this.#open();
    const [start, end] = [from * this.#headDim, to * this.#headDim];
    const stored = this.#heads.map(({ compressor, keys, values }) =>
      compressor!.compress(keys.subarray(start, end), values.subarray(start, end)),
    );
    this.#valueBits = 0;
    this.#heads.forEach((head, i) => {
      head.keys.set(stored[i].k, start);
      head.waiting.set(stored[i].v, start);
      this.#codeBits += stored[i].keyBits;
      this.#poolBits += stored[i].poolBits;
      this.#valueBits += stored[i].valueBits / (to - from);
    });
    this.#keyEnd = to;
  }

  /** Puts compressed values before `to` in the place of the exact ones. */
  #release(to: number): void {
    const from = Math.max(this.#method.window.sink, this.#valueEnd);
    if (to <= from) return;
    const [start, end] = [from * this.#headDim, to * this.#headDim];
    for (const head of this.#heads) head.values.set(head.waiting.subarray(start, end), start);
    this.#codeBits += (to - from) * this.#valueBits;
    this.#valueEnd = to;
  }

  #open(): void {
    const { name, needs } = this.#method;
    for (const head of this.#heads) {
      if (head.compressor) continue;
      if (needs.queries && head.queries.length === 0) {
        const what = "queries must be given: attend before the first tokens leave the window";
        throw new KvarnError("invalid-argument", `${name}: ${what}, in layer ${this.#layer}`);
      }
      const queries = needs.queries ? join(head.queries) : undefined;
      head.compressor = this.#method.open({ headDim: this.#headDim, layer: this.#layer, queries });
      head.queries = [];
    }
  }
}
