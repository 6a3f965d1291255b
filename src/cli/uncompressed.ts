/**
 * The work that compression is compared with: attention over an uncompressed f32 cache, and one plain pass over a tile.
 * Both in strict SIMD WebAssembly (`bench/baseline`), on one thread, tuned as the product's own kernels are.
 */
import { KvarnError } from "../errors.js";
import { fromHex } from "../wasm/builds.js";
import { baselineWasm } from "./baseline-inlined.js";

/** One layer of a cache. */
export interface UncompressedShape {
  /** A multiple of kvHeads. */
  queryHeads: number;
  kvHeads: number;
  /** A multiple of 16. */
  headDim: number;
  /** Tokens to make room for. */
  capacity: number;
}

/** What `bench/baseline` exports; all pointers are bytes from the start of `memory`. */
interface Baseline {
  readonly memory: WebAssembly.Memory;
  /** Memory from here on is the caller's. */
  readonly heapStart: WebAssembly.Global;
  /** Keys and values take room for a multiple of so many tokens. */
  readonly BLOCK: WebAssembly.Global;
  readonly attend: (
    queries: number,
    out: number,
    keys: number,
    values: number,
    stride: number,
    tokens: number,
    headDim: number,
    kvHeads: number,
    group: number,
    scale: number,
  ) => void;
  readonly prefill: (
    queries: number,
    queryTokens: number,
    out: number,
    keys: number,
    values: number,
    stride: number,
    tokens: number,
    headDim: number,
    kvHeads: number,
    group: number,
    scale: number,
    scratch: number,
  ) => void;
  readonly storeKeys: Store;
  readonly storeValues: Store;
  readonly pass: (
    tile: number,
    columnScale: number,
    sum: number,
    sumOfSquares: number,
    rows: number,
    columns: number,
  ) => void;
}

/** Puts rows of one KV head, `stride` bytes apart, to where `attend` reads them, from token `at` on. */
type Store = (
  source: number,
  stride: number,
  target: number,
  at: number,
  tokens: number,
  headDim: number,
) => void;

const PAGE = 65_536;
const MAX_BYTES = 2 ** 32;
/** Elements of K or V that are handed over at a time. */
const STAGED = 131_072;

/** Compiled once, so that an instance finds the machine code that earlier ones have warmed up. */
let compiled: Promise<WebAssembly.Module> | undefined;

async function instantiate(): Promise<Baseline> {
  compiled ??= WebAssembly.compile(fromHex(baselineWasm));
  const { exports } = await WebAssembly.instantiate(await compiled);
  return exports as unknown as Baseline;
}

/** Hands out the memory of an instance, in cache lines, and grows it at the end. */
class Allocator {
  readonly #baseline: Baseline;
  #end: number;

  constructor(baseline: Baseline) {
    this.#baseline = baseline;
    this.#end = baseline.heapStart.value as number;
  }

  take(bytes: number): number {
    const start = Math.ceil(this.#end / 64) * 64;
    this.#end = start + bytes;
    return start;
  }

  grow(): void {
    const { memory } = this.#baseline;
    const pages = Math.ceil((this.#end - memory.buffer.byteLength) / PAGE);
    try {
      if (this.#end > MAX_BYTES) throw new RangeError("more than a 32-bit memory holds");
      if (pages > 0) memory.grow(pages);
    } catch (cause) {
      const size = Math.ceil(this.#end / 2 ** 20);
      throw new KvarnError("out-of-memory", `no ${size} MiB for uncompressed f32`, { cause });
    }
  }
}

/**
 * Makes an empty cache of one layer, K and V in f32. Its memory goes with it when it is no longer referenced.
 * @throws {KvarnError} `out-of-memory`
 */
export async function openUncompressed(shape: UncompressedShape): Promise<UncompressedCache> {
  return new UncompressedCache(await instantiate(), shape);
}

/**
 * How far the values lie from the keys, which take `bytes`. Beyond the processor's caches, in a multiple of 16 MiB: on
 * Zen 5 any other distance costs 12 %. Memory that lies between is never touched, so it is no memory.
 */
function apart(bytes: number): number {
  const unit = 2 ** 24;
  return bytes < unit ? bytes : Math.ceil(bytes / unit) * unit;
}

/** An uncompressed cache of one layer. Made by {@link openUncompressed}. */
export class UncompressedCache {
  readonly #baseline: Baseline;
  readonly #shape: UncompressedShape;
  readonly #capacity: number;
  readonly #staging: number;
  readonly #memory: Allocator;
  readonly #query: number;
  readonly #out: number;
  /** Where `prefill` puts up to so many query tokens, what it returns, and what it works in. */
  #many = { queryTokens: 0, queries: 0, out: 0, scratch: 0 };
  readonly #keys: number;
  readonly #values: number;
  /** Bytes of the keys, or the values, of one KV head. */
  readonly #stride: number;
  #length = 0;

  /** @internal Callers use {@link openUncompressed}. */
  constructor(baseline: Baseline, shape: UncompressedShape) {
    const { queryHeads, kvHeads, headDim, capacity } = shape;
    const block = baseline.BLOCK.value as number;
    const memory = new Allocator(baseline);
    this.#baseline = baseline;
    this.#memory = memory;
    this.#shape = shape;
    this.#capacity = Math.ceil(capacity / block) * block;
    this.#stride = this.#capacity * headDim * 4;
    this.#staging = memory.take(Math.max(STAGED, kvHeads * headDim) * 4);
    this.#query = memory.take(queryHeads * headDim * 4);
    this.#out = memory.take(queryHeads * headDim * 4);
    this.#keys = memory.take(apart(kvHeads * this.#stride));
    this.#values = memory.take(kvHeads * this.#stride);
    memory.grow();
  }

  /** Tokens in the cache. */
  get length(): number {
    return this.#length;
  }

  /** Forgets all tokens. */
  clear(): void {
    this.#length = 0;
  }

  /**
   * Adds tokens.
   * @param k `[tokens, kvHeads, headDim]`
   * @param v the same
   */
  append(k: Float32Array, v: Float32Array): void {
    const { kvHeads, headDim } = this.#shape;
    const width = kvHeads * headDim;
    const tokens = k.length / width;
    if (!Number.isInteger(tokens) || v.length !== k.length || this.#length + tokens > this.#capacity) {
      throw new RangeError(
        `k and v of ${k.length} and ${v.length} elements to ${this.#length} tokens of ${width} in a cache ` +
          `for ${this.#capacity}`,
      );
    }
    const step = Math.max(1, Math.floor(STAGED / width));
    for (let from = 0; from < tokens; from += step) {
      const to = Math.min(from + step, tokens);
      this.#store(this.#baseline.storeKeys, k.subarray(from * width, to * width), this.#keys);
      this.#store(this.#baseline.storeValues, v.subarray(from * width, to * width), this.#values);
      this.#length += to - from;
    }
  }

  /**
   * Attention of one token over all tokens, with the scale 1 / sqrt(headDim).
   * @param q `[queryHeads, headDim]`
   * @param out where to put the result
   * @returns `[queryHeads, headDim]`
   */
  attend(q: Float32Array, out = new Float32Array(q.length)): Float32Array {
    const { queryHeads, kvHeads, headDim } = this.#shape;
    if (q.length !== queryHeads * headDim || out.length !== q.length || this.#length === 0) {
      throw new RangeError(`q of ${q.length} and out of ${out.length} elements over ${this.#length} tokens`);
    }
    const { memory, attend } = this.#baseline;
    new Float32Array(memory.buffer, this.#query, q.length).set(q);
    attend(
      this.#query,
      this.#out,
      this.#keys,
      this.#values,
      this.#stride,
      this.#length,
      headDim,
      kvHeads,
      queryHeads / kvHeads,
      1 / Math.sqrt(headDim),
    );
    out.set(new Float32Array(memory.buffer, this.#out, out.length));
    return out;
  }

  /**
   * Causal attention of the newest tokens over all tokens, with the scale 1 / sqrt(headDim).
   * @param q `[queryTokens, queryHeads, headDim]`
   * @param out where to put the result
   * @returns `[queryTokens, queryHeads, headDim]`
   * @throws {KvarnError} `out-of-memory`
   */
  prefill(q: Float32Array, out = new Float32Array(q.length)): Float32Array {
    const { queryHeads, kvHeads, headDim } = this.#shape;
    const queryTokens = q.length / (queryHeads * headDim);
    const fits = Number.isInteger(queryTokens) && queryTokens > 0 && queryTokens <= this.#length;
    if (!fits || out.length !== q.length) {
      throw new RangeError(`q of ${q.length} and out of ${out.length} elements over ${this.#length} tokens`);
    }
    this.#makeRoom(queryTokens);
    const { memory, prefill } = this.#baseline;
    const many = this.#many;
    new Float32Array(memory.buffer, many.queries, q.length).set(q);
    prefill(
      many.queries,
      queryTokens,
      many.out,
      this.#keys,
      this.#values,
      this.#stride,
      this.#length,
      headDim,
      kvHeads,
      queryHeads / kvHeads,
      1 / Math.sqrt(headDim),
      many.scratch,
    );
    out.set(new Float32Array(memory.buffer, many.out, out.length));
    return out;
  }

  #makeRoom(queryTokens: number): void {
    if (queryTokens <= this.#many.queryTokens) return;
    const { queryHeads, kvHeads, headDim } = this.#shape;
    const bytes = queryTokens * queryHeads * headDim * 4;
    // The rows of one KV head, by fours, and their states.
    const rows = Math.ceil((queryTokens * queryHeads) / kvHeads / 4) * 4;
    const [queries, out] = [this.#memory.take(bytes), this.#memory.take(bytes)];
    const scratch = this.#memory.take(rows * (headDim + 2) * 4);
    this.#memory.grow();
    this.#many = { queryTokens, queries, out, scratch };
  }

  #store(store: Store, rows: Float32Array, target: number): void {
    const { kvHeads, headDim } = this.#shape;
    new Float32Array(this.#baseline.memory.buffer, this.#staging, rows.length).set(rows);
    const rowBytes = kvHeads * headDim * 4;
    const tokens = (rows.length * 4) / rowBytes;
    for (let head = 0; head < kvHeads; head++) {
      const source = this.#staging + head * headDim * 4;
      store(source, rowBytes, target + head * this.#stride, this.#length, tokens, headDim);
    }
  }
}

/** Tiles for {@link PlainPass}. */
export interface PlainTiles {
  /** A multiple of 4. */
  rows: number;
  /** A multiple of 4. */
  columns: number;
  /** `[count, rows, columns]` */
  tiles: Float32Array;
  /** What each column is multiplied by. */
  columnScale: Float32Array;
}

/**
 * Copies tiles to where {@link PlainPass.run} reads them.
 * @throws {KvarnError} `out-of-memory`
 */
export async function openPlainPass(tiles: PlainTiles): Promise<PlainPass> {
  return new PlainPass(await instantiate(), tiles);
}

/** The yardstick for encoding: one sweep over a tile. Made by {@link openPlainPass}. */
export class PlainPass {
  readonly #baseline: Baseline;
  readonly #rows: number;
  readonly #columns: number;
  readonly #tiles: number;
  readonly #columnScale: number;
  readonly #sum: number;
  readonly #sumOfSquares: number;

  /** @internal Callers use {@link openPlainPass}. */
  constructor(baseline: Baseline, { rows, columns, tiles, columnScale }: PlainTiles) {
    const memory = new Allocator(baseline);
    this.#baseline = baseline;
    this.#rows = rows;
    this.#columns = columns;
    this.#columnScale = memory.take(columns * 4);
    this.#sum = memory.take(rows * 4);
    this.#sumOfSquares = memory.take(rows * 4);
    this.#tiles = memory.take(tiles.byteLength);
    memory.grow();
    const { buffer } = baseline.memory;
    new Float32Array(buffer, this.#columnScale, columns).set(columnScale);
    new Float32Array(buffer, this.#tiles, tiles.length).set(tiles);
  }

  /** Multiplies the columns of one tile by their scales and sums up each row, and the squares of each row. */
  run(tile: number): void {
    const from = this.#tiles + tile * this.#rows * this.#columns * 4;
    this.#baseline.pass(from, this.#columnScale, this.#sum, this.#sumOfSquares, this.#rows, this.#columns);
  }

  /** What the last `run` found, `[rows]` each. */
  read(): { sum: Float32Array; sumOfSquares: Float32Array } {
    const { buffer } = this.#baseline.memory;
    return {
      sum: new Float32Array(buffer, this.#sum, this.#rows).slice(),
      sumOfSquares: new Float32Array(buffer, this.#sumOfSquares, this.#rows).slice(),
    };
  }
}
