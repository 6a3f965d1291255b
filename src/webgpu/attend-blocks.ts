/** Attention of many rows at once, as in prefill: of blocks of them by matrix products, see `shaders/attend-blocks.wgsl`. */
import { type RecordLayout, rotationBlock } from "../format.js";
import type { AttendShape, GpuAttendRequest } from "./attend.js";
import { type AttendChunk, cut, mostSplits, split, windowWord } from "./attend-splits.js";
import { type Binding, floatBits, type Gpu } from "./gpu.js";
import { codeConstants, recordConstants } from "./record.js";
import type { Constants } from "./shader.js";

/** Invocations side by side on the columns of a product, and steps of it that are staged at a time. */
const SIXTEEN = 16;
/** Channels of V that are staged at a time. */
const PART = 128;

/** What suits a device. */
interface Pace {
  /** See {@link blockRows}. */
  readonly leastRows: number;
  /** Invocations of a workgroup. */
  readonly threads: number;
  /** Fours of rows that an invocation takes where there are enough. */
  readonly rowFours: number;
  /** Steps of a product that are written out. */
  readonly unrolled: number;
  /** Workgroups that keep it busy to the end. */
  readonly groups: number;
}

/** With up to 13,056 bytes of workgroup memory, so that three share the 48 KiB of a multiprocessor. */
const HARDWARE: Pace = { leastRows: 16, threads: 128, rowFours: 2, unrolled: 8, groups: 2048 };
/** On a CPU invocations take turns, and code takes long to compile. */
const SOFTWARE: Pace = { leastRows: 24, threads: 64, rowFours: 1, unrolled: 2, groups: 8 };

function paceOf({ software }: Gpu): Pace {
  return software ? SOFTWARE : HARDWARE;
}

/**
 * Of so many rows of a KV head: those of a block, and from how many on blocks are faster than a few rows at a time.
 */
export function blockRows(gpu: Gpu, headDim: number, rows: number): { rows: number; leastRows: number } {
  const pace = paceOf(gpu);
  return { rows: teamsOf(pace) * rowFoursOf(pace, headDim, rows) * 4, leastRows: pace.leastRows };
}

/** Invocations of a workgroup one below the other. */
function teamsOf({ threads }: Pace): number {
  return threads / SIXTEEN;
}

/** Sums of long heads leave no registers for more rows, and few rows fill no larger block. */
function rowFoursOf(pace: Pace, headDim: number, rows: number): number {
  return headDim > PART || rows <= teamsOf(pace) * 4 ? 1 : pace.rowFours;
}

/** Makes ready to attend to a request's query tokens. */
export function attendBlocks(gpu: Gpu, shape: AttendShape, request: GpuAttendRequest): AttendChunk {
  const { kvHeads, queryHeads, headDim, layout } = shape;
  const headsPerKvHead = queryHeads / kvHeads;
  const pace = paceOf(gpu);
  const constants = planBlocks(pace, layout, request.queryTokens * headsPerKvHead);
  const { BLOCK_ROWS: rowsAtOnce } = constants;
  const buffers = Math.max(request.records.length, request.exact.length);
  const runs = Array.from({ length: buffers }, (_, i) => makeRun(gpu, shape, request, i));

  return ({ token, rows, blocks, mostSlots, room }) => {
    const first = token * queryHeads * headDim;
    const queries = {
      buffer: gpu.scratch("attend-queries", kvHeads * blocks * rowsAtOnce * headDim * 4),
    };
    gpu.dispatch({
      kernel: gpu.kernel("attend-rotate", {
        D: headDim,
        BLOCK: rotationBlock(headDim),
        BLOCK_ROWS: rowsAtOnce,
        ROWS: 4,
        HALF: Number(request.half),
      }),
      params: [
        request.qWord + (request.half ? first / 2 : first),
        rows,
        queryHeads,
        headsPerKvHead,
        floatBits(request.softmaxScale),
        blocks,
      ],
      bindings: [request.q, queries],
      groups: [(blocks * rowsAtOnce) / 4, kvHeads],
    });

    const most = Math.floor(mostSlots / Math.max(1, runs.length));
    let slots = 0;
    const plans = runs.map((run) => {
      const splits = mostSplits(run.count * layout.group, most, pace.groups, kvHeads * blocks);
      const divided = split(run.count, 1, splits);
      const slot = slots;
      slots += divided.splits;
      return { ...run, ...divided, slot };
    });
    const partials = room(slots);
    for (const { records, exact, tiles, count, splits, each, slot } of plans) {
      gpu.dispatch({
        kernel: gpu.kernel("attend-blocks", constants),
        params: [
          count,
          each,
          slot,
          kvHeads,
          blocks,
          headsPerKvHead,
          rows,
          request.position + token,
          windowWord(request.slidingWindow),
          floatBits(request.softCap),
        ],
        // A kind without tiles has something bound all the same.
        bindings: [records ?? queries, exact ?? queries, tiles, queries, partials.partials, partials.totals],
        groups: [blocks, kvHeads, splits],
      });
    }
    return partials;
  };
}

/** Tiles to go through in one dispatch. */
interface Run {
  readonly records: Binding | undefined;
  readonly exact: Binding | undefined;
  /** Four words a tile: where it begins, its first position, its tokens, and whether it is a record. */
  readonly tiles: Binding;
  readonly count: number;
}

/** The tiles of the i-th buffer of each kind. */
function makeRun(
  gpu: Gpu,
  { kvHeads, headDim, layout: { group } }: AttendShape,
  { records, exact }: GpuAttendRequest,
  i: number,
): Run {
  const words: number[] = [];
  const { [i]: record } = records;
  const { [i]: rest } = exact;
  for (let at = 0; at < (record?.tiles.length ?? 0); at += 2) {
    words.push(record.tiles[at], record.tiles[at + 1], group, 1);
  }
  const pieces = rest ? cut(rest.tiles, kvHeads * headDim, group) : [];
  for (let at = 0; at < pieces.length; at += 3) words.push(...pieces.slice(at, at + 3), 0);
  return {
    records: record && { buffer: record.buffer },
    exact: rest && { buffer: rest.buffer },
    tiles: gpu.table(Uint32Array.from(words)),
    count: words.length / 4,
  };
}

/** Constants of attend-blocks. */
function planBlocks(pace: Pace, layout: RecordLayout, rows: number): Constants {
  const { headDim, group } = layout;
  const codes = codeConstants(layout);
  const rowFours = rowFoursOf(pace, headDim, rows);
  const teams = teamsOf(pace);
  const part = Math.min(headDim, PART);
  const tokenFours = group / 4 / SIXTEEN;
  const channelFours = Math.ceil(part / 4 / SIXTEEN);
  // One four more, so that steps begin in different banks.
  const leftStride = teams * rowFours + 1;
  const rightStride = Math.max(tokenFours, channelFours) * SIXTEEN + 1;
  return {
    ...recordConstants(layout),
    ...codes,
    ROWS: 4,
    THREADS: pace.threads,
    TEAMS: teams,
    BLOCK_ROWS: teams * rowFours * 4,
    ROW_FOURS: rowFours,
    TOKEN_FOURS: tokenFours,
    CHANNEL_FOURS: channelFours,
    LEFT_STRIDE: leftStride,
    LEFT: leftStride * SIXTEEN,
    RIGHT_STRIDE: rightStride,
    RIGHT: rightStride * SIXTEEN,
    UNROLLED: pace.unrolled,
    PART: part,
    PARTS: Math.ceil(headDim / part),
    PART_COLUMNS: part / codes.CHANNELS,
  };
}
