/** Attention over records and exact tokens on a GPU. */
import { type RecordLayout, rotationBlock } from "../format.js";
import { attendBlocks, blockRows } from "./attend-blocks.js";
import { type AttendChunk, cut, mostSplits, type Partials, split, windowWord } from "./attend-splits.js";
import { codeConstants, recordConstants } from "./record.js";
import { type Binding, floatBits, type Gpu } from "./gpu.js";
import type { Constants } from "./shader.js";

export interface AttendShape {
  readonly kvHeads: number;
  readonly queryHeads: number;
  readonly headDim: number;
  readonly layout: RecordLayout;
}

/** Record tiles in one buffer. */
export interface RecordRun {
  readonly buffer: GPUBuffer;
  /** Two words a tile: where the records of its heads begin, in 4-byte words, and its first position. */
  readonly tiles: Uint32Array<ArrayBuffer>;
}

/** Exact tiles in one buffer: binary16 `[token][2 (K, V)][kvHeads][headDim]`, rotated. */
export interface ExactRun {
  readonly buffer: GPUBuffer;
  /** Three words a tile: where it begins, in 4-byte words, its first position and its tokens. */
  readonly tiles: Uint32Array<ArrayBuffer>;
}

export interface GpuAttendRequest {
  readonly q: Binding;
  /** Where q, `[queryTokens, queryHeads, headDim]`, not rotated, begins in its binding, in 4-byte words. */
  readonly qWord: number;
  /** Whether q is binary16, two a word. */
  readonly half: boolean;
  readonly queryTokens: number;
  /** Position of the first query token; the others follow. A query sees tokens up to its own position. */
  readonly position: number;
  readonly records: readonly RecordRun[];
  readonly exact: readonly ExactRun[];
  /** How many tokens a query sees; Infinity: all. */
  readonly slidingWindow: number;
  /** 0: none. */
  readonly softCap: number;
  readonly sinkLogits: Float32Array | undefined;
  readonly softmaxScale: number;
  readonly out: Binding;
  /** Where the f32 output `[queryTokens, queryHeads, headDim]` begins in its binding, in words. */
  readonly outWord: number;
}

/** Most bytes of partial results. */
const PARTIAL_BYTES = 1 << 26;
/** Most workgroups in a dimension of the grid. */
const MOST_GROUPS = 65535;
/** Exact tokens that a workgroup takes at a time: as many as it can. */
const PIECE = 64;
/**
 * Invocations of a workgroup of attend-tiles, with up to 14 KiB of workgroup memory, which every device has; with heads of 128
 * less than 12, so that four share the 48 of a multiprocessor (see bench/NOTES.md before adding to it).
 */
const THREADS = 64;
/** Invocations of a workgroup of attend-matrix, and exact tokens that it takes at least. */
const MATRIX_THREADS = 128;
const MATRIX_PIECE = 16;
/** Rows that an invocation takes at most, and with heads of more than 256, whose queries take much workgroup memory. */
const MOST_ROWS = 4;
const MOST_LONG_ROWS = 2;

/** What suits a device. */
interface Pace {
  /** Workgroups that keep it busy: with all rows of a KV head in one, and with some of them. */
  readonly groups: readonly [all: number, some: number];
  /** Rows that an invocation takes at least: 1, 2 or 4. */
  readonly leastRows: number;
  /** Exact tokens that a workgroup takes at a time where they are few. */
  readonly leastPiece: number;
  /** Invocations of a workgroup of attend-combine: at least 64, more where rows are longer than 256. */
  readonly combine: number;
  /** Values of exact tokens, and partial results, that each invocation fetches before it needs them. */
  readonly ahead: number;
  /** Words of codes of K that each invocation fetches and goes through at a time. */
  readonly keyWords: number;
  /** The same of V. */
  readonly valueWords: number;
}

const HARDWARE: Pace = {
  groups: [528, 1024],
  leastRows: 1,
  leastPiece: 8,
  combine: 128,
  ahead: 8,
  keyWords: 16,
  valueWords: 8,
};
/** On a CPU invocations take turns, each barrier costs a change of them, and code takes long to compile. */
const SOFTWARE: Pace = {
  groups: [8, 8],
  leastRows: 4,
  leastPiece: 64,
  combine: 64,
  ahead: 1,
  keyWords: 1,
  valueWords: 1,
};

function paceOf({ software }: Gpu): Pace {
  return software ? SOFTWARE : HARDWARE;
}

/**
 * Enqueues attention of some query tokens over cached ones, see the reference's `attend`.
 * @param partialBytes most bytes of partial results
 */
export function attend(
  gpu: Gpu,
  shape: AttendShape,
  request: GpuAttendRequest,
  partialBytes = PARTIAL_BYTES,
): void {
  const { kvHeads, queryHeads, headDim } = shape;
  const headsPerKvHead = queryHeads / kvHeads;
  const rows = request.queryTokens * headsPerKvHead;
  // Query tokens in chunks whose partial results fit with one split a run, and whose rows fit into a grid.
  const runs = Math.max(1, request.records.length + request.exact.length);
  const rowBytes = kvHeads * (headDim + 2) * 4;
  const most = Math.min(MOST_GROUPS, Math.floor(partialBytes / 2 / rowBytes / runs));
  // Less what completes the last block.
  const mostRows = (rowsAtOnce: number) => most - (rowsAtOnce - 1);
  const block = blockRows(gpu, headDim, rows);
  const inBlocks = Math.min(rows, mostRows(block.rows)) >= block.leastRows;
  const rowsAtOnce = inBlocks ? block.rows : fewRows(gpu, headDim, rows);
  const mostTokens = Math.max(1, Math.floor(mostRows(rowsAtOnce) / headsPerKvHead));
  const sinkLogits =
    request.sinkLogits && gpu.table(new Uint32Array(Float32Array.from(request.sinkLogits).buffer));
  const attendChunk = inBlocks
    ? attendBlocks(gpu, shape, request)
    : attendTiles(gpu, shape, request, rowsAtOnce);
  for (let token = 0; token < request.queryTokens; token += mostTokens) {
    const rows = Math.min(mostTokens, request.queryTokens - token) * headsPerKvHead;
    const blocks = Math.ceil(rows / rowsAtOnce);
    const paddedRows = blocks * rowsAtOnce;
    const mostSlots = Math.floor(partialBytes / (rowBytes * paddedRows));
    const room = (slots: number): Partials => ({
      slots,
      partials: { buffer: gpu.scratch("attend-partials", slots * kvHeads * paddedRows * headDim * 4) },
      totals: { buffer: gpu.scratch("attend-totals", slots * kvHeads * paddedRows * 8) },
    });
    const partials = attendChunk({ token, rows, blocks, mostSlots, room });
    combine(gpu, shape, request, { token, rows, paddedRows }, partials, sinkLogits);
  }
}

/** Rows that an invocation of attend-tiles takes. */
function fewRows(gpu: Gpu, headDim: number, rows: number): number {
  return Math.min(
    headDim > 256 ? MOST_LONG_ROWS : MOST_ROWS,
    Math.max(paceOf(gpu).leastRows, 2 ** Math.ceil(Math.log2(rows))),
  );
}

/** Tiles, or pieces of tiles, in one buffer. */
interface Run {
  readonly tiles: Binding | undefined;
  readonly table: Binding | undefined;
  readonly count: number;
}

function hasTiles({ count }: Run): boolean {
  return count > 0;
}

const NO_TILES: Run = { tiles: undefined, table: undefined, count: 0 };

/** Attention of a few rows at a time: a packed word is taken apart for each few of them. */
function attendTiles(
  gpu: Gpu,
  { kvHeads, queryHeads, headDim, layout }: AttendShape,
  request: GpuAttendRequest,
  rowsAtOnce: number,
): AttendChunk {
  const headsPerKvHead = queryHeads / kvHeads;
  const pace = paceOf(gpu);
  const run = (buffer: GPUBuffer, table: Uint32Array<ArrayBuffer>, words: number): Run => ({
    tiles: { buffer },
    table: gpu.table(table),
    count: table.length / words,
  });
  const exactTokens = request.exact.reduce((sum, { tiles }) => sum + countTokens(tiles), 0);
  const work = (exactTokens * kvHeads * request.queryTokens * headsPerKvHead) / rowsAtOnce;
  const onMatrix = suitsMatrix(gpu, layout, rowsAtOnce);
  const leastPiece = Math.max(pace.leastPiece, onMatrix ? MATRIX_PIECE : 1);
  const piece = work > pace.groups[0] * leastPiece ? PIECE : leastPiece;
  const recordRuns = request.records.map(({ buffer, tiles }) => run(buffer, tiles, 2)).filter(hasTiles);
  const exactRuns = request.exact
    .map(({ buffer, tiles }) => run(buffer, cut(tiles, kvHeads * headDim, piece), 3))
    .filter(hasTiles);

  return ({ token, rows, blocks, mostSlots, room }) => {
    const groups = pace.groups[blocks > 1 ? 1 : 0];
    const runs = Math.max(1, recordRuns.length, exactRuns.length);
    const splitsFor = (tokens: number) =>
      mostSplits(tokens, Math.floor(mostSlots / runs / 2), groups, kvHeads * blocks);
    let slots = 0;
    const plans = Array.from({ length: runs }, (_, i) => {
      const { [i]: records = NO_TILES } = recordRuns;
      const { [i]: exact = NO_TILES } = exactRuns;
      const { kernel, constants, tilesAtOnce } = onMatrix
        ? planMatrix(pace, layout, request.softCap)
        : planTiles(pace, layout, rowsAtOnce, records.count * kvHeads * blocks);
      const recordSplits = split(records.count, tilesAtOnce, splitsFor(records.count * layout.group));
      const exactSplits = split(exact.count, 1, splitsFor(exact.count * PIECE));
      const slot = slots;
      slots += recordSplits.splits + exactSplits.splits;
      return { records, exact, kernel, constants, recordSplits, exactSplits, slot };
    });
    const partials = room(slots);
    const first = token * queryHeads * headDim;
    const rotation = { D: headDim, BLOCK: rotationBlock(headDim) };
    for (const { records, exact, kernel, constants, recordSplits, exactSplits, slot } of plans) {
      gpu.dispatch({
        kernel: gpu.kernel(kernel, { ...rotation, ...constants, HALF: Number(request.half) }),
        params: [
          records.count,
          recordSplits.each,
          recordSplits.splits,
          exact.count,
          exactSplits.each,
          slot,
          kvHeads,
          blocks,
          headsPerKvHead,
          request.qWord + (request.half ? first / 2 : first),
          rows,
          queryHeads,
          floatBits(request.softmaxScale),
          request.position + token,
          windowWord(request.slidingWindow),
          floatBits(request.softCap),
        ],
        bindings: [
          // A kind without tiles has something bound all the same.
          records.tiles ?? request.q,
          records.table ?? request.q,
          exact.tiles ?? request.q,
          exact.table ?? request.q,
          request.q,
          partials.partials,
          partials.totals,
        ],
        groups: [blocks, kvHeads, recordSplits.splits + exactSplits.splits],
      });
    }
    return partials;
  };
}

/** Merges the partial results of some query tokens. */
function combine(
  gpu: Gpu,
  { kvHeads, queryHeads, headDim }: AttendShape,
  { out, outWord }: GpuAttendRequest,
  { token, rows, paddedRows }: { token: number; rows: number; paddedRows: number },
  { slots, partials, totals }: Partials,
  sinkLogits: Binding | undefined,
): void {
  const pace = paceOf(gpu);
  gpu.dispatch({
    kernel: gpu.kernel("attend-combine", {
      D: headDim,
      BLOCK: rotationBlock(headDim),
      ...planCombine(pace, headDim),
    }),
    params: [
      slots,
      kvHeads,
      paddedRows,
      queryHeads / kvHeads,
      outWord + token * queryHeads * headDim,
      Number(sinkLogits !== undefined),
    ],
    // q may lie in the buffer of `out`, which nothing else may be bound with.
    bindings: [partials, totals, sinkLogits ?? totals, out],
    groups: [rows, kvHeads],
  });
}

/** A kernel for records and exact tokens. */
interface Plan {
  readonly kernel: string;
  readonly constants: Constants;
  /** Records that a workgroup takes at a time. */
  readonly tilesAtOnce: number;
}

/**
 * Constants of attend-tiles.
 * @param work tiles times KV heads times blocks of rows
 */
function planTiles(pace: Pace, layout: RecordLayout, rows: number, work: number): Plan {
  const { headDim, group } = layout;
  // Few tiles are scored by more invocations each.
  const slices = work <= 256 ? 4 : work <= 1024 ? 2 : 1;
  const lanes = (group / 8) * slices;
  const tiles = THREADS / lanes;
  const chunk = largestDivisor(headDim, (n) => n % 16 === 0 && n <= group);
  const { KEY_WORDS: keyWords, CHANNELS: channels, VALUE_WORDS: valueWords } = codeConstants(layout);
  const columns = headDim / channels;
  const shares = 2 ** Math.floor(Math.log2(THREADS / columns));
  const tokens = (tiles * group) / shares;
  const span = Math.min(tokens, group);
  return {
    kernel: "attend-tiles",
    tilesAtOnce: tiles,
    constants: {
      ...recordConstants(layout),
      ...codeConstants(layout),
      ROWS: rows,
      TILES: tiles,
      LANES: lanes,
      SLICES: slices,
      ...exactConstants(pace, headDim, THREADS),
      CHUNK: chunk,
      STAGED: Math.max(tiles * chunk, 8 * THREADS),
      TOKENS: 8 / slices,
      PAIRS: Math.ceil(chunk / slices / 2 / (group / 8)),
      KEYS_AHEAD: largestDivisor(chunk / slices, (n) => n === 1 || n * keyWords <= pace.keyWords),
      VALUES_AHEAD: largestDivisor(span, (n) => n === 1 || n * valueWords <= pace.valueWords),
      SHARES: shares,
      SPAN: span,
      SPANS: tokens / span,
    },
  };
}

/** What attend-exact wants to know. */
function exactConstants(pace: Pace, headDim: number, threads: number): Constants {
  const exactWords = Math.ceil(headDim / 2 / threads);
  const exactColumns = Math.ceil(headDim / 2 / exactWords);
  return {
    THREADS: threads,
    EXACT_WORDS: exactWords,
    EXACT_COLUMNS: exactColumns,
    EXACT_TEAMS: Math.floor(threads / exactColumns),
    EXACT_AHEAD: pace.ahead,
  };
}

/** Whether attend-matrix can do it, see there. */
function suitsMatrix(gpu: Gpu, { headDim, group, keyBits, valueBits }: RecordLayout, rows: number): boolean {
  const isWhole = (bits: number) => bits === 2 || bits === 4;
  return (
    gpu.matrixUnits &&
    rows === 4 &&
    headDim === 128 &&
    group === 128 &&
    isWhole(keyBits) &&
    isWhole(valueBits)
  );
}

/** Constants of attend-matrix. */
function planMatrix(pace: Pace, layout: RecordLayout, softCap: number): Plan {
  return {
    kernel: "attend-matrix",
    tilesAtOnce: 1,
    constants: {
      ...recordConstants(layout),
      ...exactConstants(pace, layout.headDim, MATRIX_THREADS),
      ROWS: 4,
      CAPPED: Number(softCap > 0),
    },
  };
}

/** Constants of attend-combine. */
function planCombine(pace: Pace, headDim: number): Record<string, number> {
  const threads = Math.max(pace.combine, 2 ** Math.ceil(Math.log2(headDim / 4)));
  const shares = Math.floor(threads / (headDim / 4));
  const ahead = Math.min(pace.ahead, Math.floor(threads / shares));
  const step = ahead * shares;
  return { THREADS: threads, SHARES: shares, AHEAD: ahead, AT_ONCE: Math.floor(threads / step) * step };
}

/** The largest divisor of `of` that is as wanted. */
function largestDivisor(of: number, wanted: (n: number) => boolean): number {
  let n = of;
  while (of % n !== 0 || !wanted(n)) n--;
  return n;
}

/** Tokens of exact tiles. */
function countTokens(tiles: Uint32Array): number {
  return tiles.reduce((sum, word, i) => (i % 3 === 2 ? sum + word : sum), 0);
}
