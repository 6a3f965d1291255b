/** What the tests of the cache share: engines, tokens, and an attention of its own over what a cache has saved. */
import { describe, expect } from "vitest";
import {
  type CacheConfig,
  type Kvarn,
  type KvarnCache,
  KvarnError,
  type KvarnErrorCode,
  parsePreset,
  type RecordLayout,
  recordLayout,
} from "../../src/index.js";
import type { Backend } from "../../src/backend.js";
import { Kvarn as KvarnOn } from "../../src/kvarn.js";
import { rotationBlock } from "../../src/format.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { referenceBackend } from "../../src/reference/index.js";
import { openWasmBackend } from "../../src/wasm/index.js";
import { openWebGpuBackend } from "../../src/webgpu/index.js";
import { relativeError } from "../../src/conformance/compare.js";
import { decodePlainly } from "../../src/conformance/record.js";
import { hasGpu, isChosen, openEngines, sharedDevice } from "./engines.js";
import { randomArray, randomIntegers } from "./random.js";

// Nobody disposes of them: a worker's test files have them in common.
const engines = await openEngines();

/** The engines that run here, for tests across two of them. */
export const namedEngines = engines.map(
  (engine) => [`${engine.backend.kind} ${engine.backend.variant}`, engine] as const,
);

/** Describes the same for every backend and variant that runs here. */
export function describeEngines(title: string, suite: (kvarn: Kvarn) => void): void {
  describe.each(namedEngines)(`${title}, %s`, (_, kvarn) => suite(kvarn));
}

/** An engine of which one can see what memory it holds. The caller disposes of it. */
export interface WatchedEngine {
  readonly kvarn: Kvarn;
  /** Bytes of memory that the engine holds for all its caches, in use or not. */
  readonly heldBytes: () => number;
}

/** Makes a watched engine by the name of its backend. */
export const watchedEngines = (
  [
    ["reference", async () => watch(referenceBackend())],
    ["wasm", async () => watch((await openWasmBackend({ variant: "strict" })).engine)],
    ["webgpu", async () => watch((await openWebGpuBackend({ device: sharedDevice() })).engine)],
  ] as readonly (readonly [string, () => Promise<WatchedEngine>])[]
).filter(([name]) => isChosen(name) && (name !== "webgpu" || hasGpu));

function watch(backend: Backend): WatchedEngine {
  return { kvarn: new KvarnOn(backend, "watched by a test"), heldBytes: () => backend.heldBytes() };
}

export interface HeadShape {
  queryHeads: number;
  kvHeads: number;
  headDim: number;
}

/** K and V of some tokens. */
export interface Tokens {
  readonly count: number;
  readonly k: Float32Array;
  readonly v: Float32Array;
  /** Those from `from` to before `to`. */
  slice(from: number, to: number): [k: Float32Array, v: Float32Array];
  /** The first `count` of them. */
  of(count: number): Tokens;
}

export function makeTokens(
  { kvHeads, headDim }: { kvHeads: number; headDim: number },
  count: number,
  seed = 1,
): Tokens {
  const width = kvHeads * headDim;
  return tokensOf(randomArray(count * width, 2 * seed), randomArray(count * width, 2 * seed + 1), width);
}

/** @param width elements of K, or of V, of one token */
export function tokensOf(k: Float32Array, v: Float32Array, width: number): Tokens {
  return {
    count: k.length / width,
    k,
    v,
    slice: (from, to) => [k.slice(from * width, to * width), v.slice(from * width, to * width)],
    of: (count) => tokensOf(k.slice(0, count * width), v.slice(0, count * width), width),
  };
}

export function makeQueries(shape: HeadShape, tokens: number, seed = 1, scale = 1): Float32Array {
  return randomArray(tokens * shape.queryHeads * shape.headDim, seed + 1000, scale);
}

/** Appends tokens from `from` on, in chunks of the sizes given. */
export async function appendChunks(
  cache: KvarnCache,
  tokens: Tokens,
  sizes: Iterable<number>,
  { layer = 0, from = 0 } = {},
): Promise<void> {
  for (const size of sizes) {
    await cache.append(layer, ...tokens.slice(from, from + size));
    from += size;
  }
}

/** `total` cut into random chunks of 1 to `most`. */
export function randomChunks(total: number, most: number, seed: number): number[] {
  const pick = randomIntegers(seed);
  const sizes: number[] = [];
  for (let left = total; left > 0; left -= sizes.at(-1)!) sizes.push(Math.min(left, pick(1, most)));
  return sizes;
}

/** `total` cut into chunks of `size`, the last as long as what is left. */
export function evenChunks(total: number, size: number): number[] {
  return Array.from({ length: Math.ceil(total / size) }, (_, i) => Math.min(size, total - i * size));
}

/** A cache of one layer that holds all of `tokens`, appended in chunks; by default at once. */
export async function filledCache(
  kvarn: Kvarn,
  config: CacheConfig,
  tokens: Tokens,
  sizes: readonly number[] = [tokens.count],
): Promise<KvarnCache> {
  const cache = kvarn.createCache(config);
  await appendChunks(cache, tokens, sizes);
  return cache;
}

/** The error that `action` throws or rejects with: a KvarnError of this code whose message matches. */
export async function expectError(
  action: () => unknown,
  code: KvarnErrorCode,
  message: RegExp = /./,
): Promise<KvarnError> {
  let error: unknown;
  let result: unknown;
  try {
    result = await action();
  } catch (thrown) {
    error = thrown;
  }
  if (error === undefined) expect.unreachable(`expected ${code}, but the call returned ${typeof result}`);
  expect(error).toBeInstanceOf(KvarnError);
  const found = error as KvarnError;
  expect({ code: found.code, message: found.message }).toEqual({
    code,
    message: expect.stringMatching(message) as string,
  });
  return found;
}

/** Expects the same elements; `toEqual` takes its time on long arrays. */
export function expectSame(actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  const length = Math.max(actual.length, expected.length);
  let at = 0;
  while (at < length && Object.is(actual[at], expected[at])) at++;
  const difference = { length: actual.length, at, element: actual[at] };
  expect(difference).toEqual({ length: expected.length, at: length, element: undefined });
}

/** All that can be seen of a cache but its attention. */
async function observe(cache: KvarnCache): Promise<{ layers: object[]; memory: object; bytes: Uint8Array }> {
  const layers = Array.from({ length: cache.layers }, (_, layer) => ({
    length: cache.length(layer),
    records: cache.recordRange(layer),
  }));
  return { layers, memory: cache.memory(), bytes: await cache.serialize() };
}

/** Expects `action` to fail with this error and the cache to be what it was. */
export async function expectRefused(
  cache: KvarnCache,
  action: () => unknown,
  code: KvarnErrorCode,
  message?: RegExp,
): Promise<KvarnError> {
  const before = await observe(cache);
  const error = await expectError(action, code, message);
  const after = await observe(cache);
  expect({ ...after, bytes: 0 }).toEqual({ ...before, bytes: 0 });
  expectSame(after.bytes, before.bytes);
  return error;
}

/**
 * Which lengths the message of a refused cut says are possible.
 * @param length of the layer
 */
export function namedCuts(message: string, length: number): boolean[] {
  const list = /it can be cut to (.*)$/.exec(message)?.[1] ?? "";
  const possible = new Array<boolean>(length + 1).fill(false);
  for (const cuts of list.split(", ")) {
    const [, step = "1", from, to] = /^(?:multiples of (\d+) from )?(\d+) to (\d+)$/.exec(cuts) ?? [];
    expect(Number(from), message).toBeLessThanOrEqual(Number(to));
    expect(Number(to), message).toBeLessThanOrEqual(length);
    for (let n = Number(from); n <= Number(to); n++) if (n % Number(step) === 0) possible[n] = true;
  }
  return possible;
}

/** Which lengths a cache can be cut to, found by trying. It is left as it is. */
export function possibleCuts(
  cache: KvarnCache,
  length: number,
): { possible: boolean[]; messages: Set<string> } {
  const messages = new Set<string>();
  const possible = Array.from({ length: length + 1 }, (_, n) => {
    const fork = cache.fork();
    try {
      fork.truncate(n);
      return true;
    } catch (error) {
      expect(error).toMatchObject({ name: "KvarnError", code: "unsupported-length" });
      messages.add((error as Error).message);
      return false;
    } finally {
      fork.dispose();
    }
  });
  return { possible, messages };
}

/** The header of a saved cache, as its documentation names the fields. */
export interface SavedHeader {
  preset: string;
  iterations: number;
  exactWindow: number;
  outlierTokens?: number;
  encoder?: "refined";
  layers: (HeadShape & {
    softmaxScale: number;
    slidingWindow?: number;
    softCap?: number;
    sinkLogits?: number[];
    length: number;
    firstKept: number;
    firstTail: number;
    sink: "exact" | "record";
    outliers?: number[][];
    moments?: true;
  })[];
}

/** One tile of one layer. */
export interface SavedTile {
  readonly kind: "exact" | "record" | "gone";
  readonly tokens: number;
  /** Where its bytes begin in the file. */
  readonly offset: number;
  readonly data: Uint8Array;
}

/** A saved cache, read independently of the code under test. */
export interface Saved {
  readonly header: SavedHeader;
  readonly group: number;
  readonly payloadStart: number;
  readonly layers: readonly {
    readonly config: SavedHeader["layers"][number];
    readonly layout: RecordLayout;
    readonly tiles: readonly SavedTile[];
    /** Binary16 bits, `[2, headDim]` each. */
    readonly outliers: readonly { head: number; position: number; token: Uint16Array }[];
    /** Triangles of what is known of the queries, KV head after KV head; empty where there is nothing. */
    readonly moments: Float32Array;
  }[];
}

/** Takes a saved cache apart. */
export function readSaved(bytes: Uint8Array): Saved {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  expect(new TextDecoder().decode(bytes.subarray(0, 8))).toBe("KVARN\0\0\0");
  const payloadStart = 16 + view.getUint32(12, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(16, payloadStart))) as SavedHeader;
  const version = header.encoder === "refined" ? 3 : header.outlierTokens === undefined ? 1 : 2;
  expect(view.getUint32(8, true)).toBe(version);
  const preset = parsePreset(header.preset);
  let offset = payloadStart;
  const layers = header.layers.map((config) => {
    const layout = recordLayout(preset, config.headDim);
    const tiles = Array.from({ length: Math.ceil(config.length / preset.group) }, (_, tile): SavedTile => {
      const tokens = Math.min(preset.group, config.length - tile * preset.group);
      const kind = tileKind(config, tile);
      const sizes = {
        gone: 0,
        record: config.kvHeads * layout.bytes,
        exact: tokens * 4 * config.kvHeads * config.headDim,
      };
      offset += sizes[kind];
      return { kind, tokens, offset: offset - sizes[kind], data: bytes.slice(offset - sizes[kind], offset) };
    });
    const outliers = (config.outliers ?? []).flatMap((positions, head) =>
      positions.map((position) => {
        const token = new Uint16Array(bytes.slice(offset, (offset += 4 * config.headDim)).buffer);
        return { head, position, token };
      }),
    );
    const numbers = config.moments ? (config.kvHeads * config.headDim * (config.headDim + 1)) / 2 : 0;
    const moments = new Float32Array(bytes.slice(offset, (offset += 4 * numbers)).buffer);
    return { config, layout, tiles, outliers, moments };
  });
  expect(offset).toBe(bytes.length - 4);
  expect(view.getUint32(offset, true)).toBe(crc32(bytes.subarray(0, offset)));
  return { header, group: preset.group, payloadStart, layers };
}

function tileKind(
  { sink, firstKept, firstTail }: SavedHeader["layers"][number],
  tile: number,
): SavedTile["kind"] {
  if (tile === 0) return sink;
  if (tile < firstKept) return "gone";
  return tile < firstTail ? "record" : "exact";
}

/** Which tiles of a layer are what, e.g. `"exact record exact"`. */
export async function tileKinds(cache: KvarnCache, layer = 0): Promise<string> {
  const { tiles } = readSaved(await cache.serialize()).layers[layer];
  return tiles.map(({ kind }) => kind).join(" ");
}

/** Puts a saved cache together again from parts that may lie, with the checksum that belongs to them. */
export function writeSaved(
  header: object | string,
  payload: Uint8Array,
  { version = 1, headerLength }: { version?: number; headerLength?: number } = {},
): Uint8Array {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(16 + text.length + payload.length + 4);
  const view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode("KVARN"));
  view.setUint32(8, version, true);
  view.setUint32(12, headerLength ?? text.length, true);
  bytes.set(text, 16);
  bytes.set(payload, 16 + text.length);
  return withChecksum(bytes);
}

/** `bytes` with the checksum at their end put right. */
export function withChecksum(bytes: Uint8Array): Uint8Array {
  const end = bytes.length - 4;
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(end, crc32(bytes.subarray(0, end)), true);
  return bytes;
}

/** CRC-32 bit by bit. */
function crc32(bytes: Uint8Array): number {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
  }
  return ~crc >>> 0;
}

/** What a layer has stored, in the rotated frame. */
export interface StoredLayer {
  readonly config: SavedHeader["layers"][number];
  /** By KV head: `[length, headDim]`, NaN where a window let go. */
  readonly k: readonly Float64Array[];
  readonly v: readonly Float64Array[];
}

/** Decodes what a layer of a saved cache holds. */
export function storedLayer({ layers, group }: Saved, layer = 0): StoredLayer {
  const { config, layout, tiles, outliers } = layers[layer];
  const { kvHeads, headDim, length } = config;
  const empty = () => Array.from({ length: kvHeads }, () => new Float64Array(length * headDim).fill(NaN));
  const [k, v] = [empty(), empty()];
  tiles.forEach(({ kind, tokens, data }, tile) => {
    const start = tile * group * headDim;
    for (let head = 0; head < kvHeads; head++) {
      if (kind === "record") {
        const decoded = decodePlainly(data.subarray(head * layout.bytes, (head + 1) * layout.bytes), layout);
        k[head].set(decoded.k, start);
        v[head].set(decoded.v, start);
      } else if (kind === "exact") {
        const halves = new Uint16Array(data.buffer);
        for (let token = 0; token < tokens; token++) {
          const at = token * 2 * kvHeads * headDim + head * headDim;
          for (let channel = 0; channel < headDim; channel++) {
            const target = start + token * headDim + channel;
            k[head][target] = fromHalf(halves[at + channel]);
            v[head][target] = fromHalf(halves[at + kvHeads * headDim + channel]);
          }
        }
      }
    }
  });
  for (const { head, position, token } of outliers) {
    k[head].set(Array.from(token.subarray(0, headDim), fromHalf), position * headDim);
    v[head].set(Array.from(token.subarray(headDim), fromHalf), position * headDim);
  }
  return { config, k, v };
}

const matrices = new Map<number, Float64Array>();

/** The Walsh-Hadamard matrix of order n: a minus where an odd number of bits is set in both indices. */
function hadamard(n: number): Float64Array {
  let matrix = matrices.get(n);
  if (!matrix) {
    matrix = new Float64Array(n * n);
    for (let i = 0; i < n * n; i++) {
      let odd = 0;
      for (let bits = Math.floor(i / n) & (i % n); bits !== 0; bits &= bits - 1) odd ^= 1;
      matrix[i] = (1 - 2 * odd) / Math.sqrt(n);
    }
    matrices.set(n, matrix);
  }
  return matrix;
}

/** Rotates rows by dense products, in f64. */
export function rotateDensely(x: ArrayLike<number>, headDim: number): Float64Array {
  const n = rotationBlock(headDim);
  const matrix = hadamard(n);
  const y = new Float64Array(x.length);
  for (let block = 0; block < x.length; block += n) {
    for (let i = 0; i < n; i++) {
      let sum = 0;
      for (let j = 0; j < n; j++) sum += x[block + j] * matrix[i * n + j];
      y[block + i] = sum;
    }
  }
  return y;
}

/**
 * Attention of a layer's newest tokens as a textbook has it, in f64, over what the layer has stored.
 * @param q `[queryTokens, queryHeads, headDim]`
 * @returns `reach`: the largest sum of the magnitudes that a score adds up
 */
export function naiveAttention(
  q: Float32Array,
  { config, k, v }: StoredLayer,
): { out: Float64Array; reach: number } {
  const { queryHeads, kvHeads, headDim, length, softmaxScale, softCap, sinkLogits } = config;
  const window = config.slidingWindow ?? Infinity;
  const rotated = rotateDensely(q, headDim);
  const out = new Float64Array(q.length);
  const queryTokens = q.length / (queryHeads * headDim);
  let reach = 0;
  for (let row = 0; row < queryTokens * queryHeads; row++) {
    const position = length - queryTokens + Math.floor(row / queryHeads);
    const head = row % queryHeads;
    const kvHead = Math.floor(head / (queryHeads / kvHeads));
    const first = Math.max(0, position - window + 1);
    const scores: number[] = [];
    for (let token = first; token <= position; token++) {
      let [score, magnitude] = [0, 0];
      for (let channel = 0; channel < headDim; channel++) {
        const product = rotated[row * headDim + channel] * k[kvHead][token * headDim + channel];
        score += product;
        magnitude += Math.abs(product);
      }
      score *= softmaxScale;
      scores.push(softCap === undefined ? score : softCap * Math.tanh(score / softCap));
      reach = Math.max(reach, magnitude * softmaxScale);
    }
    const sink = sinkLogits?.[head] ?? -Infinity;
    const most = scores.reduce((a, b) => Math.max(a, b), sink);
    let total = Math.exp(sink - most);
    const sums = new Float64Array(headDim);
    scores.forEach((score, i) => {
      const weight = Math.exp(score - most);
      total += weight;
      for (let channel = 0; channel < headDim; channel++) {
        sums[channel] += weight * v[kvHead][(first + i) * headDim + channel];
      }
    });
    out.set(
      sums.map((sum) => sum / total),
      row * headDim,
    );
  }
  return { out: rotateDensely(out, headDim), reach };
}

/**
 * The relative L2 error that SPEC 6 allows an engine. Where the terms of scores reach beyond 100, f32 and 16-bit
 * integers cannot hold that many digits of them after the point, so there it is up to ten times as much.
 */
export function attendTolerance({ backend }: Kvarn, reach: number): number {
  const inF32 = backend.kind !== "wasm" || backend.variant.endsWith("-f32");
  return (inF32 ? 1e-5 : 1e-3) * Math.min(10, Math.max(1, reach / 100));
}

/** Expects attention to be within the tolerance of `stored`, and finite. */
export async function expectAgrees(
  kvarn: Kvarn,
  cache: KvarnCache,
  stored: StoredLayer,
  q: Float32Array,
  layer = 0,
): Promise<void> {
  const actual = await cache.attend(layer, q);
  const { out, reach } = naiveAttention(q, stored);
  expect(actual.every(Number.isFinite)).toBe(true);
  expect(relativeError(actual, out)).toBeLessThanOrEqual(attendTolerance(kvarn, reach));
}

/** What a layer of a cache holds, by way of its saved bytes. */
export async function readStored(cache: KvarnCache, layer = 0): Promise<StoredLayer> {
  return storedLayer(readSaved(await cache.serialize()), layer);
}

/** Binary16 bits of values. */
export function halves(values: ArrayLike<number>): Uint16Array {
  return Uint16Array.from(values, toHalf);
}
