/** What an implementation of the method shows to the suite. */
import type { Normalized, Packed } from "../backend.js";
import type { LayerConfig } from "../config.js";

/** A value, at once or later. */
export type Awaitable<T> = T | Promise<T>;

/** What records hold. */
export interface RecordShape {
  /** `k{bits of K}v{bits of V}_g{tokens per tile}` */
  readonly preset: string;
  /** Heads of K and V: so many records a tile. */
  readonly kvHeads: number;
  /** Channels of a head. */
  readonly headDim: number;
}

/** Tokens of K and V, `[tokens, kvHeads, headDim]` each, not rotated. */
export interface TokenArrays {
  /** The keys, after RoPE. */
  readonly k: Float32Array;
  /** The values. */
  readonly v: Float32Array;
}

/** One attention over a sink, records and a tail, in this order of positions. */
export interface AttendCall extends LayerConfig {
  /** Of the records. */
  readonly preset: string;
  /** Exact tokens before the records: one tile, or none. The implementation rotates and rounds them. */
  readonly sink: TokenArrays;
  /** Whole tiles: the records of one tile's KV heads after one another, tiles in token order. */
  readonly records: Uint8Array;
  /** Exact tokens behind the records, at least as many as there are queries, or none. */
  readonly tail: TokenArrays;
  /** `[queries, queryHeads, headDim]`, of the last positions, not rotated. */
  readonly q: Float32Array;
}

/** How a cache is made; every layer says its own heads. */
export interface CacheCall {
  /** `k{bits of K}v{bits of V}_g{tokens per tile}` */
  readonly preset: string;
  /** Of the normalization. */
  readonly iterations: number;
  /** Newest tokens that are kept exact beyond those of the last append. */
  readonly exactWindow: number;
  /** From the first to the last. */
  readonly layers: readonly LayerConfig[];
}

/** A cache. What it lacks is not covered. */
export interface CacheUnderTest {
  /** Adds tokens, `[tokens, kvHeads, headDim]` each. Throws, and changes nothing, where they hold a NaN. */
  append(layer: number, k: Float32Array, v: Float32Array): Awaitable<unknown>;
  /** Attention of the layer's newest tokens, `[queries, queryHeads, headDim]`. */
  attend(layer: number, q: Float32Array): Awaitable<Float32Array>;
  /** Tokens in a layer. */
  length(layer: number): Awaitable<number>;
  /** Encodes what the next append would. */
  flush?(): Awaitable<unknown>;
  /** Shortens every layer. Throws, and changes nothing, where an encoded tile would have to be cut. */
  truncate?(length: number): Awaitable<unknown>;
  /** A second cache with the same tokens, which goes its own way from there. */
  fork?(): Awaitable<CacheUnderTest>;
  /** The cache as bytes for {@link ConformanceAdapter.restoreCache}. */
  serialize?(): Awaitable<Uint8Array>;
  /** The records of a layer's encoded tiles, unpadded, in token order. */
  exportRecords?(layer: number): Awaitable<Uint8Array>;
  /** Gives back what it holds. */
  dispose?(): Awaitable<unknown>;
}

/**
 * An implementation. `encode` and `decode` are required; what else it lacks is reported as not covered. Functions may be
 * synchronous or not, and leave their arguments as they are.
 */
export interface ConformanceAdapter {
  /** Whether attention computes in f32 throughout: its error is then held to 1e-5 instead of 1e-3. */
  readonly f32Attention?: boolean;
  /** Whole tiles to records. Throws where an element is not finite, or a rotated one too large for binary16. */
  encode(
    k: Float32Array,
    v: Float32Array,
    options: RecordShape & { readonly iterations: number },
  ): Awaitable<Uint8Array>;
  /** Records to K and V, rotated back. Throws where a scale is NaN or infinite. */
  decode(records: Uint8Array, options: RecordShape): Awaitable<TokenArrays>;
  /** Rotates rows of `headDim`. */
  rotate?(x: Float32Array, options: { readonly headDim: number }): Awaitable<Float32Array>;
  /** Normalizes one tile. */
  normalize?(
    tile: Float32Array,
    options: { readonly rows: number; readonly columns: number; readonly iterations: number },
  ): Awaitable<Normalized>;
  /** Rounds and packs one tile. */
  pack?(
    tile: Float32Array,
    options: { readonly rows: number; readonly columns: number; readonly bits: number },
  ): Awaitable<Packed>;
  /** Attention, `[queries, queryHeads, headDim]`. */
  attend?(call: AttendCall): Awaitable<Float32Array>;
  /** Makes an empty cache. */
  createCache?(config: CacheCall): Awaitable<CacheUnderTest>;
  /** Makes a cache of what {@link CacheUnderTest.serialize} returned. */
  restoreCache?(bytes: Uint8Array): Awaitable<CacheUnderTest>;
}
