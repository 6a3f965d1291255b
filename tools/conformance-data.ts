/** What `conformance/data/derived.json` and `derived.bin` are made of: the cases, and what the reference backend says. */
import { attendCall, exactTokens } from "../src/conformance/checks/attend.js";
import { normalizeInput } from "../src/conformance/checks/normalize.js";
import { relativeError } from "../src/conformance/compare.js";
import type {
  AttendCase,
  CacheCase,
  DecodeCase,
  ExactTokens,
  NamedRecords,
  NormalizeCase,
  PackCase,
  RecordCase,
  RotateCase,
  Slice,
  Step,
} from "../src/conformance/data.js";
import { golden, presetOf } from "../src/conformance/data.js";
import { drawArray, makeGrid, makeInput } from "../src/conformance/input.js";
import { adapterOf } from "../src/conformance/kvarn.js";
import { decodeRecords } from "../src/conformance/record.js";
import { runScript } from "../src/conformance/script.js";
import { type LayerConfig, openKvarn, parsePreset, recordLayout } from "../src/index.js";
import { fromHalf, toHalf } from "../src/half.js";
import { normalize, quantize, rotate } from "../src/reference/index.js";

/** The two files. */
export interface DerivedFiles {
  readonly json: string;
  readonly bin: Uint8Array;
}

/**
 * No element of what the cases encode lies nearer to the middle between two codes than this, in steps, so that honest
 * rounding noise changes no code.
 */
const LEAST_MARGIN = 1e-5;

/** Makes the files: the same bytes in every run. */
export async function makeDerivedFiles(): Promise<DerivedFiles> {
  const kvarn = await openKvarn({ backend: "reference" });
  const adapter = adapterOf(kvarn);
  const bytes = new ByteFile();
  const rotateCases = ROTATE.map((one): RotateCase => {
    const output = rotate(drawArray(one.rows * one.headDim, one.seed), one.headDim);
    return { ...one, output: bytes.add(output) };
  });
  const normalizeCases: NormalizeCase[] = [];
  for (const one of NORMALIZE) {
    const { rowScale, columnScale } = await kvarn.normalize(normalizeInput(one as NormalizeCase), one);
    normalizeCases.push({ ...one, rowScale: bytes.add(rowScale), columnScale: bytes.add(columnScale) });
  }
  const packCases: PackCase[] = [];
  for (const one of PACK) {
    const { codes, scale, zero } = await kvarn.pack(makeGrid(one.rows, one.columns, one.bits, one.seed), one);
    packCases.push({ ...one, codes: bytes.add(codes), scale: bytes.add(scale), zero: bytes.add(zero) });
  }

  const records = new Map<string, NamedRecords>(
    golden.cases.cases.map((one) => [
      one.name,
      { ...one, preset: presetOf(one), records: golden.bytes(one.records) },
    ]),
  );
  const encodeCases: RecordCase[] = [];
  for (const one of ENCODE) {
    const k = makeInput({ ...one, side: "key", seed: one.keySeed });
    const v = makeInput({ ...one, side: "value", seed: one.valueSeed });
    const preset = `k${one.keyBits}v${one.valueBits}_g${one.group}`;
    checkMargin(one.name, k, v, { ...one, preset });
    const encoded = await kvarn.encode(k, v, { ...one, preset });
    const layout = recordLayout(parsePreset(preset), one.headDim);
    const decoded = decodeRecords(encoded, one.kvHeads, layout);
    records.set(one.name, { ...one, preset, records: encoded });
    encodeCases.push({
      ...one,
      keyChecksum: sum(k),
      valueChecksum: sum(v),
      keyRelativeError: relativeError(decoded.k, k),
      valueRelativeError: relativeError(decoded.v, v),
      recordBytes: layout.bytes,
      records: bytes.add(encoded),
    });
  }
  const decodeCases = DECODE.map(({ name, of, change }): DecodeCase => {
    const source = records.get(of)!;
    const layout = recordLayout(parsePreset(source.preset), source.headDim);
    const changed = source.records.slice(0, source.kvHeads * layout.bytes);
    const view = new DataView(changed.buffer);
    for (let head = 0; head < source.kvHeads; head++) {
      const start = head * layout.bytes;
      change((field, i, value) => {
        const at = start + layout[field] + 2 * i;
        view.setUint16(at, toHalf(value(fromHalf(view.getUint16(at, true)))), true);
      }, source.headDim);
    }
    const { preset, kvHeads, headDim } = source;
    records.set(name, { preset, kvHeads, headDim, records: changed });
    return { name, preset, kvHeads, headDim, records: bytes.add(changed) };
  });

  const attendCases: AttendCase[] = [];
  for (const one of ATTEND) {
    const { preset, kvHeads, headDim, records: held } = records.get(one.records)!;
    const full = { ...one, preset, kvHeads, headDim };
    const out = await adapter.attend!(attendCall(full, held));
    attendCases.push({ ...full, output: bytes.add(out) });
  }

  const cacheCases: CacheCase[] = [];
  for (const script of CACHE) {
    checkScriptMargin(script);
    const steps = new Map<Step, Step>();
    await runScript(adapter, script, {
      attended: (step, out) => steps.set(step, { ...step, output: bytes.add(out) }),
      exported: (step, records) => {
        const { kvHeads, headDim } = script.config.layers[step.layer];
        const perTile = kvHeads * recordLayout(parsePreset(script.config.preset), headDim).bytes;
        const tiles = Array.from({ length: records.length / perTile }, (_, i) =>
          bytes.add(records.subarray(i * perTile, (i + 1) * perTile)),
        );
        steps.set(step, { ...step, records: tiles });
      },
      counted: (step, length) => steps.set(step, { ...step, length }),
      saved: (step, saved) => steps.set(step, { ...step, mostBytes: Math.ceil(1.25 * saved.length) + 4096 }),
    });
    cacheCases.push({ ...script, steps: script.steps.map((step) => steps.get(step) ?? step) });
  }
  kvarn.dispose();

  const cases = {
    rotate: rotateCases,
    normalize: normalizeCases,
    pack: packCases,
    encode: encodeCases,
    decode: decodeCases,
    attend: attendCases,
    cache: cacheCases,
  };
  return { json: `${stringify(cases)}\n`, bin: bytes.take() };
}

/** One case or step a line. */
function stringify(cases: Readonly<Record<string, readonly object[]>>): string {
  const lists = Object.entries(cases).map(([name, list]) => {
    const lines = list.map((one) => {
      if (!("steps" in one)) return `  ${JSON.stringify(one)}`;
      const { steps, ...rest } = one as CacheCase;
      const inner = steps.map((step) => `    ${JSON.stringify(step)}`).join(",\n");
      return `  ${JSON.stringify(rest).slice(0, -1)},"steps":[\n${inner}\n  ]}`;
    });
    return ` ${JSON.stringify(name)}: [\n${lines.join(",\n")}\n ]`;
  });
  return `{\n${lists.join(",\n")}\n}`;
}

/** Bytes behind one another, the same ones once. */
class ByteFile {
  readonly #parts: Uint8Array[] = [];
  readonly #known = new Map<string, Slice>();
  #length = 0;

  add(data: Float32Array | Uint8Array): Slice {
    const bytes = data instanceof Uint8Array ? data : littleEndian(data);
    const key = bytes.join();
    const known = this.#known.get(key);
    if (known) return known;
    const slice = { offset: this.#length, bytes: bytes.length };
    this.#known.set(key, slice);
    this.#parts.push(bytes);
    this.#length += bytes.length;
    return slice;
  }

  take(): Uint8Array {
    const all = new Uint8Array(this.#length);
    let at = 0;
    for (const part of this.#parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

function littleEndian(values: Float32Array): Uint8Array {
  const view = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, i) => view.setFloat32(4 * i, value, true));
  return new Uint8Array(view.buffer);
}

function sum(values: Float32Array): number {
  return values.reduce((total, x) => total + x, 0);
}

/** How whole tiles are encoded. */
interface TileShape {
  readonly preset: string;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly iterations: number;
}

/** Throws unless every code of some whole tiles is certain. */
function checkMargin(name: string, k: Float32Array, v: Float32Array, shape: TileShape): void {
  const margin = marginOf(k, v, shape);
  if (margin < LEAST_MARGIN)
    throw new Error(`${name}: a code is decided by ${margin} of a step; take another seed`);
}

/** How far the nearest element of some whole tiles is from the middle between two codes, in steps. */
export function marginOf(
  k: Float32Array,
  v: Float32Array,
  { preset, kvHeads, headDim, iterations }: TileShape,
): number {
  const { group, keyBits, valueBits } = parsePreset(preset);
  let least = Infinity;
  const width = kvHeads * headDim;
  for (let tile = 0; tile < k.length / (group * width); tile++) {
    for (let head = 0; head < kvHeads; head++) {
      const rows = (x: Float32Array): Float32Array => {
        const rotated = new Float32Array(group * headDim);
        for (let token = 0; token < group; token++) {
          const at = (tile * group + token) * width + head * headDim;
          rotated.set(rotate(x.slice(at, at + headDim), headDim), token * headDim);
        }
        return rotated.map((value) => fromHalf(toHalf(value)));
      };
      const keys = rows(k);
      const transposed = keys.map((_, i) => keys[(i % group) * headDim + Math.floor(i / group)]);
      least = Math.min(
        least,
        tileMargin(transposed, headDim, group, keyBits, iterations),
        tileMargin(rows(v), group, headDim, valueBits, iterations),
      );
    }
  }
  return least;
}

function tileMargin(
  tile: Float32Array,
  rows: number,
  columns: number,
  bits: number,
  iterations: number,
): number {
  const { balanced } = normalize(tile, rows, columns, iterations);
  const { scale, zero } = quantize(balanced, rows, columns, bits);
  let least = Infinity;
  balanced.forEach((x, i) => {
    const row = Math.floor(i / columns);
    const steps = (x - zero[row]) / scale[row];
    least = Math.min(least, Math.abs(steps - Math.floor(steps) - 0.5));
  });
  return least;
}

/** The same for every tile that is ever full in the life of a cache, but for the sink. */
function checkScriptMargin({ name, config, tokens, steps }: CacheCase): void {
  const { group } = parsePreset(config.preset);
  type Held = readonly (readonly string[])[];
  const caches = new Map<string, Held>([["main", config.layers.map(() => [])]]);
  const checked = new Set<string>();
  for (const step of steps) {
    const held = caches.get(step.cache)!;
    if (step.do === "append") {
      const added = Array.from({ length: step.count }, (_, i) => `${step.tokens} ${step.from + i}`);
      const now = held.map((layer, i) => (i === step.layer ? [...layer, ...added] : layer));
      caches.set(step.cache, now);
      const layer = now[step.layer];
      for (let start = group; start + group <= layer.length; start += group) {
        const tile = layer.slice(start, start + group);
        const key = `${step.layer} ${tile.join()}`;
        if (checked.has(key)) continue;
        checked.add(key);
        const shape = {
          ...config.layers[step.layer],
          preset: config.preset,
          iterations: config.iterations,
        };
        const { k, v } = gather(tile, tokens, shape.kvHeads * shape.headDim);
        checkMargin(`${name}, tile at ${start}`, k, v, shape);
      }
    } else if (step.do === "truncate") {
      caches.set(
        step.cache,
        held.map((layer) => layer.slice(0, step.length)),
      );
    } else if (step.do === "fork" || step.do === "save") {
      caches.set(step.as, held);
    }
  }
}

/** K and V of tokens by `name index`. */
function gather(
  names: readonly string[],
  tokens: CacheCase["tokens"],
  width: number,
): { k: Float32Array; v: Float32Array } {
  const all = new Map(Object.entries(tokens).map(([name, each]) => [name, exactTokens(each, width)]));
  const k = new Float32Array(names.length * width);
  const v = new Float32Array(names.length * width);
  names.forEach((each, i) => {
    const [name, index] = each.split(" ");
    const from = all.get(name)!;
    const at = Number(index) * width;
    k.set(from.k.subarray(at, at + width), i * width);
    v.set(from.v.subarray(at, at + width), i * width);
  });
  return { k, v };
}

const ROTATE = [16, 64, 80, 512].map((headDim) => ({
  name: `d${headDim}`,
  rows: headDim === 512 ? 2 : 4,
  headDim,
  seed: 1000 + headDim,
}));

const KEY_TILE = { side: "key", rows: 64, columns: 128, scale: 1 } as const;
const VALUE_TILE = { side: "value", rows: 128, columns: 64, scale: 1 } as const;

const NORMALIZE = [
  { name: "gauss, K", ...KEY_TILE, kind: "gauss", seed: 2001, iterations: 8 },
  { name: "outliers, V", ...VALUE_TILE, kind: "outlier", seed: 2002, iterations: 8 },
  { name: "hot, K: the second iterate is the best", ...KEY_TILE, kind: "hot", seed: 2088, iterations: 8 },
  { name: "hot, V", ...VALUE_TILE, kind: "hot", seed: 2004, iterations: 8 },
  { name: "one iteration", ...VALUE_TILE, kind: "outlier", seed: 2005, iterations: 1 },
  { name: "no iterations", ...KEY_TILE, kind: "outlier", seed: 2006, iterations: 0 },
  { name: "channels far from zero", ...KEY_TILE, kind: "offset", seed: 2007, iterations: 8 },
  { name: "spread below the least scale", ...KEY_TILE, kind: "lowstd", seed: 2008, iterations: 8 },
  {
    name: "spread above the largest step",
    ...VALUE_TILE,
    kind: "outlier",
    seed: 2009,
    iterations: 3,
    scale: 8192,
  },
] as const satisfies readonly Omit<NormalizeCase, "rowScale" | "columnScale">[];

const PACK = [2, 3, 4, 5, 6, 8].map((bits) => ({
  name: `${bits} bits`,
  rows: 32,
  columns: 48,
  bits,
  seed: 3000 + bits,
}));

const SMALL = { kvHeads: 2, headDim: 16, group: 64, keyBits: 4, valueBits: 2, iterations: 8 } as const;

const ENCODE = [
  { name: "gauss_d16_k4v2_g64_i8", kind: "gauss", ...SMALL, tokens: 192, keySeed: 4011, valueSeed: 4012 },
  {
    name: "outlier_d16_k5v6_g64_i8",
    kind: "outlier",
    ...SMALL,
    kvHeads: 1,
    keyBits: 5,
    valueBits: 6,
    tokens: 64,
    keySeed: 4013,
    valueSeed: 4014,
  },
  {
    name: "outlier_d48_k4v2_g64_i8",
    kind: "outlier",
    ...SMALL,
    kvHeads: 1,
    headDim: 48,
    tokens: 64,
    keySeed: 4005,
    valueSeed: 4006,
  },
  {
    name: "outlier_d16_k4v2_g64_i0",
    kind: "outlier",
    ...SMALL,
    iterations: 0,
    tokens: 64,
    keySeed: 4017,
    valueSeed: 4018,
  },
] as const satisfies readonly Partial<RecordCase>[];

type Field = "kScale" | "kZero" | "kToken";
type Change = (
  set: (field: Field, i: number, value: (old: number) => number) => void,
  headDim: number,
) => void;

/** Records with scales that the encoder does not choose. */
const DECODE: readonly { name: string; of: string; change: Change }[] = [
  {
    // What K scales hold moved to them from the token scales.
    name: "scales of K near the end of binary16",
    of: "gauss_d16_k4v2_g64_i8",
    change: (set, headDim) => {
      for (let i = 0; i < headDim; i++) {
        set("kScale", i, (old) => old * 2 ** 13);
        set("kZero", i, (old) => old * 2 ** 13);
      }
      for (let i = 0; i < 64; i++) set("kToken", i, (old) => old * 2 ** -13);
    },
  },
];

const NONE: ExactTokens = { tokens: 0, keySeed: 1, valueSeed: 1 };
const SINK: ExactTokens = { tokens: 64, keySeed: 5001, valueSeed: 5002 };
const TAIL: ExactTokens = { tokens: 37, keySeed: 5003, valueSeed: 5004 };

/** Over a sink, three tiles and a tail: 293 tokens. */
const LONG = { records: "gauss_d16_k4v2_g64_i8", queryHeads: 6, sink: SINK, tail: TAIL };

function queries(tokens: number, seed: number, scale = 0.25): AttendCase["queries"] {
  return { tokens, seed, scale };
}

const ATTEND: readonly Omit<AttendCase, "preset" | "kvHeads" | "headDim" | "output">[] = [
  { name: "one query, 3 query heads per KV head", ...LONG, queries: queries(1, 6001) },
  { name: "three queries, causal", ...LONG, queries: queries(3, 6002) },
  {
    name: "as many queries as the tail has tokens",
    ...LONG,
    tail: { ...TAIL, tokens: 9 },
    queries: queries(9, 6003),
  },
  { name: "window that ends in the tail", ...LONG, slidingWindow: 20, queries: queries(2, 6004) },
  { name: "window that ends in a record", ...LONG, slidingWindow: 100, queries: queries(2, 6005) },
  { name: "window at a tile's end", ...LONG, slidingWindow: 101, queries: queries(1, 6006) },
  { name: "window that ends in the sink", ...LONG, slidingWindow: 260, queries: queries(2, 6007) },
  { name: "soft cap", ...LONG, softCap: 1.5, queries: queries(2, 6008, 1) },
  { name: "sink logits", ...LONG, sinkLogits: [4, -2, 0, 6, 5.5, -30], queries: queries(2, 6009) },
  { name: "softmax scale", ...LONG, softmaxScale: 0.0625, queries: queries(2, 6010, 1) },
  {
    name: "window, soft cap, sink logits and softmax scale",
    ...LONG,
    ...{ slidingWindow: 150, softCap: 2, sinkLogits: [3, -1, 0, 4, 2, -3], softmaxScale: 0.5 },
    queries: queries(2, 6011, 0.5),
  },
  {
    name: "queries times scales beyond binary16",
    records: "scales of K near the end of binary16",
    queryHeads: 2,
    sink: NONE,
    tail: NONE,
    softmaxScale: 2 ** -8,
    queries: queries(1, 6012, 32),
  },
  ...(
    [
      ["outlier_d16_k5v6_g64_i8", 5, 64, 0.0625],
      ["outlier_d48_k4v2_g64_i8", 1, 64, 0.0625],
      ["hot_d128_k2v2_g64_i8", 3, 0, 0.0078125],
      ["hot_d64_k3v3_g64_i8", 4, 64, 0.0078125],
      ["hot_d64_k6v5_g128_i8", 2, 128, 0.0078125],
      ["outlier_d64_k8v8_g64_i8", 2, 64, 0.03125],
      ["hot_d128_k4v2_g128_i8", 8, 0, 0.0078125],
      ["outlier_d256_k4v2_g128_i8", 2, 128, 0.03125],
    ] as const
  ).map(([records, queryHeads, sink, scale], i) => ({
    name: `over ${records}`,
    records,
    queryHeads,
    sink: sink === 0 ? NONE : { ...SINK, tokens: sink },
    tail: sink === 0 ? NONE : { ...TAIL, tokens: 3 },
    queries: queries(1, 6020 + i, scale),
  })),
];

/** Tokens of the cache's lives, and what stands for them after a cut. */
const TOKENS = {
  A: { tokens: 340, keySeed: 7001, valueSeed: 7002 },
  B: { tokens: 260, keySeed: 7003, valueSeed: 7004 },
};
const LAYER: LayerConfig = { queryHeads: 6, kvHeads: 2, headDim: 16 };
const UNKNOWN: Slice = { offset: 0, bytes: 0 };

interface Where {
  cache?: string;
  layer?: number;
}

/** Tokens of A that follow those before, unless told otherwise. */
function append(from: number, count: number, more: Where & { tokens?: string; chunk?: number } = {}): Step {
  return { do: "append", cache: "main", layer: 0, tokens: "A", from, count, chunk: count, ...more };
}

function attend(seed: number, count: number, more: Where = {}): Step {
  return { do: "attend", cache: "main", layer: 0, seed, count, output: UNKNOWN, ...more };
}

function records(more: Where = {}): Step {
  return { do: "records", cache: "main", layer: 0, records: [], ...more };
}

function length(more: Where = {}): Step {
  return { do: "length", cache: "main", layer: 0, length: 0, ...more };
}

function flush(cache = "main"): Step {
  return { do: "flush", cache };
}

function truncate(length: number, cache = "main"): Step {
  return { do: "truncate", cache, length };
}

function life(name: string, steps: readonly Step[], config: Partial<CacheCase["config"]> = {}): CacheCase {
  const usual = { preset: "k4v2_g64", layers: [LAYER], iterations: 8, exactWindow: 0 };
  return { name, config: { ...usual, ...config }, tokens: TOKENS, steps };
}

const SETTLES = [flush(), length(), attend(8001, 2)];
const ENDS = [...SETTLES, records()];

const CACHE: readonly CacheCase[] = [
  life("all tokens at once", [append(0, 300), attend(8002, 2), ...ENDS]),
  life("one token at a time", [append(0, 140, { chunk: 1 }), attend(8003, 1), records(), ...ENDS]),
  life("uneven chunks", [
    ...[append(0, 37), append(37, 100), append(137, 1), append(138, 90), append(228, 72)],
    ...ENDS,
  ]),
  life("the newest tokens are exact until the next append", [
    ...[append(0, 200), records(), attend(8004, 2), append(200, 1), records(), attend(8005, 1), ...ENDS],
  ]),
  life(
    "exact window",
    [
      ...[append(0, 200), append(200, 8, { chunk: 1 }), flush(), records(), attend(8006, 2), truncate(195)],
      ...[attend(8007, 1), append(0, 20, { tokens: "B" }), append(20, 50, { tokens: "B" }), ...ENDS],
    ],
    { exactWindow: 20 },
  ),
  life("draft tokens, most of them cut", [
    ...[append(0, 250), append(250, 10), attend(8008, 10), truncate(253), length(), attend(8009, 2)],
    ...[
      append(0, 6, { tokens: "B" }),
      attend(8010, 2),
      truncate(254),
      append(6, 9, { tokens: "B" }),
      ...SETTLES,
    ],
  ]),
  life("a cut at a tile's end, and other tokens", [
    ...[append(0, 300), flush(), truncate(128), length(), attend(8011, 2), append(0, 150, { tokens: "B" })],
    ...[attend(8012, 2), ...SETTLES],
  ]),
  life("a cut into the sink, and other tokens", [
    ...[append(0, 300), flush(), truncate(30), length(), attend(8013, 2), append(0, 200, { tokens: "B" })],
    ...[attend(8014, 2), ...SETTLES],
  ]),
  life("cuts into records and beyond the end are refused", [
    ...[append(0, 300), flush(), attend(8015, 2)],
    ...[100, 200, 301].map((to): Step => ({ do: "refuse-truncate", cache: "main", length: to })),
    ...[...ENDS, truncate(0), length(), append(0, 70), attend(8016, 2)],
  ]),
  life("a fork and its parent go their own ways", [
    ...[append(0, 230), { do: "fork", cache: "main", as: "fork" } as const, append(230, 40)],
    ...[append(0, 40, { tokens: "B", cache: "fork" }), attend(8017, 2), attend(8017, 2, { cache: "fork" })],
    ...[flush(), records(), records({ cache: "fork" }), truncate(235, "fork"), attend(8018, 2)],
    ...[attend(8018, 2, { cache: "fork" }), { do: "dispose", cache: "main" } as const],
    ...[append(40, 90, { tokens: "B", cache: "fork" }), flush("fork"), length({ cache: "fork" })],
    ...[records({ cache: "fork" }), attend(8019, 2, { cache: "fork" })],
  ]),
  life("saved and restored", [
    ...[
      append(0, 230),
      flush(),
      truncate(210),
      { do: "save", cache: "main", as: "saved", mostBytes: 0 } as const,
    ],
    ...[length({ cache: "saved" }), records({ cache: "saved" }), attend(8020, 2, { cache: "saved" })],
    ...[append(210, 60), append(0, 60, { tokens: "B", cache: "saved" }), attend(8021, 2)],
    ...[attend(8021, 2, { cache: "saved" }), flush("saved"), records({ cache: "saved" })],
  ]),
  life(
    "a sliding window as the cache grows",
    [
      ...[append(0, 90), attend(8022, 2), append(90, 80), attend(8023, 2), append(170, 60), attend(8024, 2)],
      ...[append(230, 30, { chunk: 1 }), attend(8025, 1), append(260, 70), attend(8026, 2), length()],
    ],
    { layers: [{ ...LAYER, slidingWindow: 100 }] },
  ),
  life(
    "layers of different heads, windows and lengths",
    [
      ...[append(0, 200), append(0, 130, { layer: 1 }), append(0, 70, { layer: 2 }), append(200, 5)],
      ...[records(), records({ layer: 1 }), attend(8027, 2), attend(8027, 2, { layer: 1 })],
      ...[
        attend(8027, 2, { layer: 2 }),
        append(130, 75, { layer: 1 }),
        append(70, 135, { layer: 2 }),
        flush(),
      ],
      ...[0, 1, 2].flatMap((layer) => [length({ layer }), attend(8028, 2, { layer })]),
      ...[records(), records({ layer: 2 }), truncate(203)],
      ...[0, 1, 2].flatMap((layer) => [length({ layer }), attend(8029, 1, { layer })]),
    ],
    {
      layers: [
        LAYER,
        { ...LAYER, slidingWindow: 80, softCap: 0.1 },
        { queryHeads: 2, kvHeads: 1, headDim: 16 },
      ],
    },
  ),
  life("a refused append changes nothing", [
    ...[
      append(0, 130),
      { do: "refuse-append", cache: "main", layer: 0, tokens: "A", from: 130, count: 80 } as const,
    ],
    ...[length(), records(), attend(8030, 2), append(130, 80), attend(8031, 2), ...ENDS],
  ]),
  life("groups of 128 tokens", [append(0, 300), append(300, 3), attend(8032, 2), ...ENDS], {
    preset: "k4v2_g128",
  }),
  life("a tile is due as soon as it is full", [append(0, 128), flush(), records(), append(128, 64), ...ENDS]),
];
