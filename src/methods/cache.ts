import type { KeysAndValues } from "../codec.js";
import { checkInteger, describe, KvarnError } from "../errors.js";
import { checkLength, findNonFinite } from "../tensor.js";
import { attendHead } from "./attend.js";
import { type CompressedRange, MethodLayer } from "./layer.js";
import type { Method } from "./method.js";

/** The model whose keys and values a cache holds. */
export interface MethodCacheConfig {
  /** How many. */
  layers: number;
  /** A multiple of kvHeads. */
  queryHeads: number;
  /** Query head h reads KV head `floor(h / (queryHeads / kvHeads))`. */
  kvHeads: number;
  /** Elements of one head. */
  headDim: number;
  /** Factor on `q . k`. Default: `1 / sqrt(headDim)`. */
  softmaxScale?: number;
}

/** What a cache would take that stored tokens as its method does. */
export interface MethodMemory {
  /** Elements of K and V. */
  readonly values: number;
  /** Those of them that are compressed. */
  readonly compressedValues: number;
  /** The window, in binary16. */
  readonly exactBytes: number;
  /** Codes, scales and zero points. */
  readonly compressedBytes: number;
  /** Compressed tokens that are also held exactly. */
  readonly poolBytes: number;
  /** All of it. */
  readonly totalBytes: number;
  /** All tokens in binary16. */
  readonly f16Bytes: number;
  /** `f16Bytes / totalBytes`; 1 while empty. */
  readonly ratio: number;
}

/**
 * A KV cache as a method would have it, simulated: it holds in f32 what decoding gives, and counts what would be stored.
 * An append first compresses what is due of the tokens that are there, then adds its own, so the newest are always
 * attended exactly, and tokens one by one come to the same as at once. Tokens in the window are held as they were given,
 * and counted as binary16.
 */
export class MethodCache {
  /** What compresses. */
  readonly method: Method;
  readonly #config: Required<MethodCacheConfig>;
  readonly #layers: readonly MethodLayer[];

  /** @throws {KvarnError} `invalid-argument`, `unsupported-head-dim` */
  constructor(method: Method, config: MethodCacheConfig) {
    const { kvHeads, headDim, queryHeads, softmaxScale = 1 / Math.sqrt(headDim) } = config;
    checkInteger("headDim", headDim, 1, 65_536);
    checkInteger("kvHeads", kvHeads, 1, 65_536);
    const layers = checkInteger("layers", config.layers, 1, 4096);
    checkInteger("queryHeads", queryHeads, kvHeads, 65_536);
    if (queryHeads % kvHeads !== 0) {
      throw new KvarnError(
        "invalid-argument",
        `queryHeads must be a multiple of kvHeads (${kvHeads}), got ${queryHeads}`,
      );
    }
    if (!Number.isFinite(softmaxScale)) {
      throw new KvarnError(
        "invalid-argument",
        `softmaxScale must be a number, got ${describe(softmaxScale)}`,
      );
    }
    this.method = method;
    this.#config = { layers, queryHeads, kvHeads, headDim, softmaxScale };
    this.#layers = Array.from(
      { length: layers },
      (_, layer) => new MethodLayer(method, layer, kvHeads, headDim),
    );
  }

  /**
   * Compresses what is due, then adds tokens.
   * @param k `[tokens, kvHeads, headDim]`, after RoPE
   * @param v the same
   * @param tokens how many they are
   * @throws {KvarnError} `invalid-argument`, also where the method needs queries and none were attended yet;
   * `invalid-shape`, `non-finite`
   */
  append(layer: number, k: Float32Array, v: Float32Array, tokens: number): void {
    const { kvHeads, headDim } = this.#config;
    const target = this.#layer(layer);
    checkInteger("tokens", tokens, 1, 2 ** 31 - 1);
    for (const [name, rows] of [["k", k] as const, ["v", v] as const]) {
      checkRows(name, rows, tokens * kvHeads * headDim);
    }
    target.compressDue();
    target.add(k, v, tokens);
  }

  /**
   * Causal attention of the newest tokens.
   * @param q `[tokens, queryHeads, headDim]`, after RoPE
   * @param tokens how many they are
   * @returns `[tokens, queryHeads, headDim]`
   * @throws {KvarnError} `invalid-argument`, `invalid-shape`, `non-finite`
   */
  attend(layer: number, q: Float32Array, tokens: number): Float32Array {
    const { queryHeads, kvHeads, headDim, softmaxScale } = this.#config;
    const source = this.#layer(layer);
    checkInteger("tokens", tokens, 1, Math.max(1, source.length));
    if (source.length === 0)
      throw new KvarnError("invalid-shape", `layer ${layer} has no tokens to attend to`);
    checkRows("q", q, tokens * queryHeads * headDim);

    const perHead = queryHeads / kvHeads;
    const out = new Float32Array(q.length);
    const visible = Int32Array.from(
      { length: tokens * perHead },
      (_, row) => source.length - tokens + Math.floor(row / perHead) + 1,
    );
    for (let head = 0; head < kvHeads; head++) {
      // The query heads of one KV head lie side by side, token after token.
      const width = perHead * headDim;
      const at = (token: number) => (token * kvHeads + head) * width;
      const rows = new Float32Array(tokens * width);
      for (let token = 0; token < tokens; token++) {
        rows.set(q.subarray(at(token), at(token) + width), token * width);
      }
      source.noteQueries(head, rows);
      for (let i = 0; i < rows.length; i++) rows[i] *= softmaxScale;
      const { keys, values } = source.rows(head);
      const result = attendHead({ rows, visible }, keys, values, headDim);
      for (let token = 0; token < tokens; token++) {
        out.set(result.subarray(token * width, (token + 1) * width), at(token));
      }
    }
    return out;
  }

  /** Compresses now what the next append would. */
  flush(): void {
    for (const layer of this.#layers) layer.compressDue();
  }

  /** Tokens of a layer. */
  length(layer: number): number {
    return this.#layer(layer).length;
  }

  /** Which tokens of a layer are compressed. */
  compressedRange(layer: number): CompressedRange {
    return this.#layer(layer).range;
  }

  /** K and V as attention sees them, `[tokens, kvHeads, headDim]`. */
  read(layer: number): KeysAndValues {
    const { kvHeads, headDim } = this.#config;
    const source = this.#layer(layer);
    const k = new Float32Array(source.length * kvHeads * headDim);
    const v = new Float32Array(k.length);
    for (let head = 0; head < kvHeads; head++) {
      const { keys, values } = source.rows(head);
      for (let token = 0; token < source.length; token++) {
        const [from, to] = [token * headDim, (token * kvHeads + head) * headDim];
        k.set(keys.subarray(from, from + headDim), to);
        v.set(values.subarray(from, from + headDim), to);
      }
    }
    return { k, v };
  }

  /** What the method would store of all layers. */
  memory(): MethodMemory {
    const width = this.#config.kvHeads * this.#config.headDim;
    const sum = (count: (layer: MethodLayer) => number): number =>
      this.#layers.reduce((total, layer) => total + count(layer), 0);
    const values = 2 * width * sum(({ length }) => length);
    const compressedValues =
      width * sum(({ range: { start, keyEnd, valueEnd } }) => keyEnd - start + valueEnd - start);
    const exactBytes = 2 * (values - compressedValues);
    const compressedBytes = sum(({ codeBits }) => codeBits) / 8;
    const poolBytes = sum(({ poolBits }) => poolBits) / 8;
    const totalBytes = exactBytes + compressedBytes + poolBytes;
    const f16Bytes = 2 * values;
    const ratio = values === 0 ? 1 : f16Bytes / totalBytes;
    return { values, compressedValues, exactBytes, compressedBytes, poolBytes, totalBytes, f16Bytes, ratio };
  }

  /** Bits for an element of K or V, on average: window, pool, scales and all; 16 while empty. */
  bitsPerValue(): number {
    return 16 / this.memory().ratio;
  }

  #layer(layer: number): MethodLayer {
    return this.#layers[checkInteger("layer", layer, 0, this.#layers.length - 1)];
  }
}

function checkRows(name: string, rows: unknown, length: number): void {
  if (!(rows instanceof Float32Array)) {
    throw new KvarnError("invalid-argument", `${name} must be a Float32Array, got ${describe(rows)}`);
  }
  checkLength(name, rows, length);
  const bad = findNonFinite(rows);
  if (bad >= 0) throw new KvarnError("non-finite", `${name} is ${rows[bad]} at element ${bad}`);
}
