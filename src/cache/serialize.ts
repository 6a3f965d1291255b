/**
 * A cache as bytes. All numbers little-endian:
 *
 *     0   8  magic: "KVARN" and three zero bytes
 *     8   4  version: 1, 2 with outlier tokens, 3 with `encoder: "refined"`
 *     12  4  n, length of the header
 *     16  n  header, JSON in UTF-8: the configuration and, per layer, how many tokens and tiles of which kind
 *     …      for each layer its tiles in order: exact ones as binary16 bits `[tokens, 2 (K, V), kvHeads, headDim]` in
 *            the rotated frame, encoded ones as their records, one per KV head; then its outlier tokens, head by head,
 *            as binary16 bits `[2 (K, V), headDim]`; then the moments of its queries, of each KV head the upper triangle in f32
 *     -4  4  CRC-32 of everything before
 */
import type { Outliers } from "../backend.js";
import { tileRecordBytes } from "../bytes.js";
import { checkScales } from "../codec.js";
import {
  type CacheConfig,
  type Encoder,
  MAX_TOKENS,
  resolveConfig,
  type ResolvedConfig,
  type ResolvedLayer,
} from "../config.js";
import { checkInteger, describe, KvarnError } from "../errors.js";
import { crc32 } from "./crc32.js";
import { triangleLength } from "./moments.js";
import { mostOutliers, visibleFrom } from "./schedule.js";

/** One layer as it is saved. */
export interface SavedLayer {
  length: number;
  /** First tile after the sink that is held. */
  firstKept: number;
  /** First tile, at least 1, that is not a record. */
  firstTail: number;
  /** By tile: binary16 bits of an exact one, records of an encoded one, undefined for one that a window let go. */
  tiles: (Uint8Array | Uint16Array | undefined)[];
  outliers: Outliers | undefined;
  /** Of each KV head the upper triangle, row by row; see `moments.ts`. */
  moments: Float32Array | undefined;
}

export interface SavedCache {
  config: ResolvedConfig;
  layers: SavedLayer[];
}

/** What the header holds of a layer besides its configuration. */
interface LayerHeader {
  length: number;
  sink: "exact" | "record";
  firstKept: number;
  firstTail: number;
  /** By KV head, the positions of outlier tokens; missing where there are none. */
  outliers?: number[][];
  /** Whether there are moments of queries; missing where there are none. */
  moments?: boolean;
}

const MAGIC = [0x4b, 0x56, 0x41, 0x52, 0x4e, 0, 0, 0];
const VERSION = 1;
/** Of caches with outlier tokens, which releases that read version 1 alone would take for other bytes. */
const OUTLIER_VERSION = 2;
/** Of caches of `encoder: "refined"`, likewise. */
const REFINED_VERSION = 3;
const HEADER = 16;
const CHECKSUM = 4;

/** Writes a cache. */
export function writeSavedCache({ config, layers }: SavedCache): Uint8Array {
  const header = new TextEncoder().encode(JSON.stringify(describeCache(config, layers)));
  const parts = layers.flatMap(({ tiles, outliers, moments }) => {
    return [...tiles, outliers?.data, moments].filter((part) => part !== undefined);
  });
  const payload = parts.reduce((sum, part) => sum + part.byteLength, 0);
  const bytes = new Uint8Array(HEADER + header.length + payload + CHECKSUM);
  const view = new DataView(bytes.buffer);
  bytes.set(MAGIC);
  view.setUint32(8, versionOf(config), true);
  view.setUint32(12, header.length, true);
  bytes.set(header, HEADER);
  let at = HEADER + header.length;
  for (const part of parts) {
    bytes.set(new Uint8Array(part.buffer, part.byteOffset, part.byteLength), at);
    at += part.byteLength;
  }
  view.setUint32(at, crc32(bytes.subarray(0, at)), true);
  return bytes;
}

/**
 * Reads a cache and checks all of it before anything is made of it.
 * @throws {KvarnError} `invalid-argument`, `corrupt-data`, `unsupported-version`
 */
export function readSavedCache(bytes: unknown): SavedCache {
  if (!(bytes instanceof Uint8Array)) {
    throw new KvarnError("invalid-argument", `a saved cache must be a Uint8Array, got ${describe(bytes)}`);
  }
  if (bytes.length < HEADER + CHECKSUM || MAGIC.some((byte, i) => bytes[i] !== byte)) {
    throw corrupt("these bytes are not a saved cache: they do not start with its magic number");
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const version = view.getUint32(8, true);
  if (version < VERSION || version > REFINED_VERSION) {
    throw new KvarnError(
      "unsupported-version",
      `the saved cache has version ${version}; this release reads ${VERSION} to ${REFINED_VERSION}`,
    );
  }
  const end = bytes.length - CHECKSUM;
  if (view.getUint32(end, true) !== crc32(bytes.subarray(0, end))) {
    throw corrupt("the saved cache is damaged or cut short: its checksum does not match");
  }
  const start = HEADER + view.getUint32(12, true);
  if (start > end) throw corrupt("the saved cache's header is longer than the file");
  const { config, headers } = readHeader(bytes.subarray(HEADER, start));
  if (versionOf(config) !== version) {
    const { encoder, outlierTokens } = config;
    throw corrupt(
      `the saved cache has version ${version}, encoder "${encoder}" and outlierTokens ${outlierTokens}`,
    );
  }
  let at = start;
  const layers = config.layers.map((layer, i) => {
    const saved = readTiles(bytes.subarray(at, end), config, layer, headers[i]);
    at += saved.bytes;
    return saved.layer;
  });
  if (at !== end) throw corrupt(`the saved cache has ${end - at} bytes more than its header accounts for`);
  return { config, layers };
}

function versionOf({ encoder, outlierTokens }: ResolvedConfig): number {
  if (encoder === "refined") return REFINED_VERSION;
  return outlierTokens > 0 ? OUTLIER_VERSION : VERSION;
}

function describeCache(config: ResolvedConfig, layers: readonly SavedLayer[]): object {
  return {
    preset: config.preset.name,
    encoder: config.encoder === "strict" ? undefined : config.encoder,
    iterations: config.iterations,
    exactWindow: config.exactWindow,
    outlierTokens: config.outlierTokens === 0 ? undefined : config.outlierTokens,
    layers: config.layers.map((layer, i) => {
      const { queryHeads, kvHeads, headDim, softmaxScale } = layer;
      const { length, firstKept, firstTail, tiles, outliers, moments } = layers[i];
      return {
        ...{ queryHeads, kvHeads, headDim, softmaxScale },
        slidingWindow: layer.slidingWindow === Infinity ? undefined : layer.slidingWindow,
        softCap: layer.softCap === 0 ? undefined : layer.softCap,
        sinkLogits: layer.sinkLogits && Array.from(layer.sinkLogits),
        ...{ length, firstKept, firstTail, sink: tiles[0] instanceof Uint8Array ? "record" : "exact" },
        outliers: outliers?.positions,
        moments: moments && true,
      };
    }),
  };
}

function readHeader(bytes: Uint8Array): { config: ResolvedConfig; headers: LayerHeader[] } {
  try {
    const { preset, encoder, iterations, exactWindow, outlierTokens, layers } = JSON.parse(
      new TextDecoder("utf-8", { fatal: true }).decode(bytes),
    ) as CacheConfig & { layers: LayerHeader[] };
    const config = resolveConfig({ preset, encoder, iterations, exactWindow, outlierTokens, layers });
    layers.forEach((layer, i) => checkLayerHeader(layer, i, config.layers[i], config.encoder));
    return { config, headers: layers };
  } catch (error) {
    throw new KvarnError(
      "corrupt-data",
      `the saved cache's header does not describe a cache: ${String(error)}`,
      {
        cause: error,
      },
    );
  }
}

function checkLayerHeader(
  { length, firstKept, firstTail, sink, outliers, moments }: LayerHeader,
  layer: number,
  config: ResolvedLayer,
  encoder: Encoder,
): void {
  const { layout, slidingWindow } = config;
  const { group } = layout;
  checkInteger(`layers[${layer}].length`, length, 0, MAX_TOKENS);
  checkInteger(`layers[${layer}].firstTail`, firstTail, 1, Math.max(1, Math.floor(length / group)));
  checkInteger(`layers[${layer}].firstKept`, firstKept, 1, firstTail);
  if (firstKept > 1 && visibleFrom(length, slidingWindow) < firstKept * group) {
    throw new KvarnError(
      "corrupt-data",
      `layers[${layer}].firstKept is ${firstKept}, but the window reaches further`,
    );
  }
  if (sink !== "exact" && (sink !== "record" || length < group)) {
    throw new KvarnError("corrupt-data", `layers[${layer}].sink is ${describe(sink)} at length ${length}`);
  }
  if (moments !== undefined && (moments !== true || encoder === "strict")) {
    throw new KvarnError("corrupt-data", `layers[${layer}].moments is ${describe(moments)}`);
  }
  if (outliers !== undefined) checkOutliers(outliers, layer, firstKept, firstTail, config);
}

/** Positions of encoded tokens, ascending, and no more of a head or of a tile than there can be. */
function checkOutliers(
  outliers: unknown,
  layer: number,
  firstKept: number,
  firstTail: number,
  { layout: { group }, kvHeads, outlierTokens }: ResolvedLayer,
): void {
  const most = mostOutliers(outlierTokens, firstTail - firstKept);
  const isHead = (head: unknown): boolean => {
    if (!Array.isArray(head) || head.length > most) return false;
    const positions = head as unknown[];
    const tiles = positions.map((position) => Math.floor(Number(position) / group));
    return (
      positions.every((position, i) => Number.isInteger(position) && !(position! <= positions[i - 1]!)) &&
      tiles.every((tile, i) => tile >= firstKept && tile < firstTail && tile !== tiles[i + outlierTokens])
    );
  };
  if (!Array.isArray(outliers) || outliers.length !== kvHeads || !outliers.every(isHead)) {
    throw new KvarnError(
      "corrupt-data",
      `layers[${layer}].outliers are not positions of encoded tokens by KV head`,
    );
  }
}

/** Takes one layer's tiles from the front of `bytes`. */
function readTiles(
  bytes: Uint8Array,
  config: ResolvedConfig,
  layer: ResolvedLayer,
  { length, firstKept, firstTail, sink, outliers: positions, moments: hasMoments }: LayerHeader,
): { layer: SavedLayer; bytes: number } {
  const { group } = config.preset;
  const perToken = 2 * layer.kvHeads * layer.headDim;
  const tiles: SavedLayer["tiles"] = [];
  let at = 0;
  const take = (count: number): Uint8Array => {
    if (at + count > bytes.length) throw corrupt("the saved cache holds fewer bytes than its header says");
    at += count;
    // A copy: 16-bit views need an even address, and the caller's array may change. Not slice(): a Buffer's is a view.
    return new Uint8Array(bytes.subarray(at - count, at));
  };
  const takeHalves = (count: number): Uint16Array => {
    const halves = new Uint16Array(take(count * 2).buffer);
    if (halves.some((half) => (half & 0x7c00) === 0x7c00))
      throw corrupt("the saved cache holds NaN or infinite tokens");
    return halves;
  };
  for (let tile = 0; tile * group < length; tile++) {
    if (tile > 0 && tile < firstKept) {
      tiles.push(undefined);
    } else if (tile === 0 ? sink === "record" : tile < firstTail) {
      const records = take(tileRecordBytes(layer));
      checkScales(records, layer.layout, layer.layout.bytes);
      tiles.push(records);
    } else {
      const tokens = Math.min(group, length - tile * group);
      tiles.push(takeHalves(tokens * perToken));
    }
  }
  const data = positions && takeHalves(positions.flat().length * 2 * layer.headDim);
  const outliers = positions && data && { positions, data };
  const moments = hasMoments && new Float32Array(take(triangleLength(layer) * 4).buffer);
  if (moments && !moments.every(Number.isFinite))
    throw corrupt("the saved cache holds NaN or infinite moments");
  return {
    layer: { length, firstKept, firstTail, tiles, outliers, moments: moments || undefined },
    bytes: at,
  };
}

function corrupt(message: string): KvarnError {
  return new KvarnError("corrupt-data", message);
}
