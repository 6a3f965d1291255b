/// <reference lib="esnext.disposable" preserve="true" />
/** The engine that callers hold: one backend and everything that it can do. */
import type { Backend, Normalized, Packed } from "./backend.js";
import type { BackendInfo } from "./dispatch.js";
import { KvarnCache } from "./cache/cache.js";
import { readSavedCache } from "./cache/serialize.js";
import * as codec from "./codec.js";
import { type CacheConfig, resolveConfig } from "./config.js";
import { describe, KvarnError } from "./errors.js";
import * as kernels from "./kernels.js";
import type { Tensor } from "./tensor.js";
import type { AdapterInfo } from "./webgpu/index.js";

/**
 * An open engine. Made by `openKvarn`. Its functions take f32 or binary16 arrays, leave them as they are and return new
 * ones, or write to `out` where given.
 */
export class Kvarn {
  /** Which backend runs, and why. */
  readonly backend: BackendInfo;
  readonly #engine: Backend;
  readonly #caches = new Set<KvarnCache>();
  #disposed = false;

  /** @internal Callers use `openKvarn`. */
  constructor(engine: Backend, reason: string, adapter?: AdapterInfo) {
    this.#engine = engine;
    const info = { kind: engine.kind, variant: engine.variant, reason };
    this.backend = adapter ? { ...info, adapter } : info;
  }

  /**
   * Rotates rows by the orthonormal Walsh-Hadamard transform, its own inverse. Head sizes that are no power of two are
   * rotated in blocks of their largest power-of-two divisor.
   * @param x `[rows, headDim]`
   * @throws {KvarnError} `unsupported-head-dim`, `invalid-shape`, `non-finite`
   */
  async rotate(x: Tensor, options: { headDim: number; out?: Float32Array }): Promise<Float32Array> {
    return kernels.rotate(this.#open(), x, options);
  }

  /**
   * Dual-scale variance normalization of tiles (arXiv 2606.03458): column and row scales in turn, `iterations` times,
   * and of all steps the most balanced one. `balanced * rowScale * columnScale` is the tile.
   * @param tiles `[tiles, rows, columns]`; rows are channels for K and tokens for V
   * @param options `iterations`: 0 to 64, default 8
   * @throws {KvarnError} `invalid-argument`, `invalid-shape`, `non-finite`
   */
  async normalize(
    tiles: Tensor,
    options: kernels.TileOptions & { iterations?: number; out?: Partial<Normalized> },
  ): Promise<Normalized> {
    return kernels.normalize(this.#open(), tiles, options);
  }

  /**
   * Asymmetric round-to-nearest per row: `scale = (max - min) / (2^bits - 1)`, at least 1e-10, `zero = min`, codes the
   * nearest integers (ties to even) of `(x - zero) / scale` as a little-endian bit stream.
   * @param balanced `[tiles, rows, columns]`
   * @param options `bits`: 2, 3, 4, 5, 6 or 8
   * @throws {KvarnError} `invalid-argument`, `invalid-shape`, `non-finite`
   */
  async pack(
    balanced: Tensor,
    options: kernels.TileOptions & { bits: number; out?: Partial<Packed> },
  ): Promise<Packed> {
    return kernels.pack(this.#open(), balanced, options);
  }

  /**
   * The reverse of {@link pack}: `code * scale + zero`, or with `raw` the codes, one byte each.
   * @throws {KvarnError} `invalid-argument`, `invalid-shape`
   */
  unpack(
    packed: { codes: Uint8Array },
    options: kernels.UnpackOptions & { raw: true; out?: Uint8Array },
  ): Promise<Uint8Array>;
  unpack(
    packed: Packed,
    options: kernels.UnpackOptions & { raw?: false; out?: Float32Array },
  ): Promise<Float32Array>;
  async unpack(
    packed: Packed,
    options: kernels.UnpackOptions & { raw?: boolean; out?: Uint8Array | Float32Array },
  ): Promise<Uint8Array | Float32Array> {
    return kernels.unpack(
      this.#open(),
      packed,
      options as kernels.UnpackOptions & { raw?: false; out?: Float32Array },
    );
  }

  /**
   * Encodes whole tiles to records: rotation, normalization, rounding and packing in one.
   * @param k `[tokens, kvHeads, headDim]` after RoPE, tokens a multiple of the preset's group
   * @param v the same
   * @returns the records: those of one tile's KV heads after one another, tiles in token order
   * @throws {KvarnError} `unsupported-preset`, `unsupported-head-dim`, `invalid-argument`, `invalid-shape`,
   * `non-finite`, `out-of-memory`
   */
  async encode(k: Tensor, v: Tensor, options: codec.EncodeOptions): Promise<Uint8Array> {
    return codec.encode(this.#open(), k, v, options);
  }

  /**
   * What records hold, rotated back.
   * @throws {KvarnError} as {@link encode}, and `corrupt-data` for NaN or infinite scales
   */
  async decode(records: Uint8Array, options: codec.DecodeOptions): Promise<codec.KeysAndValues> {
    return codec.decode(this.#open(), records, options);
  }

  /**
   * Makes an empty cache.
   * @throws {KvarnError} `invalid-argument`, `unsupported-preset`, `unsupported-head-dim`, `out-of-memory`
   */
  createCache(config: CacheConfig): KvarnCache {
    return new KvarnCache(this.#open(), resolveConfig(config), this.#caches);
  }

  /**
   * Makes a cache of what `cache.serialize()` returned, on this or any other backend.
   * @throws {KvarnError} `corrupt-data`, `unsupported-version`, `out-of-memory`; `invalid-argument` where this backend lacks
   * an option of the cache
   */
  async restoreCache(bytes: Uint8Array): Promise<KvarnCache> {
    const engine = this.#open();
    return KvarnCache.restore(engine, readSavedCache(bytes), this.#caches);
  }

  /**
   * Moves a live cache to another engine, of any backend, byte for byte; one with `outlierTokens` to those of the CPU.
   * @param cache of this engine; disposed of when it has been moved, as it was otherwise
   * @returns the cache on `other`
   * @throws {KvarnError} `invalid-argument`, `out-of-memory`, and `disposed` for a cache that is not of this engine
   */
  async migrate(cache: KvarnCache, other: Kvarn): Promise<KvarnCache> {
    this.#open();
    if (!(cache instanceof KvarnCache)) {
      throw new KvarnError("invalid-argument", `cache must be a KvarnCache, got ${describe(cache)}`);
    }
    if (!(other instanceof Kvarn)) {
      throw new KvarnError(
        "invalid-argument",
        `other must be what openKvarn returns, got ${describe(other)}`,
      );
    }
    if (!this.#caches.has(cache)) throw new KvarnError("disposed", "cache is no open cache of this engine");
    const saved = await cache.save();
    const moved = await KvarnCache.restore(other.#open(), saved, other.#caches);
    cache.dispose();
    return moved;
  }

  /** Disposes of the engine and of all its caches. Every later call but this one fails with `disposed`. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const cache of [...this.#caches]) cache.dispose();
    this.#engine.dispose();
  }

  /** For `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }

  #open(): Backend {
    if (this.#disposed) throw new KvarnError("disposed", "this engine was disposed of");
    return this.#engine;
  }
}
