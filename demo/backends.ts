/** Error, size and speed of every backend that opens in this browser, on the newest tokens of one layer. */
import { type Kvarn, openKvarn, type OpenOptions, parsePreset, recordLayout } from "../src/index.js";
import { type Effort, race } from "../bench/timing.js";
import type { DumpLayer } from "../src/cli/dump.js";
import { type ErrorFigures, measure, type SizeFigures } from "../src/cli/measure.js";
import { openUncompressed, type UncompressedCache } from "../src/cli/uncompressed.js";
import { layerOf, type LayerSample } from "./sample.js";
import { presetName, type Settings } from "./settings.js";

/** What is tried, in this order: a GPU of software takes long, and all others are done before the slow reference. */
export const CANDIDATES = [
  { backend: "wasm", variant: "strict" },
  { backend: "wasm", variant: "relaxed" },
  { backend: "webgpu", variant: "f32" },
  { backend: "reference", variant: "f64" },
] as const satisfies readonly OpenOptions[];

/** Medians. */
export interface Speed {
  /** Microseconds per token. */
  readonly time: number;
  /** The speed of uncompressed f32 is 1. */
  readonly ratio: number;
}

/** What is known of a candidate so far; a later report of the same index says more. */
export interface BackendReport {
  /** In {@link CANDIDATES}. */
  readonly index: number;
  /** Why it does not run here. */
  readonly problem?: string;
  /** The GPU adapter, where one computes on the CPU. */
  readonly software?: boolean;
  readonly error?: Pick<ErrorFigures, "key" | "value" | "output">;
  readonly size?: Pick<SizeFigures, "recordRatio"> & { readonly recordBytes: number };
  /** `attend` is null for a layer without queries. */
  readonly speed?: { readonly encode: Speed; readonly attend: Speed | null };
  /** Why there is no speed. */
  readonly notTimed?: string;
}

/** What the page sends: one task, after which nothing more comes. */
export interface MeasureTask {
  readonly sample: LayerSample;
  readonly settings: Settings;
}

/** Clocks of browsers go in steps of up to a millisecond, so samples take twenty. */
const EFFORT: Effort = { warmUpMs: 120, sampleMs: 20, totalMs: 500, leastSamples: 5 };
/** Encoding is timed on so many tokens at least, and on one tile where that is more. */
const ENCODED_TOKENS = 512;

/** Measures one backend after the other. */
export async function measureBackends(
  { sample, settings }: MeasureTask,
  report: (report: BackendReport) => void,
): Promise<void> {
  const layer = layerOf(sample);
  for (const [index, candidate] of CANDIDATES.entries()) {
    try {
      const kvarn = await openKvarn({ ...candidate, allowSoftwareAdapter: true });
      try {
        await measureBackend(kvarn, layer, settings, (figures) => report({ index, ...figures }));
      } finally {
        kvarn.dispose();
      }
    } catch (error) {
      report({ index, problem: (error as Error).message });
    }
  }
}

async function measureBackend(
  kvarn: Kvarn,
  layer: DumpLayer,
  settings: Settings,
  report: (figures: Omit<BackendReport, "index">) => void,
): Promise<void> {
  const software = kvarn.backend.adapter?.software === true;
  const preset = presetName(settings);
  const { iterations } = settings;
  const { total } = await measure(kvarn, [layer], { preset, iterations, exactWindow: 0 }, () => undefined);
  const { key, value, output } = total.error;
  const recordBytes = recordLayout(parsePreset(preset), layer.headDim).bytes;
  const figures = {
    software,
    error: { key, value, output },
    size: { recordBytes, recordRatio: total.size.recordRatio },
  };
  report(figures);
  const uncompressed = await openUncompressed({ ...layer, capacity: layer.tokens }).catch(
    (error: unknown) => error as Error,
  );
  if (uncompressed instanceof Error) {
    report({ ...figures, notTimed: uncompressed.message });
    return;
  }
  const encode = await timeEncode(kvarn, uncompressed, layer, settings);
  const attend = layer.queryTokens > 0 ? await timeAttend(kvarn, uncompressed, layer, settings) : null;
  if (encode) report({ ...figures, speed: { encode, attend } });
  else report({ ...figures, notTimed: `the layer has fewer than ${settings.group} tokens` });
}

/** Tokens to records, against writing them to an f32 cache. Null where they do not fill a tile. */
async function timeEncode(
  kvarn: Kvarn,
  uncompressed: UncompressedCache,
  layer: DumpLayer,
  settings: Settings,
): Promise<Speed | null> {
  const { kvHeads, headDim } = layer;
  const tokens = Math.floor(Math.min(layer.tokens, ENCODED_TOKENS) / settings.group) * settings.group;
  if (tokens === 0) return null;
  const k = layer.keys(0, tokens);
  const v = layer.values(0, tokens);
  const options = { preset: presetName(settings), kvHeads, headDim, iterations: settings.iterations };
  const out = await kvarn.encode(k, v, options);
  const store = () => {
    uncompressed.clear();
    uncompressed.append(k, v);
  };
  const result = await race([{ run: () => kvarn.encode(k, v, { ...options, out }) }, { run: store }], EFFORT);
  return { time: (1000 * result.ms(0)) / tokens, ratio: result.ratio(1, 0) };
}

/** Attention of the newest query over all tokens, against the same over f32. */
async function timeAttend(
  kvarn: Kvarn,
  uncompressed: UncompressedCache,
  layer: DumpLayer,
  settings: Settings,
): Promise<Speed> {
  const { tokens, queryTokens, queryHeads, kvHeads, headDim } = layer;
  const k = layer.keys(0, tokens);
  const v = layer.values(0, tokens);
  const q = layer.queries(queryTokens - 1, queryTokens);
  const out = new Float32Array(q.length);
  const { iterations } = settings;
  const shape = { preset: presetName(settings), iterations, layers: 1, queryHeads, kvHeads, headDim };
  const cache = kvarn.createCache(shape);
  await cache.append(0, k, v);
  await cache.flush();
  uncompressed.clear();
  uncompressed.append(k, v);
  const result = await race(
    [{ run: () => cache.attend(0, q, { out }) }, { run: () => void uncompressed.attend(q, out) }],
    EFFORT,
  );
  cache.dispose();
  return { time: 1000 * result.ms(0), ratio: result.ratio(1, 0) };
}
