/// <reference lib="esnext.disposable" preserve="true" />
/**
 * The cache over all layers: what callers see. Layers keep the tiles; the kernels and the memory are the backend's.
 */
import type { Backend } from "../backend.js";
import { cacheBytes, type CacheBytes } from "../bytes.js";
import { checkScales, countTiles, type KeysAndValues, spreadRecords, tileRecords } from "../codec.js";
import { MAX_TOKENS, type ResolvedConfig } from "../config.js";
import { checkInteger, describe, KvarnError } from "../errors.js";
import { type RecordPadding, recordStride } from "../format.js";
import {
  asTensorData,
  checkGpuTensor,
  checkLength,
  checkOut,
  checkQueries,
  type GpuTensor,
  isGpuTensor,
  type Tensor,
  type TensorData,
} from "../tensor.js";
import { CacheLayer } from "./layer.js";
import { readTiles } from "./read.js";
import { visibleFrom } from "./schedule.js";
import { type SavedCache, writeSavedCache } from "./serialize.js";

/** What a cache holds and what it has taken for it. */
export interface CacheMemory extends CacheBytes {
  /**
   * Bytes of the engine's memory that this cache holds: what it uses, the room its newest tiles have left, and what
   * `capacity` set aside; and the outlier tokens, which lie outside the engine. Without `capacity` at most 1.25 times the
   * highest `totalBytes` so far. Memory shared with forks counts in each of them.
   */
  reservedBytes: number;
}

/** The most that a cache may hold for what it uses, as a factor. */
const RESERVE_LIMIT = 1.25;

/** Consecutive tokens of a layer. */
export interface TokenRange {
  /** Position of the first. */
  start: number;
  /** Position behind the last. */
  end: number;
}

/** How `append` and `attend` are recorded on a GPU. */
export interface CommandOptions {
  /**
   * Where to record the call instead of submitting it; of the engine's device. All tensors of the call must be on the GPU
   * then. It is recorded when the call's promise resolves; submit it before the next call on this engine.
   */
  commandEncoder?: GPUCommandEncoder;
}

/**
 * A compressed KV cache. Made by `kvarn.createCache`, `kvarn.restoreCache` and `cache.fork`. Calls take effect in the
 * order in which they are made, awaited or not, and have read their arguments when they return.
 */
export class KvarnCache {
  readonly #backend: Backend;
  readonly #config: ResolvedConfig;
  readonly #layers: readonly CacheLayer[];
  /** The engine's open caches; this one is among them until it is disposed of. */
  readonly #open: Set<KvarnCache>;
  /** Highest `totalBytes` so far. */
  #peakBytes = 0;
  /** Settles when all that was done so far without a promise of its own is. */
  #unsettled: Promise<void> = Promise.resolve();

  /** @internal Callers use `kvarn.createCache`. */
  constructor(backend: Backend, config: ResolvedConfig, open: Set<KvarnCache>, parent?: KvarnCache) {
    this.#backend = backend;
    this.#config = config;
    this.#open = open;
    this.#layers = config.layers.map((layer, i) => {
      const mayLeave = (bytes: number) => this.#mayLeave(bytes);
      const shape = { ...layer, encoder: config.encoder, iterations: config.iterations };
      const store = backend.createStore(shape, mayLeave, parent ? parent.#layers[i].store : undefined);
      return new CacheLayer(layer, store, config, mayLeave);
    });
    open.add(this);
    this.#orDispose(() => this.#checkOutlierTokens());
    const { capacity } = config;
    if (capacity > 0) {
      this.#orDispose(() => {
        backend.checkRoom(this.#layers.reduce((sum, layer) => sum + layer.bytesAside(capacity), 0));
        this.#runNow(() => this.#layers.forEach((layer) => layer.setAside(capacity)));
      });
    }
  }

  /** @internal Callers use `kvarn.restoreCache`. */
  static async restore(backend: Backend, saved: SavedCache, open: Set<KvarnCache>): Promise<KvarnCache> {
    const cache = new KvarnCache(backend, saved.config, open);
    cache.#orDispose(() => {
      cache.#runNow(() => cache.#layers.forEach((layer, i) => layer.load(saved.layers[i])));
    });
    void cache.#settle();
    try {
      await cache.#unsettled;
    } catch (error) {
      cache.dispose();
      throw error;
    }
    return cache;
  }

  /** How many layers. */
  get layers(): number {
    return this.#layers.length;
  }

  /** Tokens in a layer. */
  length(layer: number): number {
    return this.#layer(layer).length;
  }

  /**
   * Adds tokens to a layer, after RoPE. First encodes what is due: every full tile but the sink that ends at least
   * `exactWindow` tokens before the layer's present end. So the tokens of this call are attended exactly until the
   * next one.
   * @param k `[tokens, kvHeads, headDim]`. What lies on a GPU is not checked for NaN, infinities and vectors too long for
   * binary16.
   * @param v the same
   * @throws {KvarnError} `invalid-argument`, `invalid-shape`, `non-finite`, `out-of-memory`; nothing has changed then
   */
  async append(
    layer: number,
    k: Tensor | GpuTensor,
    v: Tensor | GpuTensor,
    options?: CommandOptions,
  ): Promise<void> {
    const state = this.#usable(layer);
    const { kvHeads, headDim } = state.config;
    const keys = this.#source("k", k, kvHeads, headDim);
    const { tokens } = keys;
    const values = this.#source("v", v, kvHeads, headDim, tokens);
    checkInteger("the layer's length", state.length + tokens, 0, MAX_TOKENS);
    const encoder = this.#encoder(options, keys.data, values.data);
    const times = state.timesUndone;
    await this.#run(() => state.append(keys.data, values.data, tokens), encoder);
    state.checkKept(times);
  }

  /**
   * Attention of the layer's newest tokens over all that they see.
   * @param q `[queryTokens, queryHeads, headDim]`, after RoPE: queries of the layer's last `queryTokens` positions,
   * each seeing the tokens up to its own
   * @param options `out`: where to put the result; on a GPU in f32
   * @returns `[queryTokens, queryHeads, headDim]`: `out`, or a new array
   * @throws {KvarnError} `invalid-argument`, `invalid-shape`, `non-finite`, `outside-window`, `out-of-memory`
   */
  attend(
    layer: number,
    q: Tensor | GpuTensor,
    options: CommandOptions & { out: GpuTensor },
  ): Promise<GpuTensor>;
  attend(
    layer: number,
    q: Tensor | GpuTensor,
    options?: CommandOptions & { out?: Float32Array },
  ): Promise<Float32Array>;
  async attend(
    layer: number,
    q: Tensor | GpuTensor,
    options?: CommandOptions & { out?: Float32Array | GpuTensor },
  ): Promise<Float32Array | GpuTensor> {
    const state = this.#usable(layer);
    const { queryHeads, headDim, slidingWindow, softCap, sinkLogits, softmaxScale } = state.config;
    const { data, tokens: queryTokens } = this.#source("q", q, queryHeads, headDim);
    if (queryTokens > state.length) {
      throw new KvarnError(
        "invalid-shape",
        `q holds ${queryTokens} tokens, but layer ${layer} holds ${state.length}: append their k and v first`,
      );
    }
    if (!isGpuTensor(data)) checkQueries("q", data, queryHeads, headDim, softmaxScale);
    const out = this.#target(options?.out, queryTokens, queryHeads * headDim);
    const encoder = this.#encoder(options, data, out);
    const position = state.length - queryTokens;
    const from = visibleFrom(position, slidingWindow);
    if (from < state.goneUntil) {
      throw new KvarnError(
        "outside-window",
        `the query at position ${position} sees tokens from ${from} on, but of layer ${layer} the window has let go ` +
          `those before ${state.goneUntil}: attend with fewer query tokens`,
      );
    }
    const shape = { queryTokens, queryHeads, position, ...state.segments(from) };
    const { outliers, moments } = state;
    // Queries are taken in when they are answered, which may be by what overwrites them.
    const overwrites = moments && !isGpuTensor(data) && !isGpuTensor(out) && data.buffer === out.buffer;
    const asked = overwrites ? data.slice() : data;
    const request = {
      q: asked,
      ...shape,
      outliers,
      moments,
      slidingWindow,
      softCap,
      sinkLogits,
      softmaxScale,
      out,
    };
    const times = state.timesUndone;
    await this.#run(() => state.store.attend(request), encoder);
    state.checkKept(times);
    return out;
  }

  /**
   * Encodes what the next append would encode: after a prompt, and before saving. It takes effect when the call returns.
   * @throws {KvarnError} `out-of-memory`; a layer is either done or as it was
   */
  async flush(): Promise<void> {
    this.#checkOpen();
    this.#backend.checkAlive();
    await this.#run(() => this.#layers.forEach((layer) => layer.flush()));
  }

  /**
   * Shortens every layer to `length` tokens. Possible cuts: anywhere in the sink or the tail, and at tile boundaries;
   * with a sliding window only where all that later queries see is still there.
   * @throws {KvarnError} `unsupported-length`, naming the possible cuts; nothing has changed then
   */
  truncate(length: number): void {
    this.#checkOpen();
    checkInteger("length", length, 0, MAX_TOKENS);
    this.#layers.forEach((layer, i) => layer.checkCut(length, i));
    for (const layer of this.#layers) layer.cut(length);
  }

  /** Forgets all tokens of all layers. */
  clear(): void {
    this.truncate(0);
  }

  /**
   * A second cache with the same tokens. What both hold is shared until one of them changes it, so a fork costs next
   * to nothing.
   */
  fork(): KvarnCache {
    this.#checkOpen();
    const fork = new KvarnCache(this.#backend, { ...this.#config, capacity: 0 }, this.#open, this);
    fork.#layers.forEach((layer, i) => layer.share(this.#layers[i]));
    fork.#unsettled = this.#unsettled;
    void fork.#settle();
    return fork;
  }

  /**
   * The whole cache as bytes, for `kvarn.restoreCache` on any backend; `docs/saved-cache.md` describes them.
   */
  async serialize(): Promise<Uint8Array> {
    const snapshot = this.fork();
    try {
      return writeSavedCache(await snapshot.#save());
    } finally {
      snapshot.dispose();
    }
  }

  /**
   * All records of a layer, those of one tile's KV heads after one another, tiles in token order; of which tokens
   * says {@link recordRange}.
   * @param options `padding`: how to space them, `"none"` or `"vllm"`
   * @throws {KvarnError} `invalid-argument` for a layer with outlier tokens, which are not in its records
   */
  async exportRecords(layer: number, options?: { padding?: RecordPadding }): Promise<Uint8Array> {
    const { counts, config } = this.#usable(layer);
    const { layout, kvHeads } = config;
    const stride = recordStride(layout, options?.padding);
    if (counts.outliers > 0) {
      throw new KvarnError(
        "invalid-argument",
        `layer ${layer} keeps ${counts.outliers} outlier tokens of its heads beside its records, which would be lost: ` +
          "serialize the cache, or make it without outlierTokens",
      );
    }
    const snapshot = this.fork();
    try {
      const tiles = await snapshot.#run(() => snapshot.#layers[layer].readRecords());
      const perTile = kvHeads * stride;
      const out = new Uint8Array(tiles.length * perTile);
      tiles.forEach((records, i) => {
        spreadRecords(records, out.subarray(i * perTile, (i + 1) * perTile), layout, kvHeads, stride);
      });
      return out;
    } finally {
      snapshot.dispose();
    }
  }

  /** The tokens, from `start` to before `end`, whose records {@link exportRecords} returns; the same when none. */
  recordRange(layer: number): TokenRange {
    return this.#layer(layer).recordRange;
  }

  /**
   * Adds whole tiles that are encoded already, by another cache, another backend or vLLM. The layer must be empty, or
   * hold the full sink and records alone: append the first `group` tokens, then import what follows them. In an empty
   * layer the first tile imported stands where the sink would be, encoded.
   * @param options `padding`: how they are spaced, `"none"` or `"vllm"`
   * @throws {KvarnError} `unsupported-length`, `invalid-shape`, `corrupt-data`, `out-of-memory`; nothing has changed
   */
  async importRecords(
    layer: number,
    records: Uint8Array,
    options?: { padding?: RecordPadding },
  ): Promise<void> {
    const state = this.#usable(layer);
    const { layout, kvHeads } = state.config;
    const stride = recordStride(layout, options?.padding);
    const count = countTiles(records, layout, kvHeads, stride);
    checkInteger("the layer's length", state.length + count * layout.group, 0, MAX_TOKENS);
    checkScales(records, layout, stride);
    state.checkImport(layer);
    const tiles = Array.from({ length: count }, (_, i) => tileRecords(records, i, layout, kvHeads, stride));
    await this.#run(() => state.import(tiles));
  }

  /**
   * K and V of all tokens of a layer, rotated back: those of records decoded, the others as binary16 holds them. For
   * engines that attend on their own.
   * @throws {KvarnError} `outside-window` where a sliding window has let tokens go
   */
  async read(layer: number): Promise<KeysAndValues> {
    const state = this.#usable(layer);
    if (state.goneUntil > 0) {
      throw new KvarnError(
        "outside-window",
        `of layer ${layer} the window has let go tokens before ${state.goneUntil}: it cannot be read as a whole`,
      );
    }
    const snapshot = this.fork();
    try {
      const tokens = await snapshot.#run(() => snapshot.#layers[layer].readTokens());
      return await readTiles(this.#backend, state.config, tokens);
    } finally {
      snapshot.dispose();
    }
  }

  /** What the cache holds now. */
  memory(): CacheMemory {
    this.#checkOpen();
    return { ...this.#bytes(), reservedBytes: this.#reservedBytes() };
  }

  /** Gives the memory back to the engine. Every later call but this one fails with `disposed`. */
  dispose(): void {
    if (this.#open.delete(this)) for (const layer of this.#layers) layer.dispose();
  }

  /** For `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }

  /** @internal Callers use `kvarn.migrate`. */
  async save(): Promise<SavedCache> {
    this.#checkOpen();
    const snapshot = this.fork();
    try {
      return await snapshot.#save();
    } finally {
      snapshot.dispose();
    }
  }

  async #save(): Promise<SavedCache> {
    const layers = await this.#run(() => Promise.all(this.#layers.map((layer) => layer.save())));
    return { config: this.#config, layers };
  }

  /** Runs what is there when its promise resolves. */
  async #run<T>(work: () => T, encoder?: GPUCommandEncoder): Promise<Awaited<T>> {
    const unsettled = this.#unsettled;
    const { result, settled } = this.#backend.run(work, encoder);
    if (!settled) void this.#settle();
    const [value] = await Promise.all([result, settled, unsettled]);
    // What the call has replaced is held until it is sure.
    if (settled) await this.#settle(encoder);
    return value;
  }

  /** Runs what has no promise of its own: the next call that has one reports what the engine says of it. */
  #runNow(work: () => void): void {
    const { settled } = this.#backend.run(work);
    this.#unsettled = Promise.all([this.#unsettled, settled]).then(() => {});
    this.#unsettled.catch(() => {});
  }

  /**
   * A tensor of whole tokens that a call gets.
   * @param asK how many, where k has said so already
   */
  #source(
    name: string,
    value: unknown,
    heads: number,
    headDim: number,
    asK?: number,
  ): { data: TensorData | GpuTensor; tokens: number } {
    const width = heads * headDim;
    const checkAsK = (length: number): void => {
      if (asK !== undefined) checkLength(name, { length }, asK * width, ", as k does");
    };
    if (isGpuTensor(value)) {
      this.#checkGpu(name);
      const data = checkGpuTensor(name, value, width);
      checkAsK(data.tokens * width);
      return { data, tokens: data.tokens };
    }
    const data = asTensorData(name, value);
    checkAsK(data.length);
    return { data, tokens: countTokens(name, data, heads, headDim) };
  }

  /** Where the result of an attention goes. */
  #target(value: unknown, tokens: number, width: number): Float32Array | GpuTensor {
    if (!isGpuTensor(value)) return checkOut("out", value, tokens * width);
    this.#checkGpu("out");
    const out = checkGpuTensor("out", value, width);
    if (out.type !== "f32")
      throw new KvarnError("invalid-argument", `out.type must be "f32", got ${describe(out.type)}`);
    if (out.tokens !== tokens)
      throw new KvarnError("invalid-shape", `out.tokens must be ${tokens}, as q has, got ${out.tokens}`);
    return out;
  }

  #checkGpu(name: string): void {
    if (this.#backend.kind === "webgpu") return;
    throw new KvarnError(
      "invalid-argument",
      `${name} is a tensor on a GPU; this engine's backend is ${this.#backend.kind}`,
    );
  }

  #encoder(
    options: CommandOptions | undefined,
    ...tensors: (TensorData | GpuTensor)[]
  ): GPUCommandEncoder | undefined {
    const encoder = options?.commandEncoder;
    if (encoder === undefined) return undefined;
    this.#checkGpu("commandEncoder");
    if (tensors.every(isGpuTensor)) return encoder;
    throw new KvarnError(
      "invalid-argument",
      "with a commandEncoder all tensors of the call, its out included, must be on the GPU",
    );
  }

  #checkOutlierTokens(): void {
    if (this.#config.outlierTokens === 0 || this.#layers.every(({ store }) => "keyNorms" in store)) return;
    throw new KvarnError(
      "invalid-argument",
      `outlierTokens is ${this.#config.outlierTokens}, but the ${this.#backend.kind} backend keeps none: ` +
        '"wasm" and "reference" do',
    );
  }

  /** A layer, for more than its length. */
  #usable(index: number): CacheLayer {
    this.#checkOpen();
    this.#backend.checkAlive();
    return this.#layer(index);
  }

  #layer(index: number): CacheLayer {
    this.#checkOpen();
    return this.#layers[checkInteger("layer", index, 0, this.#layers.length - 1)];
  }

  #checkOpen(): void {
    if (!this.#open.has(this)) throw new KvarnError("disposed", "this cache was disposed of");
  }

  /** Runs a step of making a cache; where it fails, nothing of the cache remains. */
  #orDispose(step: () => void): void {
    try {
      step();
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Whether `bytes` more may lie unused: as much as keeps within the limit by what the cache holds now. */
  #mayLeave(bytes: number): boolean {
    if (this.#config.capacity > 0) return true;
    const { totalBytes } = this.#bytes();
    return this.#reservedBytes() + bytes <= RESERVE_LIMIT * totalBytes;
  }

  /** Keeps to the limit where cuts have left much room in some layers and others have grown since. */
  async #settle(encoder?: GPUCommandEncoder): Promise<void> {
    this.#peakBytes = Math.max(this.#peakBytes, this.#bytes().totalBytes);
    // Nothing may come before what a caller has yet to submit: the next call sees to it.
    if (encoder || !this.#open.has(this) || this.#config.capacity > 0) return;
    const spare = this.#layers.reduce((sum, layer) => sum + layer.store.slackBytes, 0);
    if (spare > (RESERVE_LIMIT - 1) * this.#bytes().totalBytes) await this.#trim("trimStore");
    if (this.#reservedBytes() <= RESERVE_LIMIT * this.#peakBytes) return;
    await this.#trim("trimTile");
    await this.#trim("trimStore");
  }

  /** Whatever comes of it: what called this has taken effect. */
  async #trim(what: "trimTile" | "trimStore"): Promise<void> {
    try {
      const { settled } = this.#backend.run(() => this.#layers.forEach((layer) => layer[what]()));
      if (settled) await settled;
    } catch (error) {
      if (!(error instanceof KvarnError)) throw error;
    }
  }

  #bytes(): CacheBytes {
    return cacheBytes(
      this.#config,
      this.#layers.map((layer) => layer.counts),
    );
  }

  #reservedBytes(): number {
    return this.#layers.reduce((sum, layer) => sum + layer.reservedBytes, 0);
  }
}

function countTokens(name: string, data: TensorData, heads: number, headDim: number): number {
  const tokens = data.length / (heads * headDim);
  if (!Number.isInteger(tokens) || tokens === 0) {
    throw new KvarnError(
      "invalid-shape",
      `${name} must hold whole tokens of ${heads} heads x ${headDim} channels, at least one, got ${data.length} elements`,
    );
  }
  return tokens;
}
