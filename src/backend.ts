/**
 * What an engine offers: the kernels and the memory for tiles. It knows no cache policy; the cache and the codec know
 * no engine. Arguments arrive checked. Whatever changes memory takes effect, or is in the engine's queue, when the
 * call returns; only what is read back is promised.
 */
import type { Encoder } from "./config.js";
import type { RecordLayout } from "./format.js";
import type { GpuTensor, TensorData } from "./tensor.js";

/** A GPU device, SIMD WebAssembly, or plain TypeScript. */
export type BackendKind = "webgpu" | "wasm" | "reference";

/** Whether a cache may hold so many more bytes that it does not use yet. */
export type Budget = (bytes: number) => boolean;

/** Tiles of `rows` x `columns`, row-major, one after another. */
export interface TileShape {
  readonly rows: number;
  readonly columns: number;
  readonly count: number;
}

/** The heads of one layer and how its tiles are encoded. */
export interface StoreShape {
  readonly kvHeads: number;
  readonly headDim: number;
  readonly layout: RecordLayout;
  readonly encoder: Encoder;
  /** Normalization steps. */
  readonly iterations: number;
}

/** What `kvarn.normalize` makes of tiles: `balanced * rowScale * columnScale` is the tile. */
export interface Normalized {
  /** `[count, rows, columns]` */
  balanced: Float32Array;
  /** `[count, rows]` */
  rowScale: Float32Array;
  /** `[count, columns]` */
  columnScale: Float32Array;
}

/** What `kvarn.pack` makes of tiles: `code * scale + zero` is about the value. */
export interface Packed {
  /** `[count, rows, columns * bits / 8]` bytes */
  codes: Uint8Array;
  /** `[count, rows]` */
  scale: Float32Array;
  /** `[count, rows]` */
  zero: Float32Array;
}

export interface Backend {
  readonly kind: BackendKind;
  readonly variant: string;
  /** Rotates rows of headDim into `out`; f32 in and out. `out` may be `x`. */
  rotate(x: Float32Array, headDim: number, out: Float32Array): Promise<void>;
  normalize(tiles: Float32Array, shape: TileShape, iterations: number, out: Normalized): Promise<void>;
  pack(balanced: Float32Array, shape: TileShape, bits: number, out: Packed): Promise<void>;
  /** Codes as one byte each. */
  unpackCodes(codes: Uint8Array, shape: TileShape, bits: number, out: Uint8Array): Promise<void>;
  /** `code * scale + zero`. */
  unpack(packed: Packed, shape: TileShape, bits: number, out: Float32Array): Promise<void>;
  /**
   * @param mayLeave asked where the store could take more than it needs now
   * @param beside a store of the same shape, whose blocks this one is to share
   */
  createStore(shape: StoreShape, mayLeave: Budget, beside?: Store): Store;
  /** Throws once the engine can do nothing more. */
  checkAlive(): void;
  /**
   * Runs `work`, a call's use of stores, as one unit: everything of it is in the engine's queue when this returns.
   * @param encoder where to record it instead, for the caller to submit before the next call
   * @returns what `work` returned; and where the engine cannot tell at once, when it has accepted all of it, or the
   * KvarnError that says why not
   */
  run<T>(work: () => T, encoder?: GPUCommandEncoder): { result: T; settled?: Promise<void> };
  /** How many tiles are worth encoding or decoding at once. */
  readonly tilesAtOnce: number;
  /** Throws `out-of-memory` when so many bytes more are more than the engine can ever address. */
  checkRoom(bytes: number): void;
  /** Bytes of memory that the engine holds for all its caches, in use or not. */
  heldBytes(): number;
  dispose(): void;
}

/**
 * Memory of one layer: for some tokens, all KV heads, K and V, either exact (rotated, binary16) or one tile's records; or for
 * the moments of queries, for each KV head the sum of the products of their channels, each query rotated and of length 1.
 * Counted by owners, so that forks can share it; shared blocks are not written to.
 */
export interface Block {
  readonly kind: "exact" | "record" | "moments";
  /** Tokens that it has room for; 0 for moments. */
  readonly capacity: number;
  /** Bytes that it takes of the engine's memory. */
  readonly bytes: number;
  /** How many caches hold it. */
  owners: number;
}

/** A run of visible tokens: `tokens` of `block` from its first on, the first at position `start`. */
export interface Segment {
  readonly block: Block;
  readonly start: number;
  readonly tokens: number;
}

/** New tokens of a call that go to one block: `tokens` of them, from token `from` of the call on. */
export interface WriteTarget {
  readonly block: Block;
  /** Where in the block. */
  readonly at: number;
  readonly from: number;
  readonly tokens: number;
}

/** A full tile of exact tokens, and where its records go. */
export interface TilePair {
  readonly exact: Block;
  readonly record: Block;
  /**
   * By KV head: tokens of the tile that stay exact elsewhere. The record is that of a tile that has the mean of the head's
   * other tokens, K and V, rounded to binary16, in place of each. Default: none.
   */
  readonly outliers?: readonly (readonly number[])[];
}

/** Tokens that a layer keeps exact beside its records, each for one KV head alone. */
export interface Outliers {
  /** By KV head: their positions, ascending. */
  readonly positions: readonly (readonly number[])[];
  /** Their K and V, rotated: binary16 bits, `[2 (K, V), headDim]` each, head after head. */
  readonly data: Uint16Array;
}

/** The queries of one attention call, and how they are scored. */
export interface Queries {
  /** Consecutive tokens that ask. */
  readonly queryTokens: number;
  /** Query heads; a multiple of the KV heads. */
  readonly queryHeads: number;
  /** Position of the first query token; the others follow. A query sees tokens up to its own position. */
  readonly position: number;
  /** A query sees so many tokens, its own the last. Infinity: all. */
  readonly slidingWindow: number;
  /** 0: none. */
  readonly softCap: number;
  /** `[queryHeads]` */
  readonly sinkLogits: Float32Array | undefined;
  /** Factor on `q . k`. */
  readonly softmaxScale: number;
}

/** One attention call over the tiles of a layer. */
export interface AttendRequest extends Queries {
  /** `[queryTokens, queryHeads, headDim]`, not rotated. */
  readonly q: TensorData | GpuTensor;
  /**
   * The visible encoded tiles. The same array as in the last call where they are the same; together with the exact ones
   * gapless from the first visible token to the last query's position.
   */
  readonly records: readonly Segment[];
  /** The visible exact tiles. */
  readonly exact: readonly Segment[];
  /** What stands for these tokens of the records. Default: none. */
  readonly outliers?: Outliers;
  /** Asked where the queries are to be added, too. Default: nowhere. */
  readonly moments?: () => Block;
  /** `[queryTokens, queryHeads, headDim]` */
  readonly out: Float32Array | GpuTensor;
}

/**
 * Tile memory for layers of one shape. What allocates, writes, copies, encodes, reads or attends is called within
 * `Backend.run`.
 */
export interface Store {
  /** Room for `capacity` tokens in binary16. Throws `out-of-memory`. */
  allocateExact(capacity: number): Block;
  /** Room for the records of one tile. Throws `out-of-memory`. */
  allocateRecord(): Block;
  free(block: Block): void;
  /** Throws `non-finite` before anything is allocated, where {@link write} cannot tell. */
  check?(k: TensorData | GpuTensor, v: TensorData | GpuTensor): void;
  /**
   * Rotates tokens of `k` and `v`, both `[tokens, kvHeads, headDim]`, rounds them to binary16 and puts them where the
   * targets say, whose blocks are consecutive tiles. Throws `non-finite` before the caller relies on any of it; other
   * tokens of the blocks stay as they are. What lies on a GPU is not checked.
   */
  write(targets: readonly WriteTarget[], k: TensorData | GpuTensor, v: TensorData | GpuTensor): void;
  /** Copies the first `tokens` tokens of one exact block to another, or all of one block of moments. */
  copy(source: Block, target: Block, tokens: number): void;
  /** @param moments of the queries seen, for `encoder: "refined"` */
  encode(tiles: readonly TilePair[], moments?: Block): void;
  /**
   * What {@link write}, {@link encode} and {@link readRecord} do with tiles, the tokens from `from` on, for engines that are
   * quicker at all of it at once. The blocks are room to work in; the records are to be copied before the next call.
   */
  encodeTokens?(
    tiles: readonly TilePair[],
    k: TensorData | GpuTensor,
    v: TensorData | GpuTensor,
    from: number,
  ): Uint8Array[];
  /** Room for moments, of no queries. Throws `out-of-memory`. */
  allocateMoments(): Block;
  /** Adds queries, `[tokens, queryHeads, headDim]`, not rotated. */
  addQueries(moments: Block, q: TensorData, queryHeads: number): void;
  /** `[kvHeads, headDim, headDim]`, of each the upper triangle. */
  readMoments(block: Block): Promise<Float32Array>;
  writeMoments(block: Block, data: Float32Array): void;
  /**
   * Of a full exact block, the sum of the magnitudes of each token's K, `[kvHeads, group]`: not rounded, so the same on
   * every engine. Missing where an engine keeps no outlier tokens.
   */
  keyNorms?(block: Block): Float64Array;
  /** What an exact block holds of one token for one KV head: binary16 bits, `[2 (K, V), headDim]`. */
  readHeadToken?(block: Block, head: number, token: number): Uint16Array;
  /** The first `tokens` tokens of an exact block: binary16 bits, `[tokens, 2 (K, V), kvHeads, headDim]`. */
  readExact(block: Block, tokens: number): Promise<Uint16Array>;
  writeExact(block: Block, data: Uint16Array): void;
  /** Records of all KV heads, unpadded. */
  readRecord(block: Block): Promise<Uint8Array>;
  writeRecord(block: Block, records: Uint8Array): void;
  /** What records hold, rotated back: `[blocks * group, kvHeads, headDim]` each. */
  decode(blocks: readonly Block[], k: Float32Array, v: Float32Array): Promise<void>;
  attend(request: AttendRequest): Promise<void>;
  /** Bytes that the engine holds for this store beyond its blocks. */
  readonly slackBytes: number;
  /** Gives as much of that back as it can. */
  trim(): void;
  /**
   * When what the present call has allocated is sure to be there, if it is not yet: until then the call may have to be
   * taken back.
   */
  readonly doubt: Promise<void> | undefined;
  /** Says that nothing more will be allocated; blocks that others hold stay. */
  dispose(): void;
}
