/** What is timed on the CPU, through the public calls, and beside what. */
import { openPlainPass, openUncompressed } from "../src/cli/uncompressed.js";
import { type Kvarn, type KvarnCache, parsePreset, recordLayout } from "../src/index.js";
import { Source } from "./data.js";
import type { OpenPeer, Peer, Work } from "./peers/peer.js";
import type { RatioUnit, Targets } from "./report.js";
import type { Contender } from "./timing.js";

/** Who takes part in a case. */
export interface Entrant {
  readonly backend: string;
  readonly variant: string;
  /** How a baseline is called in the table. */
  readonly label: string;
  readonly contender: Contender;
  /** Whether it may be what ours is compared with: the fastest such is. */
  readonly isBaseline: boolean;
  /** Of the case's unit, how many a call does. */
  readonly perCall: number;
}

/** What a case is run with. */
export interface Setting {
  readonly kvarn: Kvarn;
  /** Longest context; what is longer is cut to it. */
  readonly mostTokens: number;
  readonly peers: readonly Peer[];
  /** To be called with a peer that cannot do this case. */
  readonly refuse: (peer: Peer, error: unknown) => void;
}

/** A case that is ready to be timed. */
export interface Ready {
  /** Ours first. */
  readonly entrants: readonly Entrant[];
  readonly close?: () => Promise<void>;
}

export interface Case extends Targets {
  /** What is done. */
  readonly name: string;
  /** To what. */
  readonly case: string;
  readonly unit: "us" | "us/record" | "us/token" | "ns/row" | "ns/token of context";
  readonly ratioUnit: RatioUnit;
  /** Rounds are long, a few will do. */
  readonly isLong?: boolean;
  prepare(setting: Setting): Promise<Ready>;
}

interface Heads {
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

interface AttendOptions extends Targets {
  /** Others beside our own baseline. */
  readonly peers?: boolean;
}

/** The shape of many models of 7 to 9 billion parameters. */
const COMMON: Heads = { queryHeads: 32, kvHeads: 8, headDim: 128 };
/** Tokens that are appended at a time to fill a cache. */
const CHUNK = 512;
/** Scales for the plain pass; any will do. */
const SCALE = new Float32Array(128).fill(0.75);

export const cases: readonly Case[] = [
  encodeCase("k4v2_g128", { gate: { most: 35 }, aim: { most: 25 } }),
  encodeCase("k2v2_g128"),
  encodeCase("k4v4_g128"),
  refineCase("k2v2_g128", false, { gate: { most: 3 } }),
  refineCase("k2v2_g128", true, { gate: { most: 6 } }),
  refineCase("k4v4_g128", true, { gate: { most: 6 } }),
  attendCase("k4v2_g128", 4_096, COMMON, { peers: true, gate: { least: 1.5 }, aim: { least: 2.5 } }),
  attendCase("k4v2_g128", 8_192, COMMON, { peers: true }),
  attendCase("k4v2_g128", 32_768, COMMON, { peers: true, gate: { least: 3 }, aim: { least: 5 } }),
  attendCase("k2v2_g128", 8_192, COMMON),
  attendCase("k4v4_g128", 8_192, COMMON),
  attendCase("k3v3_g128", 8_192, COMMON),
  attendCase("k8v8_g128", 8_192, COMMON),
  attendCase("k4v2_g128", 8_192, { queryHeads: 9, kvHeads: 3, headDim: 64 }),
  depthCase("k4v2_g128", 131_072, 8_192, COMMON),
  prefillCase("k4v2_g128", 512, 8_192, COMMON, { gate: { most: 1.3 }, aim: { most: 1 } }),
  appendCase("k4v2_g128", COMMON),
  rotateCase(),
  decodeCase("k4v2_g128"),
];

/** Ours: what is timed first in each case. */
function ours(kvarn: Kvarn, contender: Contender, perCall: number): Entrant {
  const { kind: backend, variant } = kvarn.backend;
  return { backend, variant, label: `${backend} ${variant}`, contender, isBaseline: false, perCall };
}

function plainPass(contender: Contender, perCall: number): Entrant {
  return {
    ...{ backend: "plain pass", variant: "f32 simd", label: "a plain SIMD pass" },
    ...{ contender, isBaseline: true, perCall },
  };
}

function uncompressed(contender: Contender, perCall: number): Entrant {
  return {
    ...{ backend: "uncompressed", variant: "f32 simd", label: "our f32 SIMD" },
    ...{ contender, isBaseline: true, perCall },
  };
}

/** One K+V record, from f32 to bytes. */
function encodeCase(preset: string, targets?: Targets): Case {
  return {
    name: "encode",
    case: `${preset} d128`,
    unit: "us/record",
    ratioUnit: "passes",
    ...targets,
    async prepare({ kvarn }) {
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
      const encode: Contender = {
        run: (call) => kvarn.encode(tile(k, call % records), tile(v, call % records), options),
      };
      const pass: Contender = {
        run: (call) => {
          plain.run(2 * (call % records));
          plain.run(2 * (call % records) + 1);
        },
      };
      return { entrants: [ours(kvarn, encode, 1), plainPass(pass, 1)] };
    },
  };
}

/** One K+V record of the refined encoder beside the strict one's. */
function refineCase(preset: string, byQueries: boolean, targets: Targets): Case {
  return {
    name: "refine",
    case: `${preset} d128${byQueries ? " by queries" : ""}`,
    unit: "us/record",
    ratioUnit: "x time",
    ...targets,
    async prepare({ kvarn }) {
      const [headDim, queryHeads] = [128, 4];
      const source = new Source(7);
      const { k, v } = source.tokens(parsePreset(preset).group, 1, headDim);
      const options = { preset, kvHeads: 1, headDim };
      // Those of one token: a cache has taken in the others before.
      const queries = byQueries ? { queries: source.rows(queryHeads, headDim), queryHeads } : {};
      const refined = { run: () => kvarn.encode(k, v, { ...options, encoder: "refined", ...queries }) };
      const strict = { run: () => kvarn.encode(k, v, options) };
      const [entrant, itself] = [refined, strict].map((contender) => ours(kvarn, contender, 1));
      const baseline = {
        label: "itself, strict",
        variant: `${itself.variant}, strict encoder`,
        isBaseline: true,
      };
      return { entrants: [entrant, { ...itself, ...baseline }] };
    },
  };
}

/** Attention of one token over a filled cache, sink and tail included. */
function attendCase(preset: string, context: number, heads: Heads, options: AttendOptions = {}): Case {
  const { peers: beside, ...targets } = options;
  const { queryHeads, kvHeads, headDim } = heads;
  return {
    name: "attend",
    case: `${preset} d${headDim} h${queryHeads}/${kvHeads} t${context}`,
    unit: "us",
    ratioUnit: "x speed",
    ...targets,
    async prepare(setting) {
      const { kvarn, mostTokens } = setting;
      const tokens = Math.min(context, mostTokens);
      const cache = await fill(kvarn, preset, heads, tokens);
      const exact = await openUncompressed({ ...heads, capacity: tokens });
      for (const { k, v } of chunksOf(tokens, heads)) exact.append(k, v);
      const source = new Source(6);
      const queries = Array.from({ length: 8 }, () => source.rows(queryHeads, headDim));
      const out = new Float32Array(queryHeads * headDim);
      const work: Work = {
        ...{ ...heads, tokens, queries: 1, chunks: () => chunksOf(tokens, heads) },
        ...{ q: queries[0], expected: exact.attend(queries[0]) },
      };
      const { entrants, close } = await enter(work, setting, beside ? setting.peers : []);
      return {
        entrants: [
          ours(kvarn, { run: (call) => cache.attend(0, queries[call % queries.length], { out }) }, 1),
          uncompressed({ run: (call) => void exact.attend(queries[call % queries.length], out) }, 1),
          ...entrants,
        ],
        close: async () => {
          cache.dispose();
          await close();
        },
      };
    },
  };
}

/** What a token of context costs one query token where there are many, and where there are fewer. */
function depthCase(preset: string, context: number, less: number, heads: Heads): Case {
  const { queryHeads, kvHeads, headDim } = heads;
  return {
    name: "depth",
    case: `${preset} d${headDim} h${queryHeads}/${kvHeads} t${context}`,
    unit: "ns/token of context",
    ratioUnit: "x time",
    async prepare({ kvarn, mostTokens }) {
      const q = new Source(6).rows(queryHeads, headDim);
      const out = new Float32Array(q.length);
      const caches: KvarnCache[] = [];
      const entrants: Entrant[] = [];
      for (const length of [context, less]) {
        const tokens = Math.min(length, mostTokens);
        const cache = await fill(kvarn, preset, heads, tokens);
        caches.push(cache);
        entrants.push(ours(kvarn, { run: () => cache.attend(0, q, { out }) }, tokens));
      }
      const [deep, shallow] = entrants;
      const label = `itself at t${less}`;
      return {
        entrants: [deep, { ...shallow, label, variant: `${shallow.variant} t${less}`, isBaseline: true }],
        close: async () => caches.forEach((cache) => cache.dispose()),
      };
    },
  };
}

/** Attention of many new tokens at once, as where a prompt comes in chunks. */
function prefillCase(preset: string, queries: number, context: number, heads: Heads, targets: Targets): Case {
  const { queryHeads, kvHeads, headDim } = heads;
  return {
    name: "prefill",
    case: `${preset} d${headDim} h${queryHeads}/${kvHeads} q${queries} t${context}`,
    unit: "us/token",
    ratioUnit: "x time",
    isLong: true,
    ...targets,
    async prepare(setting) {
      const { kvarn, mostTokens } = setting;
      const tokens = Math.min(context, mostTokens);
      const news = Math.min(queries, tokens >> 1);
      const cache = await fill(kvarn, preset, heads, tokens);
      const exact = await openUncompressed({ ...heads, capacity: tokens });
      for (const { k, v } of chunksOf(tokens, heads)) exact.append(k, v);
      const q = new Source(6).rows(news * queryHeads, headDim);
      const out = new Float32Array(q.length);
      const work: Work = {
        ...{ ...heads, tokens, queries: news, chunks: () => chunksOf(tokens, heads) },
        ...{ q, expected: exact.prefill(q) },
      };
      const { entrants, close } = await enter(work, setting, setting.peers);
      return {
        entrants: [
          ours(kvarn, { run: () => cache.attend(0, q, { out }) }, news),
          uncompressed({ run: () => void exact.prefill(q, out) }, news),
          ...entrants,
        ],
        close: async () => {
          cache.dispose();
          await close();
        },
      };
    },
  };
}

/** Opens the peers that can do this work. */
async function enter(
  work: Work,
  { refuse }: Setting,
  peers: readonly Peer[],
): Promise<{ entrants: Entrant[]; close: () => Promise<void> }> {
  const entrants: Entrant[] = [];
  const opened: OpenPeer[] = [];
  for (const peer of peers) {
    try {
      const contender = await peer.open(work);
      opened.push(contender);
      const label = `${peer.backend} ${peer.variant}`;
      entrants.push({ ...peer, label, contender, perCall: work.queries > 1 ? work.queries : 1 });
    } catch (error) {
      refuse(peer, error);
    }
  }
  return {
    entrants,
    close: async () => {
      for (const peer of opened) await peer.close?.();
    },
  };
}

/** A cache of one layer with all the tokens of {@link chunksOf}. */
async function fill(kvarn: Kvarn, preset: string, heads: Heads, tokens: number): Promise<KvarnCache> {
  const cache = kvarn.createCache({ ...heads, preset, layers: 1, capacity: tokens });
  for (const { k, v } of chunksOf(tokens, heads)) await cache.append(0, k, v);
  await cache.flush();
  return cache;
}

/** The same tokens at each call. */
function* chunksOf(
  tokens: number,
  { kvHeads, headDim }: Heads,
): Generator<{ k: Float32Array; v: Float32Array }> {
  const source = new Source(2);
  for (let at = 0; at < tokens; at += CHUNK) {
    yield source.tokens(Math.min(CHUNK, tokens - at), kvHeads, headDim);
  }
}

/** Tokens one by one, their encoding included: whole tiles, so that each token bears its share. */
function appendCase(preset: string, heads: Heads): Case {
  const { kvHeads, headDim, queryHeads } = heads;
  return {
    name: "append",
    case: `${preset} d${headDim} h${queryHeads}/${kvHeads}`,
    unit: "us/token",
    ratioUnit: "x speed",
    async prepare({ kvarn }) {
      const { group } = parsePreset(preset);
      const start = 2 * group;
      const tokens = 2 * group;
      const cache = kvarn.createCache({ ...heads, preset, layers: 1, capacity: start + tokens });
      const source = new Source(3);
      const prompt = source.tokens(start, kvHeads, headDim);
      await cache.append(0, prompt.k, prompt.v);
      await cache.flush();
      const steps = Array.from({ length: tokens }, () => source.tokens(1, kvHeads, headDim));
      const exact = await openUncompressed({ ...heads, capacity: tokens });
      const append: Contender = {
        reset: () => cache.truncate(start),
        run: async () => {
          for (const { k, v } of steps) await cache.append(0, k, v);
          await cache.flush();
        },
      };
      const store: Contender = {
        reset: () => exact.clear(),
        run: () => {
          for (const { k, v } of steps) exact.append(k, v);
        },
      };
      return {
        entrants: [ours(kvarn, append, tokens), uncompressed(store, tokens)],
        close: async () => cache.dispose(),
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
    ratioUnit: "passes",
    async prepare({ kvarn }) {
      const rows = 4_096;
      const x = new Source(4).rows(rows, headDim);
      const out = new Float32Array(x.length);
      const plain = await openPlainPass({ rows, columns: headDim, tiles: x, columnScale: SCALE });
      return {
        entrants: [
          ours(kvarn, { run: () => kvarn.rotate(x, { headDim, out }) }, rows),
          plainPass({ run: () => plain.run(0) }, rows),
        ],
      };
    },
  };
}

/** Records to K and V in f32. */
function decodeCase(preset: string): Case {
  const headDim = 128;
  return {
    name: "decode",
    case: `${preset} d${headDim}`,
    unit: "us/record",
    ratioUnit: "passes",
    async prepare({ kvarn }) {
      const { group } = parsePreset(preset);
      const kvHeads = 8;
      const tokens = 2 * group;
      const { k, v } = new Source(5).tokens(tokens, kvHeads, headDim);
      const records = await kvarn.encode(k, v, { preset, kvHeads, headDim });
      const out = { k: new Float32Array(k.length), v: new Float32Array(v.length) };
      const tiles = new Float32Array(2 * k.length);
      tiles.set(k);
      tiles.set(v, k.length);
      const rows = tokens * kvHeads;
      const plain = await openPlainPass({ rows, columns: headDim, tiles, columnScale: SCALE });
      const pass: Contender = {
        run: () => {
          plain.run(0);
          plain.run(1);
        },
      };
      return {
        entrants: [
          ours(kvarn, { run: () => kvarn.decode(records, { preset, kvHeads, headDim, out }) }, 2 * kvHeads),
          plainPass(pass, 2 * kvHeads),
        ],
      };
    },
  };
}
