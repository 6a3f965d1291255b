/** What a method is, and how one is put together from quantizers and a pool of exact tokens. */
import { checkInteger, describe, KvarnError } from "../errors.js";
import { findNonFinite } from "../tensor.js";
import { OutlierPool, type PoolOptions } from "./outlier-pool.js";

/** Rows `[tokens, headDim]` of K or V as a cache gives them back, and what it stores for them. */
export interface StoredRows {
  /** What decoding gives. */
  readonly rows: Float32Array;
  /** Bits of codes, scales and zero points. */
  readonly bits: number;
}

/** Stores rows `[tokens, headDim]` of one KV head, of K or of V, and gives them back. */
export type Quantizer = (rows: Float32Array, headDim: number) => StoredRows;

/** One KV head of a cache. */
export interface HeadContext {
  /** Elements of one token's key, or value. */
  readonly headDim: number;
  /** Of the model. Without it, none of those that a method treats apart. */
  readonly layer?: number;
  /**
   * `[count, headDim]`: queries that read this head, those of all its query heads, after RoPE; for methods that need
   * them.
   */
  readonly queries?: Float32Array;
}

/** A group of tokens as a cache gives it back, and what it stores for it, all overhead included. */
export interface CompressedTokens {
  /** `[tokens, headDim]` */
  readonly k: Float32Array;
  /** `[tokens, headDim]` */
  readonly v: Float32Array;
  /** Bits of K: codes, scales, zero points. */
  readonly keyBits: number;
  /** Bits of V. */
  readonly valueBits: number;
  /** Bits of tokens that are also held exactly, with their positions. */
  readonly poolBits: number;
}

/** Compresses the tokens of one KV head, in the order in which they leave the window. */
export interface Compressor {
  /**
   * Compresses consecutive tokens, those that follow the ones of the last call.
   * @param k `[tokens, headDim]`, after RoPE; tokens are a multiple of `needs.tokens`
   * @param v the same
   * @throws {KvarnError} `invalid-shape`, `non-finite`
   */
  compress(k: Float32Array, v: Float32Array): CompressedTokens;
}

/** What a method takes. */
export interface MethodNeeds {
  /** Whether it must see queries. */
  readonly queries: boolean;
  /** Tokens are compressed in multiples of this. */
  readonly tokens: number;
  /** Head sizes must be multiples of this. */
  readonly headDim: number;
}

/** Which tokens a cache holds exactly, in binary16. */
export interface MethodWindow {
  /** The first tokens, for good. */
  readonly sink: number;
  /** The newest tokens at any time, beyond those of the newest append. */
  readonly recent: number;
  /** Tokens that leave the window together. */
  readonly block: number;
  /** The same as `recent`, of values alone, where they leave later than keys do, and one by one. */
  readonly recentValues: number;
}

/** A method of KV-cache compression at certain bits. */
export interface Method {
  /** What it is called here. */
  readonly name: string;
  /** Where it is from. */
  readonly source: string;
  /** Bits of one code of K. */
  readonly keyBits: number;
  /** Bits of one code of V. */
  readonly valueBits: number;
  /** What it takes. */
  readonly needs: MethodNeeds;
  /** What a cache of it holds exactly. */
  readonly window: MethodWindow;
  /**
   * Begins with one KV head.
   * @throws {KvarnError} `unsupported-head-dim`; `invalid-argument` where queries are missing
   */
  open(head: HeadContext): Compressor;
}

/** Bits per code. */
export interface MethodBits {
  /** Of K. */
  keyBits?: number;
  /** Of V. */
  valueBits?: number;
}

/** The parts of a method. */
export interface MethodParts {
  /** See {@link Method.name}. */
  readonly name: string;
  /** See {@link Method.source}. */
  readonly source: string;
  /** See {@link Method.keyBits}. */
  readonly keyBits: number;
  /** See {@link Method.valueBits}. */
  readonly valueBits: number;
  /** Default: no queries, any number of tokens, any head size. */
  readonly needs?: Partial<MethodNeeds>;
  /** Default: nothing, and one token at a time. */
  readonly window?: Partial<MethodWindow>;
  /** What stores the keys of one head. */
  readonly keys: (head: HeadContext) => Quantizer;
  /** What stores its values. */
  readonly values: (head: HeadContext) => Quantizer;
  /** Tokens to hold exactly besides; chosen among every `needs.tokens` tokens. Default: none. */
  readonly pool?: PoolOptions;
}

/** Puts a method together: keys and values each through a quantizer, and perhaps some tokens in a pool. */
export function compose(parts: MethodParts): Method {
  const { name, source, keyBits, valueBits, pool } = parts;
  const needs: MethodNeeds = { queries: false, tokens: 1, headDim: 1, ...parts.needs };
  const window: MethodWindow = { sink: 0, recent: 0, block: needs.tokens, recentValues: 0, ...parts.window };
  const open = (head: HeadContext): Compressor => {
    checkHead(name, needs, head);
    const keys = parts.keys(head);
    const values = parts.values(head);
    const traced = pool && (head.layer ?? Infinity) >= pool.exemptLayers ? new OutlierPool(pool) : undefined;
    return new ComposedCompressor(name, needs.tokens, head.headDim, keys, values, traced);
  };
  return { name, source, keyBits, valueBits, needs, window, open };
}

class ComposedCompressor implements Compressor {
  constructor(
    private readonly name: string,
    private readonly multiple: number,
    private readonly headDim: number,
    private readonly keys: Quantizer,
    private readonly values: Quantizer,
    private readonly pool: OutlierPool | undefined,
  ) {}

  compress(k: Float32Array, v: Float32Array): CompressedTokens {
    this.#check("k", k);
    this.#check("v", v);
    if (v.length !== k.length) {
      throw this.#error("invalid-shape", `v must have as many elements as k, ${k.length}, got ${v.length}`);
    }
    const { headDim, multiple } = this;
    const held = this.pool?.hold(k, v, headDim, multiple);
    const keys = this.keys(held?.k ?? k, headDim);
    const values = this.values(held?.v ?? v, headDim);
    held?.restore(keys.rows, values.rows);
    for (const [side, { rows }] of [["k", keys] as const, ["v", values] as const]) {
      if (findNonFinite(rows) < 0) continue;
      throw this.#error(
        "non-finite",
        `${side} is beyond 65504, the largest finite binary16, once compressed`,
      );
    }
    return {
      k: keys.rows,
      v: values.rows,
      keyBits: keys.bits,
      valueBits: values.bits,
      poolBits: held?.bits ?? 0,
    };
  }

  #check(side: string, rows: unknown): void {
    const { headDim, multiple } = this;
    if (!(rows instanceof Float32Array)) {
      throw this.#error("invalid-argument", `${side} must be a Float32Array, got ${describe(rows)}`);
    }
    const tokens = rows.length / headDim;
    if (tokens === 0 || !Number.isInteger(tokens / multiple)) {
      const allowed = multiple === 1 ? "whole tokens" : `a multiple of ${multiple} tokens`;
      throw this.#error(
        "invalid-shape",
        `${side} must hold ${allowed} of ${headDim} elements, got ${tokens}`,
      );
    }
    const bad = findNonFinite(rows);
    if (bad < 0) return;
    const where = `token ${Math.floor(bad / headDim)}, channel ${bad % headDim}`;
    throw this.#error("non-finite", `${side} is ${rows[bad]} at ${where}`);
  }

  #error(code: ConstructorParameters<typeof KvarnError>[0], message: string): KvarnError {
    return new KvarnError(code, `${this.name}: ${message}`);
  }
}

function checkHead(name: string, needs: MethodNeeds, { headDim, queries }: HeadContext): void {
  if (!Number.isInteger(headDim) || headDim <= 0 || headDim % needs.headDim !== 0) {
    throw new KvarnError(
      "unsupported-head-dim",
      `${name}: headDim must be a multiple of ${needs.headDim}, got ${describe(headDim)}`,
    );
  }
  if (!needs.queries) return;
  if (!(queries instanceof Float32Array) || queries.length === 0 || queries.length % headDim !== 0) {
    throw new KvarnError(
      "invalid-argument",
      `${name}: queries must be given, a Float32Array of rows of ${headDim} elements, got ${describe(queries)}`,
    );
  }
  const bad = findNonFinite(queries);
  if (bad >= 0) throw new KvarnError("non-finite", `${name}: queries are ${queries[bad]} at element ${bad}`);
}

/** Bits as they were asked for, or a method's usual ones, within what it takes. */
export function checkBits(
  name: string,
  { keyBits, valueBits }: MethodBits,
  usual: Required<MethodBits>,
  least: number,
  most: number,
): Required<MethodBits> {
  return {
    keyBits: checkInteger(`${name}: keyBits`, keyBits ?? usual.keyBits, least, most),
    valueBits: checkInteger(`${name}: valueBits`, valueBits ?? usual.valueBits, least, most),
  };
}
