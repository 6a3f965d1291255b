import { checkInteger, describe, KvarnError } from "./errors.js";
import { checkHeadDim, parsePreset, type Preset, recordLayout, type RecordLayout } from "./format.js";

/** What may differ from layer to layer (Gemma, gpt-oss: heads, head size, window). */
export interface LayerConfig {
  /** Query heads; a multiple of kvHeads. */
  queryHeads: number;
  /** Key/value heads. Query head h reads KV head `floor(h / (queryHeads / kvHeads))`. */
  kvHeads: number;
  /** Elements of one head: a multiple of 16 from 16 to 512. */
  headDim: number;
  /** A query at position p sees the tokens in `(p - slidingWindow, p]`, the sink not excepted. Default: all. */
  slidingWindow?: number;
  /** Scores become `softCap * tanh(score / softCap)`. Default: as they are. */
  softCap?: number;
  /** `[queryHeads]`: one extra logit per query head in the softmax's denominator. Default: none. */
  sinkLogits?: ArrayLike<number>;
  /** Factor on `q . k`. Default: `1 / sqrt(headDim)`. */
  softmaxScale?: number;
}

/**
 * How scales and codes are chosen; records are read alike. `"strict"`: as vLLM's KVarN does, byte for byte. `"refined"`: for
 * what attention makes of them, by the queries seen where there are any.
 */
export type Encoder = "strict" | "refined";

/** What `kvarn.createCache` makes. What layers have in common stands beside `layers`. */
export interface CacheConfig extends Partial<LayerConfig> {
  /** `k{b}v{b}_g{64|128}`, b one of 2, 3, 4, 5, 6, 8. Default `k4v2_g128`. */
  preset?: string;
  /** How many layers, all alike, or a list of what is particular to each. */
  layers: number | readonly Partial<LayerConfig>[];
  /** Steps of the normalization: 0 (plain rounding) to 64. Default 8. */
  iterations?: number;
  /**
   * How tokens are encoded. `"refined"`: more exactly, in the same records, for a few times the work of `"strict"`. It takes note
   * of the queries of `attend`: of each KV head, a matrix of headDim x headDim sums in f32. Default `"strict"`.
   */
  encoder?: Encoder;
  /**
   * Newest tokens that are kept exact beyond those of the last append, and so the number of tokens that can always be
   * rolled back. Default 0.
   */
  exactWindow?: number;
  /**
   * Tokens of each KV head that stay exact beside its records: as tiles are encoded, those with the smallest keys so far.
   * Attention often gives such tokens much weight, and rounding hurts them most. What smaller ones displace stays exact
   * too, up to 32 tokens more of a head that the window still reaches; then no more are looked for. None in the first two layers. Refused on the WebGPU
   * backend. 0 to 16, default 0.
   *
   * Source: Accurate KV Cache Quantization with Outlier Tokens Tracing, arXiv 2505.10938, which takes 3.
   */
  outlierTokens?: number;
  /** Tokens for which memory is set aside at once. Default: it grows. */
  capacity?: number;
}

/** One layer with every default filled in. */
export interface ResolvedLayer {
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Infinity without a window. */
  readonly slidingWindow: number;
  /** 0 without a cap. */
  readonly softCap: number;
  readonly sinkLogits: Float32Array | undefined;
  readonly softmaxScale: number;
  /** 0 in the first two layers. */
  readonly outlierTokens: number;
  readonly layout: RecordLayout;
}

/** A cache configuration, checked and with every default filled in. */
export interface ResolvedConfig {
  readonly preset: Preset;
  readonly encoder: Encoder;
  readonly iterations: number;
  readonly exactWindow: number;
  readonly outlierTokens: number;
  readonly capacity: number;
  readonly layers: readonly ResolvedLayer[];
}

const MAX_TOKEN = 65536;
const MAX_LAYERS = 4096;
const MAX_OUTLIER_TOKENS = 16;
/** The first layers, in which no token is an outlier (arXiv 2505.10938). */
const LAYERS_WITHOUT_OUTLIERS = 2;
/** Positions are kept in 32-bit integers by the engines. */
export const MAX_TOKENS = 2 ** 31 - 1;
export const DEFAULT_ITERATIONS = 8;

export function checkIterations(value: unknown = DEFAULT_ITERATIONS): number {
  return checkInteger("iterations", value, 0, 64);
}

export function checkEncoder(value: unknown = "strict"): Encoder {
  if (value === "strict" || value === "refined") return value;
  throw new KvarnError("invalid-argument", `encoder must be "strict" or "refined", got ${describe(value)}`);
}

/** Checks how many KV heads of a (checked) head size there are: one token of K has at most 65,536 elements. */
export function checkKvHeads(value: unknown, headDim: number, name = "kvHeads"): number {
  return checkInteger(name, value, 1, MAX_TOKEN / headDim);
}

/** Checks how many query heads read so many (checked) KV heads. */
export function checkQueryHeads(value: unknown, kvHeads: number, name = "queryHeads"): number {
  const queryHeads = checkInteger(name, value, 1, MAX_TOKEN);
  if (queryHeads % kvHeads === 0) return queryHeads;
  throw new KvarnError(
    "invalid-argument",
    `${name} must be a multiple of kvHeads (${kvHeads}), got ${queryHeads}`,
  );
}

/** Checks a configuration and fills in the defaults. */
export function resolveConfig(config: CacheConfig): ResolvedConfig {
  if (typeof config !== "object" || config === null) {
    throw new KvarnError(
      "invalid-argument",
      `the cache configuration must be an object, got ${describe(config)}`,
    );
  }
  const preset = parsePreset(config.preset);
  const outlierTokens = checkInteger("outlierTokens", config.outlierTokens ?? 0, 0, MAX_OUTLIER_TOKENS);
  return {
    preset,
    outlierTokens,
    encoder: checkEncoder(config.encoder),
    iterations: checkIterations(config.iterations),
    exactWindow: checkInteger("exactWindow", config.exactWindow ?? 0, 0, MAX_TOKENS),
    capacity: checkInteger("capacity", config.capacity ?? 0, 0, MAX_TOKENS),
    layers: listLayers(config).map(([layer, where], i) => {
      return resolveLayer(layer, where, preset, i < LAYERS_WITHOUT_OUTLIERS ? 0 : outlierTokens);
    }),
  };
}

/** Each layer's settings, what is common to all filled in, and what to call it in an error. */
function listLayers(config: CacheConfig): [Partial<LayerConfig>, string][] {
  const { layers } = config;
  if (typeof layers === "number") {
    checkInteger("layers", layers, 1, MAX_LAYERS);
    return Array.from({ length: layers }, () => [config, ""]);
  }
  if (!Array.isArray(layers) || layers.length === 0 || layers.length > MAX_LAYERS) {
    throw new KvarnError(
      "invalid-argument",
      `layers must be a count or a list of 1 to ${MAX_LAYERS} layers, got ${describe(layers)}`,
    );
  }
  return layers.map((layer: unknown, i) => {
    if (typeof layer !== "object" || layer === null) {
      throw new KvarnError("invalid-argument", `layers[${i}] must be an object, got ${describe(layer)}`);
    }
    return [{ ...config, ...layer }, `layers[${i}].`];
  });
}

function resolveLayer(
  layer: Partial<LayerConfig>,
  where: string,
  preset: Preset,
  outlierTokens: number,
): ResolvedLayer {
  const headDim = checkHeadDim(layer.headDim, `${where}headDim`);
  const kvHeads = checkKvHeads(layer.kvHeads, headDim, `${where}kvHeads`);
  const queryHeads = checkQueryHeads(layer.queryHeads, kvHeads, `${where}queryHeads`);
  const window = layer.slidingWindow;
  return {
    queryHeads,
    kvHeads,
    headDim,
    slidingWindow:
      window === undefined ? Infinity : checkInteger(`${where}slidingWindow`, window, 1, MAX_TOKENS),
    softCap: layer.softCap === undefined ? 0 : checkPositive(`${where}softCap`, layer.softCap),
    sinkLogits: checkSinkLogits(`${where}sinkLogits`, layer.sinkLogits, queryHeads),
    softmaxScale:
      layer.softmaxScale === undefined
        ? 1 / Math.sqrt(headDim)
        : checkPositive(`${where}softmaxScale`, layer.softmaxScale),
    outlierTokens,
    layout: recordLayout(preset, headDim),
  };
}

/** Engines compute in f32: with factors beyond this, or below its inverse, scores could overflow or vanish there. */
const MOST_FACTOR = 1e10;
const MOST_LOGIT = 3.4028234663852886e38;

function checkPositive(name: string, value: unknown): number {
  if (typeof value !== "number" || !(value >= 1 / MOST_FACTOR && value <= MOST_FACTOR)) {
    throw new KvarnError(
      "invalid-argument",
      `${name} must be a number from ${1 / MOST_FACTOR} to ${MOST_FACTOR}, got ${describe(value)}`,
    );
  }
  return value;
}

function checkSinkLogits(name: string, value: unknown, queryHeads: number): Float32Array | undefined {
  if (value === undefined) return undefined;
  const logits: unknown[] =
    Array.isArray(value) || ArrayBuffer.isView(value)
      ? Array.from(value as unknown as ArrayLike<unknown>)
      : [];
  const isLogit = (logit: unknown) => typeof logit === "number" && Math.abs(logit) <= MOST_LOGIT;
  if (logits.length !== queryHeads || !logits.every(isLogit)) {
    throw new KvarnError(
      "invalid-argument",
      `${name} must list one logit for each of ${queryHeads} query heads, finite in f32, ` +
        `got ${describe(value)}`,
    );
  }
  return Float32Array.from(logits as number[]);
}
