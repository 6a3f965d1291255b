/** What is timed, through the public calls, and against what. */
import { openPlainPass, openUncompressed, type UncompressedCache } from "../src/cli/uncompressed.js";
import { type Kvarn, type KvarnCache, parsePreset, recordLayout } from "../src/index.js";
import { Source } from "./data.js";
import { compare, type Effort } from "./timing.js";

/** A bound on a ratio. */
export type Target = { readonly most: number } | { readonly least: number };

/** What a case measured. */
export interface Figures {
  /** Ours, in the case's unit. */
  value: number;
  /** What it is compared with, in the same unit. */
  baseline: number;
  /** How many times; which way says the case's `ratio`. */
  ratio: number;
}

/** How a case is run. */
export interface Scale {
  readonly effort: Effort;
  /** Longest context; what is longer is cut to it. */
  readonly mostTokens: number;
}

export interface Case {
  /** What is done. */
  readonly name: string;
  /** To what. */
  readonly case: string;
  readonly unit: string;
  /** What the ratio counts: plain SIMD passes that ours takes as long as, or the baseline's time over ours. */
  readonly ratio: "passes" | "x speed";
  readonly gate?: Target;
  readonly aim?: Target;
  run(kvarn: Kvarn, scale: Scale): Promise<Figures>;
}

interface Heads {
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** The shape of many models of 7 to 9 billion parameters. */
const COMMON: Heads = { queryHeads: 32, kvHeads: 8, headDim: 128 };
/** Tokens that are appended at a time to fill a cache. */
const CHUNK = 512;
/** Scales for the plain pass; any will do. */
const SCALE = new Float32Array(128).fill(0.75);

export const cases: readonly Case[] = [
  encodeCase("k4v2_g128", { gate: { most: 60 }, aim: { most: 30 } }),
  encodeCase("k2v2_g128"),
  encodeCase("k4v4_g128"),
  attendCase("k4v2_g128", 4_096, COMMON),
  attendCase("k4v2_g128", 8_192, COMMON),
  attendCase("k4v2_g128", 32_768, COMMON, { gate: { least: 2 }, aim: { least: 4 } }),
  attendCase("k2v2_g128", 8_192, COMMON),
  attendCase("k4v4_g128", 8_192, COMMON),
  attendCase("k3v3_g128", 8_192, COMMON),
  attendCase("k8v8_g128", 8_192, COMMON),
  attendCase("k4v2_g128", 8_192, { queryHeads: 9, kvHeads: 3, headDim: 64 }),
  prefillCase("k4v2_g128", 512, 8_192, COMMON),
  appendCase("k4v2_g128", COMMON),
  rotateCase(),
  decodeCase("k4v2_g128"),
];

/** One K+V record, from f32 to bytes. */
function encodeCase(preset: string, targets?: Pick<Case, "gate" | "aim">): Case {
  return {
    name: "encode",
    case: `${preset} d128`,
    unit: "us/record",
    ratio: "passes",
    ...targets,
    async run(kvarn, { effort }) {
      // More than the innermost caches hold: an engine encodes what it has just computed or copied, not the same tile.
      const records = 32;
      const headDim = 128;
      const { group } = parsePreset(preset);
      const size = group * headDim;
      const { k, v } = new Source(1).tokens(records * group, 1, headDim);
      const out = new Uint8Array(recordLayout(parsePreset(preset), headDim).bytes);
      const options = { preset, kvHeads: 1, headDim, iterations: 8, out };
      const tile = (data: Float32Array, i: number) => data.subarray(i * size, (i + 1) * size);
      const tiles = new Float32Array(2 * records * size);
      for (let i = 0; i < records; i++) {
        tiles.set(tile(k, i), 2 * i * size);
        tiles.set(tile(v, i), (2 * i + 1) * size);
      }
      const plain = await openPlainPass({ rows: group, columns: headDim, tiles, columnScale: SCALE });
      const timing = await compare(
        { run: (call) => kvarn.encode(tile(k, call % records), tile(v, call % records), options) },
        {
          run: (call) => {
            plain.run(2 * (call % records));
            plain.run(2 * (call % records) + 1);
          },
        },
        effort,
      );
      return { value: 1e3 * timing.ours, baseline: 1e3 * timing.baseline, ratio: timing.relative };
    },
  };
}

/** Both caches with the same tokens, appended in chunks. */
async function fillCaches(
  kvarn: Kvarn,
  preset: string,
  tokens: number,
  heads: Heads,
): Promise<{ cache: KvarnCache; uncompressed: UncompressedCache; source: Source }> {
  const cache = kvarn.createCache({ ...heads, preset, layers: 1, capacity: tokens });
  const uncompressed = await openUncompressed({ ...heads, capacity: tokens });
  const source = new Source(2);
  for (let at = 0; at < tokens; at += CHUNK) {
    const { k, v } = source.tokens(Math.min(CHUNK, tokens - at), heads.kvHeads, heads.headDim);
    await cache.append(0, k, v);
    uncompressed.append(k, v);
  }
  return { cache, uncompressed, source };
}

/** Attention of one token over a filled cache, sink and tail included. */
function attendCase(
  preset: string,
  context: number,
  heads: Heads,
  targets?: Pick<Case, "gate" | "aim">,
): Case {
  const { queryHeads, kvHeads, headDim } = heads;
  return {
    name: "attend",
    case: `${preset} d${headDim} h${queryHeads}/${kvHeads} t${context}`,
    unit: "us",
    ratio: "x speed",
    ...targets,
    async run(kvarn, { effort, mostTokens }) {
      const tokens = Math.min(context, mostTokens);
      const { cache, uncompressed, source } = await fillCaches(kvarn, preset, tokens, heads);
      await cache.flush();
      const queries = Array.from({ length: 8 }, () => source.rows(queryHeads, headDim));
      const out = new Float32Array(queryHeads * headDim);
      const timing = await compare(
        { run: (call) => cache.attend(0, queries[call % queries.length], { out }) },
        { run: (call) => void uncompressed.attend(queries[call % queries.length], out) },
        effort,
      );
      cache.dispose();
      return { value: 1e3 * timing.ours, baseline: 1e3 * timing.baseline, ratio: 1 / timing.relative };
    },
  };
}

/** Causal attention of a chunk of a prompt that has just been appended. */
function prefillCase(preset: string, chunk: number, context: number, heads: Heads): Case {
  const { queryHeads, kvHeads, headDim } = heads;
  return {
    name: "prefill",
    case: `${preset} d${headDim} h${queryHeads}/${kvHeads} q${chunk} t${context}`,
    unit: "ms",
    ratio: "x speed",
    async run(kvarn, { effort, mostTokens }) {
      const tokens = Math.min(context, mostTokens);
      const { cache, uncompressed, source } = await fillCaches(kvarn, preset, tokens, heads);
      const queries = source.rows(Math.min(chunk, tokens) * queryHeads, headDim);
      const out = new Float32Array(queries.length);
      const timing = await compare(
        { run: () => cache.attend(0, queries, { out }) },
        { run: () => void uncompressed.prefill(queries, out) },
        // Calls take a second.
        { ...effort, leastSamples: Math.min(effort.leastSamples, 5) },
      );
      cache.dispose();
      return { value: timing.ours, baseline: timing.baseline, ratio: 1 / timing.relative };
    },
  };
}

/** Tokens one by one, their encoding included: whole tiles, so that each token bears its share. */
function appendCase(preset: string, heads: Heads): Case {
  const { kvHeads, headDim, queryHeads } = heads;
  return {
    name: "append",
    case: `${preset} d${headDim} h${queryHeads}/${kvHeads}`,
    unit: "us/token",
    ratio: "x speed",
    async run(kvarn, { effort }) {
      const { group } = parsePreset(preset);
      const start = 2 * group;
      const tokens = 2 * group;
      const cache = kvarn.createCache({ ...heads, preset, layers: 1, capacity: start + tokens });
      const source = new Source(3);
      const prompt = source.tokens(start, kvHeads, headDim);
      await cache.append(0, prompt.k, prompt.v);
      await cache.flush();
      const steps = Array.from({ length: tokens }, () => source.tokens(1, kvHeads, headDim));
      const uncompressed = await openUncompressed({ ...heads, capacity: tokens });
      const timing = await compare(
        {
          reset: () => cache.truncate(start),
          run: async () => {
            for (const { k, v } of steps) await cache.append(0, k, v);
            await cache.flush();
          },
        },
        {
          reset: () => uncompressed.clear(),
          run: () => {
            for (const { k, v } of steps) uncompressed.append(k, v);
          },
        },
        effort,
      );
      cache.dispose();
      const perToken = 1e3 / tokens;
      return {
        value: perToken * timing.ours,
        baseline: perToken * timing.baseline,
        ratio: 1 / timing.relative,
      };
    },
  };
}

/** The Walsh-Hadamard transform of rows of 128. */
function rotateCase(): Case {
  const headDim = 128;
  return {
    name: "rotate",
    case: `d${headDim}`,
    unit: "ns/row",
    ratio: "passes",
    async run(kvarn, { effort }) {
      const rows = 4_096;
      const x = new Source(4).rows(rows, headDim);
      const out = new Float32Array(x.length);
      const plain = await openPlainPass({ rows, columns: headDim, tiles: x, columnScale: SCALE });
      const timing = await compare(
        { run: () => kvarn.rotate(x, { headDim, out }) },
        { run: () => plain.run(0) },
        effort,
      );
      const perRow = 1e6 / rows;
      return { value: perRow * timing.ours, baseline: perRow * timing.baseline, ratio: timing.relative };
    },
  };
}

/** Records to K and V in f32. */
function decodeCase(preset: string): Case {
  const headDim = 128;
  return {
    name: "decode",
    case: `${preset} d${headDim}`,
    unit: "GB/s",
    ratio: "passes",
    async run(kvarn, { effort }) {
      const { group } = parsePreset(preset);
      const kvHeads = 8;
      const tokens = 2 * group;
      const { k, v } = new Source(5).tokens(tokens, kvHeads, headDim);
      const records = await kvarn.encode(k, v, { preset, kvHeads, headDim });
      const out = { k: new Float32Array(k.length), v: new Float32Array(v.length) };
      const both = new Float32Array(2 * k.length);
      both.set(k);
      both.set(v, k.length);
      const plain = await openPlainPass({
        rows: tokens * kvHeads,
        columns: headDim,
        tiles: both,
        columnScale: SCALE,
      });
      const timing = await compare(
        { run: () => kvarn.decode(records, { preset, kvHeads, headDim, out }) },
        {
          run: () => {
            plain.run(0);
            plain.run(1);
          },
        },
        effort,
      );
      const megabytes = (k.byteLength + v.byteLength) / 1e6;
      return {
        value: megabytes / timing.ours,
        baseline: megabytes / timing.baseline,
        ratio: timing.relative,
      };
    },
  };
}
