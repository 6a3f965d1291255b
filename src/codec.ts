/** Tensors to records and back, on any backend. */
import type { Backend, Block, Store } from "./backend.js";
import { checkEncoder, checkIterations, checkKvHeads, checkQueryHeads, type Encoder } from "./config.js";
import { describe, KvarnError } from "./errors.js";
import {
  checkHeadDim,
  findBadScale,
  parsePreset,
  recordLayout,
  type RecordLayout,
  type RecordPadding,
  recordStride,
  respaceRecords,
} from "./format.js";
import { asTensorData, checkLength, checkOut, checkQueries, type Tensor, type TensorData } from "./tensor.js";

/** What records hold. */
export interface RecordOptions {
  /** Default `k4v2_g128`. */
  preset?: string;
  /** Key/value heads; a record holds a tile of one. */
  kvHeads: number;
  /** A multiple of 16 from 16 to 512. */
  headDim: number;
  /** Default `"none"`; `"vllm"`: spaced as vLLM's cache spaces them. */
  padding?: RecordPadding;
}

/** How `kvarn.encode` encodes. */
export interface EncodeOptions extends RecordOptions {
  /** Steps of the normalization: 0 (plain rounding) to 64. Default 8. */
  iterations?: number;
  /**
   * `"refined"`: more exactly, for a few times the work. Default `"strict"`: byte for byte what vLLM's KVarN makes.
   */
  encoder?: Encoder;
  /**
   * `[queries, queryHeads, headDim]`, after RoPE: some of those that are to read K, for `encoder: "refined"`. Query head h
   * reads KV head `floor(h / (queryHeads / kvHeads))`.
   */
  queries?: Tensor;
  /** Of `queries`; a multiple of kvHeads. Default: kvHeads. */
  queryHeads?: number;
  /** Where to put the records; exactly as long as they are. */
  out?: Uint8Array;
}

/** Keys and values: `[tokens, kvHeads, headDim]` each. */
export interface KeysAndValues {
  /** Keys. */
  k: Float32Array;
  /** Values. */
  v: Float32Array;
}

/** How `kvarn.decode` decodes. */
export interface DecodeOptions extends RecordOptions {
  /** Where to put K and V. */
  out?: KeysAndValues;
}

/** See `Kvarn.encode`. */
export async function encode(
  backend: Backend,
  k: Tensor,
  v: Tensor,
  options: EncodeOptions,
): Promise<Uint8Array> {
  const { layout, kvHeads, stride } = checkRecordOptions(options);
  const iterations = checkIterations(options.iterations);
  const encoder = checkEncoder(options.encoder);
  const kData = asTensorData("k", k);
  const vData = asTensorData("v", v);
  const perTile = layout.group * kvHeads * layout.headDim;
  const tiles = kData.length / perTile;
  if (!Number.isInteger(tiles) || tiles === 0) {
    throw new KvarnError(
      "invalid-shape",
      `k must hold whole tiles of ${layout.group} tokens x ${kvHeads} heads x ${layout.headDim} channels ` +
        `(${perTile} elements each), got ${kData.length}`,
    );
  }
  checkLength("v", vData, kData.length, ", as k does");
  const out = checkBytes("out", options.out, tiles * kvHeads * stride);
  const queries = readQueries(options, layout.headDim, kvHeads, encoder);
  const { tilesAtOnce } = backend;
  // `out` stays as it is should a late tile turn out not to be finite.
  const records = tiles <= tilesAtOnce || out !== options.out ? out : new Uint8Array(out.length);

  const shape = { kvHeads, headDim: layout.headDim, layout, encoder, iterations };
  const store = backend.createStore(shape, () => false);
  const { group } = layout;
  const put = (tile: number, record: Uint8Array): void => {
    const target = records.subarray(tile * kvHeads * stride, (tile + 1) * kvHeads * stride);
    spreadRecords(record, target, layout, kvHeads, stride);
  };
  store.check?.(kData, vData);
  const moments = queries && addQueries(backend, store, queries);
  const work = async (exact: readonly Block[], blocks: readonly Block[], first: number): Promise<void> => {
    const pairs = exact.map((block, i) => ({ exact: block, record: blocks[i] }));
    if (store.encodeTokens && encoder === "strict") {
      store.encodeTokens(pairs, kData, vData, first * group).forEach((record, i) => put(first + i, record));
      return;
    }
    const targets = exact.map((block, i) => {
      return { block, at: 0, from: (first + i) * group, tokens: group };
    });
    store.write(targets, kData, vData);
    store.encode(pairs, moments);
    const read = await Promise.all(blocks.map((block) => store.readRecord(block)));
    read.forEach((record, i) => put(first + i, record));
  };
  try {
    await inBatches(backend, store, tiles, group, work);
  } finally {
    if (moments) store.free(moments);
  }
  if (records !== out) out.set(records);
  return out;
}

/** See `Kvarn.decode`. */
export async function decode(
  backend: Backend,
  records: Uint8Array,
  options: DecodeOptions,
): Promise<{ k: Float32Array; v: Float32Array }> {
  const { layout, kvHeads, stride } = checkRecordOptions(options);
  const tiles = countTiles(records, layout, kvHeads, stride);
  checkScales(records, layout, stride);
  const length = tiles * layout.group * kvHeads * layout.headDim;
  const k = checkOut("out.k", options.out?.k, length);
  const v = checkOut("out.v", options.out?.v, length);

  const tileAt = (tile: number): Uint8Array => tileRecords(records, tile, layout, kvHeads, stride);
  await decodeTiles(backend, { kvHeads, layout }, tiles, tileAt, k, v);
  return { k, v };
}

/**
 * Decodes the records of `tiles` tiles.
 * @param recordsOf a tile's records, unpadded and with finite scales
 * @param k `[tiles * group, kvHeads, headDim]`
 * @param v the same
 */
export async function decodeTiles(
  backend: Backend,
  { kvHeads, layout }: { readonly kvHeads: number; readonly layout: RecordLayout },
  tiles: number,
  recordsOf: (tile: number) => Uint8Array,
  k: Float32Array,
  v: Float32Array,
): Promise<void> {
  const shape = { kvHeads, headDim: layout.headDim, layout, encoder: "strict" as const, iterations: 0 };
  const store = backend.createStore(shape, () => false);
  const perTile = layout.group * kvHeads * layout.headDim;
  await inBatches(backend, store, tiles, 0, async (_, blocks, first) => {
    blocks.forEach((block, i) => store.writeRecord(block, recordsOf(first + i)));
    const [from, to] = [first * perTile, (first + blocks.length) * perTile];
    await store.decode(blocks, k.subarray(from, to), v.subarray(from, to));
  });
}

/** How many tiles of `kvHeads` records lie in `records`; throws unless they are whole and at least one. */
export function countTiles(records: unknown, layout: RecordLayout, kvHeads: number, stride: number): number {
  if (!(records instanceof Uint8Array)) {
    throw new KvarnError("invalid-argument", `records must be a Uint8Array, got ${describe(records)}`);
  }
  const tiles = records.length / (kvHeads * stride);
  if (!Number.isInteger(tiles) || tiles === 0) {
    throw new KvarnError(
      "invalid-shape",
      `records must hold whole tiles of ${kvHeads} records of ${stride} bytes, got ${records.length} bytes`,
    );
  }
  return tiles;
}

/** Refuses records with a NaN or infinite scale. */
export function checkScales(records: Uint8Array, layout: RecordLayout, stride: number): void {
  for (let start = 0; start < records.length; start += stride) {
    const bad = findBadScale(records.subarray(start, start + layout.bytes), layout);
    if (bad >= 0) {
      throw new KvarnError(
        "corrupt-data",
        `record ${start / stride} holds a scale at byte ${bad} that is NaN or infinite`,
      );
    }
  }
}

/** The records of one tile, without padding. */
export function tileRecords(
  records: Uint8Array,
  tile: number,
  layout: RecordLayout,
  kvHeads: number,
  stride: number,
): Uint8Array {
  const padded = records.subarray(tile * kvHeads * stride, (tile + 1) * kvHeads * stride);
  if (stride === layout.bytes) return padded;
  const plain = new Uint8Array(kvHeads * layout.bytes);
  return respaceRecords(padded, stride, plain, layout.bytes, kvHeads, layout.bytes);
}

/** Puts the records of one tile into `target`, padding zeroed. */
export function spreadRecords(
  records: Uint8Array,
  target: Uint8Array,
  layout: RecordLayout,
  kvHeads: number,
  stride: number,
): void {
  if (stride > layout.bytes) target.fill(0);
  respaceRecords(records, layout.bytes, target, stride, kvHeads, layout.bytes);
}

function checkRecordOptions(options: RecordOptions): {
  layout: RecordLayout;
  kvHeads: number;
  stride: number;
} {
  if (typeof options !== "object" || options === null) {
    throw new KvarnError("invalid-argument", `options must be an object, got ${describe(options)}`);
  }
  const headDim = checkHeadDim(options.headDim);
  const layout = recordLayout(parsePreset(options.preset), headDim);
  return {
    layout,
    kvHeads: checkKvHeads(options.kvHeads, headDim),
    stride: recordStride(layout, options.padding),
  };
}

/** Queries to encode by. */
interface GivenQueries {
  readonly q: TensorData;
  readonly queryHeads: number;
}

function readQueries(
  { queries, queryHeads: heads }: EncodeOptions,
  headDim: number,
  kvHeads: number,
  encoder: Encoder,
): GivenQueries | undefined {
  if (queries === undefined) return undefined;
  if (encoder === "strict") {
    throw new KvarnError(
      "invalid-argument",
      'queries are for encoder: "refined"; the strict one has no use for them',
    );
  }
  const queryHeads = checkQueryHeads(heads ?? kvHeads, kvHeads);
  const q = asTensorData("queries", queries);
  const perToken = queryHeads * headDim;
  if (q.length === 0 || q.length % perToken !== 0) {
    throw new KvarnError(
      "invalid-shape",
      `queries must hold whole tokens of ${queryHeads} heads x ${headDim} channels, at least one, got ${q.length} elements`,
    );
  }
  checkQueries("queries", q, queryHeads, headDim, 1);
  return { q, queryHeads };
}

function addQueries(backend: Backend, store: Store, { q, queryHeads }: GivenQueries): Block {
  return backend.run(() => {
    const moments = store.allocateMoments();
    try {
      store.addQueries(moments, q, queryHeads);
    } catch (error) {
      store.free(moments);
      throw error;
    }
    return moments;
  }).result;
}

function checkBytes(name: string, value: unknown, length: number): Uint8Array {
  if (value === undefined) return new Uint8Array(length);
  if (!(value instanceof Uint8Array)) {
    throw new KvarnError("invalid-argument", `${name} must be a Uint8Array, got ${describe(value)}`);
  }
  checkLength(name, value, length);
  return value;
}

/**
 * Runs `work` for batches of tiles, with an exact block (of `group` tokens; none if 0) and a record block for each. What
 * `work` does before it first waits is one unit for the engine.
 */
async function inBatches(
  backend: Backend,
  store: Store,
  tiles: number,
  group: number,
  work: (exact: readonly Block[], records: readonly Block[], first: number) => Promise<void>,
): Promise<void> {
  const blocks: Block[] = [];
  const allocate = (count: number, make: () => Block): Block[] =>
    Array.from({ length: count }, () => {
      const block = make();
      blocks.push(block);
      return block;
    });
  try {
    const atOnce = Math.min(tiles, backend.tilesAtOnce);
    let exact: Block[] = [];
    let records: Block[] = [];
    for (let first = 0; first < tiles; first += atOnce) {
      const { result, settled } = backend.run(() => {
        if (first === 0) {
          exact = allocate(group === 0 ? 0 : atOnce, () => store.allocateExact(group));
          records = allocate(atOnce, () => store.allocateRecord());
        }
        const count = Math.min(atOnce, tiles - first);
        return work(exact.slice(0, count), records.slice(0, count), first);
      });
      await Promise.all([result, settled]);
    }
  } finally {
    for (const block of blocks) store.free(block);
    store.dispose();
  }
}
