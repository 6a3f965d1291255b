/** Feeds a dump to a cache as an engine would, and to an uncompressed one beside it, with a clock on both. */
import type { KvarnCache } from "../cache/cache.js";
import { KvarnError } from "../errors.js";
import type { DumpLayer } from "./dump.js";
import { openUncompressed, type UncompressedCache } from "./uncompressed.js";

/** Tokens of a prompt that are appended at once. */
export const PROMPT_CHUNK = 512;
/** Newest tokens that are appended one by one where there are no queries to say how many. */
const GENERATED_WITHOUT_QUERIES = 128;
/** Work that is not counted goes first: engines compile what they run often a second time, optimized. */
const WARM_UP_MS = 250;
const WARM_UP_TOKENS = 512;

/** What one cache took for one layer. */
export interface LayerTimes {
  /** Microseconds per token, the mean over all of them, because encoding comes with few of them. */
  append: number;
  /** Microseconds per query token, the median; null without queries. */
  attend: number | null;
}

/** A layer that has been fed. */
export interface FedLayer {
  /** Attention outputs, `[queryTokens, queryHeads, headDim]`. */
  outputs: Float32Array;
  kvarn: LayerTimes;
  /** null where the uncompressed cache cannot run. */
  uncompressed: LayerTimes | null;
}

/** All layers. */
export interface Fed {
  layers: FedLayer[];
  /** Why there is nothing to compare the times with; null where there is. */
  notCompared: string | null;
}

/** Appends tokens `[from, to)` and then, where `query` is given, attends with that query token. */
interface Step {
  from: number;
  to: number;
  query?: number;
}

/** What is kept of a cache's run over one layer. */
interface Tally {
  outputs: Float32Array<ArrayBuffer>;
  /** Milliseconds, all appends together. */
  appendTime: number;
  /** Milliseconds of each query token. */
  attendTimes: number[];
}

/** A cache that is timed, on one layer. */
interface Contender extends Tally {
  append(k: Float32Array, v: Float32Array): unknown;
  attend(q: Float32Array, out: Float32Array<ArrayBuffer>): unknown;
}

/** How often {@link feed} calls `onStep`. */
export function countSteps(layers: readonly DumpLayer[]): number {
  return layers.reduce((sum, layer) => sum + listSteps(layer).length, 0);
}

/**
 * Appends a dump to an empty cache: the prompt in chunks, then the tokens that have queries one by one, each with its
 * attention. As in a model's forward pass, each step goes through all layers.
 * @throws {KvarnError} as `append` and `attend`, naming the layer
 */
export async function feed(
  cache: KvarnCache,
  layers: readonly DumpLayer[],
  onStep: () => void,
): Promise<Fed> {
  const { caches, notCompared } = await openAllUncompressed(layers);
  const feeds = layers.map((layer, i) => {
    const contenders = [compressedContender(cache, i, layer)];
    if (caches) contenders.push(uncompressedContender(caches[i], layer));
    return { layer, steps: listSteps(layer), contenders };
  });
  await warmUp(cache, layers[0], caches !== null);
  const rounds = Math.max(...feeds.map(({ steps }) => steps.length));
  for (let round = 0; round < rounds; round++) {
    for (const { layer, steps, contenders } of feeds) {
      if (round >= steps.length) continue;
      // They take turns at going first, so that neither always finds the processor's caches as the other left them.
      await runStep(layer, steps[round], round % 2 === 0 ? contenders : contenders.toReversed());
      onStep();
    }
  }
  const fed = feeds.map(({ layer, contenders: [ours, theirs] }) => ({
    outputs: ours.outputs,
    kvarn: layerTimes(ours, layer),
    uncompressed: caches ? layerTimes(theirs, layer) : null,
  }));
  return { layers: fed, notCompared };
}

function listSteps({ tokens, queryTokens }: DumpLayer): Step[] {
  const generated = queryTokens > 0 ? queryTokens : Math.min(GENERATED_WITHOUT_QUERIES, tokens);
  const prompt = tokens - generated;
  const steps: Step[] = [];
  for (let from = 0; from < prompt; from += PROMPT_CHUNK) {
    steps.push({ from, to: Math.min(from + PROMPT_CHUNK, prompt) });
  }
  for (let i = 0; i < generated; i++) {
    steps.push({ from: prompt + i, to: prompt + i + 1, query: queryTokens > 0 ? i : undefined });
  }
  return steps;
}

async function runStep(layer: DumpLayer, step: Step, contenders: readonly Contender[]): Promise<void> {
  const { from, to, query } = step;
  const k = layer.keys(from, to);
  const v = layer.values(from, to);
  await located(layer, from, async () => {
    for (const contender of contenders) contender.appendTime += await timed(() => contender.append(k, v));
  });
  if (query === undefined) return;
  const q = layer.queries(query, query + 1);
  for (const contender of contenders) {
    const out = contender.outputs.subarray(query * q.length, (query + 1) * q.length);
    contender.attendTimes.push(await timed(() => contender.attend(q, out)));
  }
}

/** Runs calls whose errors name tokens as they were given, those from `from` on, and no layer. */
async function located(layer: DumpLayer, from: number, run: () => Promise<void>): Promise<void> {
  try {
    await run();
  } catch (error) {
    if (!(error instanceof KvarnError)) throw error;
    const where = `layers.${layer.number}, tokens counted from ${from}`;
    throw new KvarnError(error.code, `${where}: ${error.message}`, { cause: error });
  }
}

async function timed(run: () => unknown): Promise<number> {
  const start = performance.now();
  await run();
  return performance.now() - start;
}

function layerTimes({ appendTime, attendTimes }: Contender, { tokens }: DumpLayer): LayerTimes {
  return {
    append: (1000 * appendTime) / tokens,
    attend: attendTimes.length > 0 ? 1000 * median(attendTimes) : null,
  };
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function compressedContender(cache: KvarnCache, index: number, layer: DumpLayer): Contender {
  return {
    append: (k, v) => cache.append(index, k, v),
    attend: (q, out) => cache.attend(index, q, { out }),
    ...emptyTally(layer),
  };
}

function uncompressedContender(cache: UncompressedCache, layer: DumpLayer): Contender {
  return {
    append: (k, v) => cache.append(k, v),
    attend: (q, out) => cache.attend(q, out),
    ...emptyTally(layer),
  };
}

function emptyTally({ queryTokens, queryHeads, headDim }: DumpLayer): Tally {
  return { outputs: new Float32Array(queryTokens * queryHeads * headDim), appendTime: 0, attendTimes: [] };
}

async function openAllUncompressed(
  layers: readonly DumpLayer[],
): Promise<{ caches: UncompressedCache[] | null; notCompared: string | null }> {
  try {
    const caches: UncompressedCache[] = [];
    for (const { queryHeads, kvHeads, headDim, tokens } of layers) {
      caches.push(await openUncompressed({ queryHeads, kvHeads, headDim, capacity: tokens }));
    }
    return { caches, notCompared: null };
  } catch (error) {
    // Compression still has its figures where WASM or the memory for the comparison is missing.
    return { caches: null, notCompared: (error as Error).message };
  }
}

/** Appends and attends, to copies, until the engine can be taken to have compiled what it will run. */
async function warmUp(cache: KvarnCache, layer: DumpLayer, compare: boolean): Promise<void> {
  const tokens = Math.min(WARM_UP_TOKENS, layer.tokens);
  const k = layer.keys(0, tokens);
  const v = layer.values(0, tokens);
  const q = layer.queries(0, Math.min(1, layer.queryTokens));
  const { queryHeads, kvHeads, headDim } = layer;
  const shape = { queryHeads, kvHeads, headDim, capacity: tokens };
  const uncompressed = compare ? await openUncompressed(shape) : null;
  uncompressed?.append(k, v);
  const copy = cache.fork();
  const end = performance.now() + WARM_UP_MS;
  while (performance.now() < end) {
    copy.clear();
    await located(layer, 0, () => copy.append(0, k, v));
    await copy.flush();
    if (q.length === 0) continue;
    await copy.attend(0, q);
    uncompressed?.attend(q);
  }
  copy.dispose();
}
