/** How many bytes a cache takes, from its configuration and what it holds. */
import { encodedTiles, keptFrom, mostOutliers } from "./cache/schedule.js";
import {
  type CacheConfig,
  MAX_TOKENS,
  type ResolvedConfig,
  type ResolvedLayer,
  resolveConfig,
} from "./config.js";
import { checkInteger } from "./errors.js";

/** Bytes of one token of one layer, K and V in binary16: what an uncompressed cache, a sink or a tail holds. */
export function halfBytesPerToken(shape: { kvHeads: number; headDim: number }): number {
  return 2 * shape.kvHeads * shape.headDim * 2;
}

/** What a cache holds, in bytes. Ratios are uncompressed binary16 over ours. */
export interface CacheBytes {
  /** The first `group` tokens, kept in binary16. */
  sinkBytes: number;
  /** Tokens that are not encoded yet, in binary16. */
  tailBytes: number;
  /** Encoded tiles. */
  recordBytes: number;
  /** Outlier tokens, in binary16, beside the tiles that they are of. */
  outlierBytes: number;
  /** What is known of the queries seen, for `encoder: "refined"`. */
  queryBytes: number;
  /** All of these together. */
  totalBytes: number;
  /** The same tokens in an uncompressed binary16 cache. */
  f16Bytes: number;
  /** `f16Bytes / totalBytes`; 1 for an empty cache. */
  ratio: number;
  /** The same over encoded tokens alone, as if all tiles were records: what the preset tends to on long contexts. */
  recordRatio: number;
}

/**
 * What a cache of this configuration holds after `tokens` tokens and a `flush`, without making it. Of outlier tokens, the
 * most that there can be; queries, as if there were some.
 * @param config as for `createCache`
 * @param tokens context length, the same in every layer
 */
export function bytesFor(config: CacheConfig, tokens: number): CacheBytes {
  checkInteger("tokens", tokens, 0, MAX_TOKENS);
  const resolved = resolveConfig(config);
  const counts = resolved.layers.map((layer) => {
    const { group } = resolved.preset;
    const tiles = encodedTiles(tokens, resolved.exactWindow, group);
    const freed = Math.max(
      1,
      Math.floor(keptFrom(tokens, resolved.exactWindow, layer.slidingWindow) / group),
    );
    const sink = Math.min(tokens, group);
    const records = Math.max(0, tiles - freed);
    const tail = tokens - sink - Math.max(0, tiles - 1) * group;
    const outliers = layer.kvHeads * mostOutliers(layer.outlierTokens, records);
    return { sink, tail, records, outliers, hasMoments: resolved.encoder === "refined" && tokens > 0 };
  });
  return cacheBytes(resolved, counts);
}

/** Tokens of one layer by where they are. */
export interface LayerCounts {
  /** Tokens in the sink. */
  sink: number;
  /** Tokens in the tail. */
  tail: number;
  /** Tiles encoded. */
  records: number;
  /** Outlier tokens, those of each KV head counted. */
  outliers: number;
  /** Whether there are moments of queries. */
  hasMoments: boolean;
}

/** Sums up bytes over layers. */
export function cacheBytes(config: ResolvedConfig, counts: readonly LayerCounts[]): CacheBytes {
  const sum = {
    ...{ sinkBytes: 0, tailBytes: 0, recordBytes: 0, outlierBytes: 0, queryBytes: 0 },
    ...{ totalBytes: 0, f16Bytes: 0 },
  };
  let tileBytes = 0;
  let tileHalfBytes = 0;
  config.layers.forEach((layer, i) => {
    const perToken = halfBytesPerToken(layer);
    const perTile = tileRecordBytes(layer);
    sum.sinkBytes += counts[i].sink * perToken;
    sum.tailBytes += counts[i].tail * perToken;
    sum.recordBytes += counts[i].records * perTile;
    sum.outlierBytes += (counts[i].outliers * perToken) / layer.kvHeads;
    if (counts[i].hasMoments) sum.queryBytes += momentBytes(layer);
    sum.f16Bytes += (counts[i].sink + counts[i].tail + counts[i].records * config.preset.group) * perToken;
    tileBytes += perTile;
    tileHalfBytes += config.preset.group * perToken;
  });
  sum.totalBytes = sum.sinkBytes + sum.tailBytes + sum.recordBytes + sum.outlierBytes + sum.queryBytes;
  const ratio = sum.totalBytes === 0 ? 1 : sum.f16Bytes / sum.totalBytes;
  return { ...sum, ratio, recordRatio: tileHalfBytes / tileBytes };
}

/** Bytes of what is known of a layer's queries. */
export function momentBytes({ kvHeads, headDim }: { kvHeads: number; headDim: number }): number {
  return kvHeads * headDim * headDim * 4;
}

/** Bytes of the records of one tile of a layer: one for each KV head. */
export function tileRecordBytes(layer: ResolvedLayer): number {
  return layer.kvHeads * layer.layout.bytes;
}
