/**
 * Candidates for the refined encoder, each alone and together, on keys or on values with the other side exact: the divergence of
 * the next token's distribution, teacher-forced. `node build/eval-js/eval/candidates.js MODEL K2|V2|K4`
 */
import { compileKernels, loadLlama } from "../examples/llama/node.js";
import type { Attention } from "../examples/llama/attention.js";
import type { Config } from "../examples/llama/config.js";
import { F32Attention } from "../examples/llama/f32-attention.js";
import { HALF_MAX, fromHalf, toHalf } from "../src/half.js";
import {
  addQuery,
  type Feedback,
  normalize,
  queryFeedback,
  rotate,
  tokenFeedback,
} from "../src/reference/index.js";
import { compareBlock } from "./distributions.js";
import { BLOCK } from "./forced.js";
import { mean } from "./mean.js";
import { WARM_UP } from "./summary.js";
import { readText, TEXTS } from "./texts.js";

const GROUP = 128;
const TOKENS = 832;

/** What a candidate does beyond plain rounding with the scales of the normalization. */
interface Candidate {
  readonly name: string;
  /** The tile is multiplied by a power of two first, so that no scale is at its least. */
  readonly prescale?: boolean;
  readonly iterations?: number;
  /** Codes are chosen again after scales are rounded to binary16. */
  readonly rechoose?: boolean;
  /** Narrower ranges to try for a row, down to this share of it. */
  readonly narrowest?: number;
  /** How scale and zero point follow from codes; default: from the range. */
  readonly fit?: "least squares" | "unbiased";
  /** Scales of columns are fitted at the end: with least error, or so that decoded columns go with exact ones fully. */
  readonly columns?: "least squares" | "unbiased";
  /** Rows and columns are fitted in turn so often again. */
  readonly again?: number;
  readonly feedback?: "tokens" | "queries" | "keys";
}

const KEYS: readonly Candidate[] = [
  { name: "strict" },
  { name: "codes again", rechoose: true },
  { name: "power of two first", rechoose: true, prescale: true },
  { name: "narrower ranges", rechoose: true, narrowest: 0.7 },
  { name: "narrower ranges, least squares", rechoose: true, narrowest: 0.7, fit: "least squares" },
  {
    name: "narrower ranges, least squares, columns too, twice",
    ...{ rechoose: true, narrowest: 0.7, fit: "least squares", columns: "least squares", again: 2 },
  },
  {
    name: "narrower ranges, unbiased (refined, no queries)",
    rechoose: true,
    narrowest: 0.7,
    fit: "unbiased",
  },
  {
    name: "the same, columns too",
    ...{ rechoose: true, narrowest: 0.7, fit: "unbiased", columns: "unbiased" },
  },
  { name: "the same, narrower still", rechoose: true, narrowest: 0.5, fit: "unbiased" },
  { name: "the same, power of two first", rechoose: true, prescale: true, narrowest: 0.7, fit: "unbiased" },
  { name: "the same, no normalization", rechoose: true, iterations: 0, narrowest: 0.7, fit: "unbiased" },
  { name: "the same, by the tile's keys", rechoose: true, narrowest: 0.7, fit: "unbiased", feedback: "keys" },
  { name: "by queries alone", rechoose: true, feedback: "queries" },
  {
    name: "by queries, narrower ranges, least squares",
    ...{ rechoose: true, narrowest: 0.7, fit: "least squares", feedback: "queries" },
  },
  {
    name: "by queries, narrower ranges, unbiased (refined)",
    ...{ rechoose: true, narrowest: 0.7, fit: "unbiased", feedback: "queries" },
  },
  {
    name: "the same, no normalization",
    ...{ rechoose: true, iterations: 0, narrowest: 0.7, fit: "unbiased", feedback: "queries" },
  },
  {
    name: "the same, columns too",
    ...{ rechoose: true, narrowest: 0.7, fit: "unbiased", feedback: "queries", columns: "unbiased" },
  },
];

const VALUES: readonly Candidate[] = [
  { name: "strict" },
  { name: "power of two first", rechoose: true, prescale: true },
  { name: "narrower ranges", rechoose: true, narrowest: 0.7 },
  { name: "narrower ranges, least squares", rechoose: true, narrowest: 0.7, fit: "least squares" },
  { name: "narrower ranges, unbiased", rechoose: true, narrowest: 0.7, fit: "unbiased" },
  { name: "feedback of tokens alone", rechoose: true, feedback: "tokens" },
  {
    name: "feedback, narrower ranges, least squares",
    ...{ rechoose: true, narrowest: 0.7, fit: "least squares", feedback: "tokens" },
  },
  {
    name: "feedback, narrower ranges, unbiased (refined)",
    ...{ rechoose: true, narrowest: 0.7, fit: "unbiased", feedback: "tokens" },
  },
  {
    name: "the same, no normalization",
    ...{ rechoose: true, iterations: 0, narrowest: 0.7, fit: "unbiased", feedback: "tokens" },
  },
];

/** What decodes of a tile `[rows, columns]`, encoded with a scale and a zero point for each row. */
function throughRecord(
  tile: Float32Array,
  rows: number,
  columns: number,
  bits: number,
  candidate: Candidate,
  feedback: Feedback | undefined,
): Float64Array {
  const columnScale = scalesOf(tile, rows, columns, candidate);
  const stored = columnScale.map(toHalfRange);
  const decoded = new Float64Array(tile.length);
  const codes = new Float64Array(tile.length);
  const order = feedback?.order ?? Array.from({ length: rows }, (_, row) => row);
  const roundRows = (): void => {
    for (const row of order) {
      const exact = Float64Array.from(tile.subarray(row * columns, (row + 1) * columns));
      const values = exact.slice();
      feedback?.correct(row, values);
      const divisors = candidate.rechoose ? stored : columnScale;
      const balanced = values.map((value, column) => value / divisors[column]);
      const fitted = fitRow(balanced, bits, candidate);
      const [scale, zero] = [fitted.scale, fitted.zero].map(toHalfRange);
      const by = candidate.rechoose ? { scale, zero } : fitted;
      balanced.forEach((value, column) => {
        const at = row * columns + column;
        codes[at] = nearest(value, by.scale, by.zero, bits) * scale + zero;
        decoded[at] = codes[at] * stored[column];
      });
      feedback?.note(
        row,
        exact.map((value, column) => decoded[row * columns + column] - value),
      );
    }
  };
  const fitColumns = (): void => {
    for (let column = 0; column < columns; column++) {
      let [squares, products, own] = [0, 0, 0];
      for (let at = column; at < tile.length; at += columns) {
        squares += codes[at] ** 2;
        products += codes[at] * tile[at];
        own += tile[at] ** 2;
      }
      const scale = candidate.columns === "unbiased" ? own / products : products / squares;
      if (scale > 0 && Number.isFinite(scale)) stored[column] = toHalfRange(scale);
      for (let at = column; at < tile.length; at += columns) decoded[at] = codes[at] * stored[column];
    }
  };
  roundRows();
  for (let i = 0; i < (candidate.again ?? 0); i++) {
    fitColumns();
    roundRows();
  }
  if (candidate.columns) fitColumns();
  return decoded;
}

function scalesOf(
  tile: Float32Array,
  rows: number,
  columns: number,
  { prescale, iterations = 8 }: Candidate,
): Float64Array {
  const squares = tile.reduce((sum, x) => sum + x * x, 0) / tile.length;
  const factor = prescale && squares > 0 ? 2 ** (6 - Math.floor(Math.log2(Math.sqrt(squares)))) : 1;
  const scaled = tile.map((x) => x * factor);
  return Float64Array.from(normalize(scaled, rows, columns, iterations).columnScale);
}

function fitRow(
  values: Float64Array,
  bits: number,
  { narrowest = 1, fit }: Candidate,
): { scale: number; zero: number } {
  const top = 2 ** bits - 1;
  const lowest = Math.min(...values);
  const range = Math.max(...values) - lowest;
  let best = { scale: range / top, zero: lowest, error: Infinity };
  const average = (of: (i: number) => number): number => mean(Array.from(values, (_, i) => of(i)));
  const centre = average((i) => values[i]);
  const variance = average((i) => (values[i] - centre) ** 2);
  for (let share = 1; share > narrowest - 1e-9; share -= 0.1) {
    let scale = (range * share) / top;
    let zero = lowest + (range * (1 - share)) / 2;
    if (fit) {
      const codes = values.map((value) => nearest(value, scale, zero, bits));
      const meanCode = average((i) => codes[i]);
      const common = average((i) => (codes[i] - meanCode) * (values[i] - centre));
      const spread = average((i) => (codes[i] - meanCode) ** 2);
      if (common > 0) {
        scale = fit === "unbiased" ? variance / common : common / spread;
        zero = centre - scale * meanCode;
      }
    }
    const error = average((i) => (nearest(values[i], scale, zero, bits) * scale + zero - values[i]) ** 2);
    if (error < best.error) best = { scale, zero, error };
  }
  return best;
}

function nearest(value: number, scale: number, zero: number, bits: number): number {
  if (!(scale > 0)) return 0;
  return Math.min(Math.max(Math.round((value - zero) / scale), 0), 2 ** bits - 1);
}

function toHalfRange(x: number): number {
  return fromHalf(toHalf(Math.min(Math.max(x, -HALF_MAX), HALF_MAX)));
}

/** The attention of the exact run, with keys or values of full tiles as a candidate gives them back. */
class CandidateAttention implements Attention {
  readonly #k: Float32Array[];
  readonly #v: Float32Array[];
  readonly #lengths: number[];
  readonly #moments: Float32Array[][];

  constructor(
    private readonly kernels: F32Attention,
    private readonly config: Config,
    private readonly side: "K" | "V",
    private readonly bits: number,
    private readonly candidate: Candidate,
  ) {
    const { layers, kvHeads, headDim } = config;
    const rows = (): Float32Array[] =>
      Array.from({ length: layers }, () => new Float32Array(TOKENS * kvHeads * headDim));
    this.#k = rows();
    this.#v = rows();
    this.#lengths = new Array<number>(layers).fill(0);
    this.#moments = Array.from({ length: layers }, () =>
      Array.from({ length: kvHeads }, () => new Float32Array(headDim ** 2)),
    );
  }

  get length(): number {
    return this.#lengths[0];
  }

  append(layer: number, k: Float32Array, v: Float32Array): void {
    const width = this.config.kvHeads * this.config.headDim;
    const length = this.#lengths[layer];
    if (length % GROUP === 0 && length >= 2 * GROUP) this.#encode(layer, length - GROUP);
    this.#k[layer].set(k, length * width);
    this.#v[layer].set(v, length * width);
    this.#lengths[layer] += k.length / width;
    this.kernels.append(layer, k, v);
  }

  attend(layer: number, q: Float32Array): Float32Array {
    if (this.candidate.feedback === "queries") {
      const { queryHeads, kvHeads, headDim } = this.config;
      const rotated = rotate(q, headDim);
      for (let row = 0; row * headDim < q.length; row++) {
        const head = Math.floor(((row % queryHeads) * kvHeads) / queryHeads);
        addQuery(this.#moments[layer][head], rotated.subarray(row * headDim, (row + 1) * headDim));
      }
    }
    return this.kernels.attend(layer, q);
  }

  #encode(layer: number, from: number): void {
    const { kvHeads, headDim } = this.config;
    const width = kvHeads * headDim;
    const [k, v] = [this.#k, this.#v].map((rows) => {
      return rows[layer].slice(from * width, (from + GROUP) * width);
    });
    const target = this.side === "K" ? k : v;
    for (let head = 0; head < kvHeads; head++) {
      const rows = new Float32Array(GROUP * headDim);
      for (let token = 0; token < GROUP; token++) {
        const at = token * width + head * headDim;
        rows.set(target.subarray(at, at + headDim), token * headDim);
      }
      const rotated = rotate(rows, headDim).map((x) => fromHalf(toHalf(x)));
      const decoded =
        this.side === "K"
          ? transpose(this.#keys(transpose(rotated, GROUP, headDim), layer, head), headDim, GROUP)
          : throughRecord(rotated, GROUP, headDim, this.bits, this.candidate, this.#tokens());
      const back = rotate(Float32Array.from(decoded), headDim);
      for (let token = 0; token < GROUP; token++) {
        target.set(back.subarray(token * headDim, (token + 1) * headDim), token * width + head * headDim);
      }
    }
    this.kernels.replace(layer, from, k, v);
  }

  #keys(tile: Float32Array, layer: number, head: number): Float32Array {
    const { headDim } = this.config;
    const { feedback } = this.candidate;
    let moment = this.#moments[layer][head];
    if (feedback === "keys") {
      moment = new Float32Array(headDim ** 2);
      const tokens = transpose(tile, headDim, GROUP);
      for (let at = 0; at < tokens.length; at += headDim) addQuery(moment, tokens.subarray(at, at + headDim));
    }
    const by = feedback ? queryFeedback(moment, headDim, GROUP) : undefined;
    return Float32Array.from(throughRecord(tile, headDim, GROUP, this.bits, this.candidate, by));
  }

  #tokens(): Feedback | undefined {
    return this.candidate.feedback === "tokens"
      ? tokenFeedback(GROUP, this.config.headDim, this.bits)
      : undefined;
  }
}

function transpose(matrix: Float32Array, rows: number, columns: number): Float32Array {
  return matrix.map((_, i) => matrix[(i % rows) * columns + Math.floor(i / rows)]);
}

async function main(): Promise<void> {
  const [path, what] = process.argv.slice(2);
  const side = what[0] as "K" | "V";
  const bits = Number(what[1]);
  const candidates = side === "K" ? KEYS : VALUES;
  const { decoder, tokenizer } = await loadLlama(path);
  const module = await compileKernels();
  const kl = candidates.map(() => [] as number[]);
  for (const text of Object.keys(TEXTS)) {
    const tokens = tokenizer.encode(readText(text)).slice(0, TOKENS);
    const exact = await F32Attention.open(module, decoder.config, TOKENS);
    const runs = await Promise.all(
      candidates.map(async (candidate) => {
        const kernels = await F32Attention.open(module, decoder.config, TOKENS);
        return new CandidateAttention(kernels, decoder.config, side, bits, candidate);
      }),
    );
    const found = candidates.map(() => [] as number[]);
    for (let from = 0; from < TOKENS; from += BLOCK) {
      const block = tokens.slice(from, from + BLOCK);
      const came = tokens.slice(from + 1, from + BLOCK + 1);
      const logits = await decoder.forward(block, exact, { logits: "all" });
      for (const [i, run] of runs.entries()) {
        const actual = await decoder.forward(block, run, { logits: "all" });
        if (from >= WARM_UP)
          found[i].push(...compareBlock(logits, actual, BLOCK, came).map((next) => next.kl));
      }
    }
    found.forEach((each, i) => kl[i].push(mean(each)));
    console.error(`${text}: done`);
  }
  console.log(`| ${what} | ${Object.keys(TEXTS).join(" | ")} | over strict |`);
  console.log("| --- | ---: | ---: | ---: | ---: |");
  candidates.forEach(({ name }, i) => {
    const over = mean(kl[i]) / mean(kl[0]);
    console.log(`| ${name} | ${kl[i].map((x) => x.toFixed(4)).join(" | ")} | ${over.toFixed(2)} |`);
  });
}

await main();
