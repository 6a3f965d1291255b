/** Attention on a GPU over records and exact tokens as a test wants them, beside the same in f64. */
import { expect } from "vitest";
import { relativeError } from "../../src/conformance/compare.js";
import { parsePreset, recordLayout } from "../../src/format.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { decodeRecord, encodeRecord } from "../../src/reference/record.js";
import { attend } from "../../src/webgpu/attend.js";
import type { Gpu } from "../../src/webgpu/gpu.js";
import { naiveAttention, type StoredLayer } from "./cache.js";
import { bufferOf, runOn } from "./gpu.js";
import { randomArray } from "./random.js";

export interface AttentionCase {
  preset: string;
  headDim: number;
  kvHeads: number;
  /** Query heads per KV head. */
  ratio: number;
  queryTokens: number;
  /** Tiles between the sink, which is exact, and the tail. */
  tiles: number;
  tail: number;
  slidingWindow: number;
  softCap: number;
  sinkLogits: boolean;
  half: boolean;
  /** Record buffers. */
  buffers: number;
  /** Whether each exact token is given by itself, as if they were in as many buffers. */
  scattered: boolean;
  qScale: number;
  /** Most bytes of partial results; undefined: as it is. */
  partialBytes: number | undefined;
  /** Changes records before they are used. */
  change: (record: DataView) => void;
}

export const usualAttention: AttentionCase = {
  preset: "k4v2_g64",
  headDim: 64,
  kvHeads: 2,
  ratio: 4,
  queryTokens: 1,
  tiles: 3,
  tail: 17,
  slidingWindow: Infinity,
  softCap: 0,
  sinkLogits: false,
  half: false,
  buffers: 1,
  scattered: false,
  qScale: 1,
  partialBytes: undefined,
  change: () => {},
};

/** Words that buffers begin with, so that nothing lies at 0, of bits that are NaN as f32 and as binary16. */
const PADDING = 24;

/** A case on the GPU and what should come out. */
export function prepareAttention(gpu: Gpu, given: Partial<AttentionCase>) {
  const c = { ...usualAttention, ...given };
  const { headDim, kvHeads, tiles, tail } = c;
  const softmaxScale = 1 / Math.sqrt(headDim);
  const layout = recordLayout(parsePreset(c.preset), headDim);
  const { group } = layout;
  const length = (tiles + 1) * group + tail;
  const queryHeads = kvHeads * c.ratio;
  const rotated = (seed: number) =>
    Array.from({ length: kvHeads }, (_, head) =>
      Float64Array.from(randomArray(length * headDim, seed + head), (x) => fromHalf(toHalf(x))),
    );
  const [k, v] = [rotated(1), rotated(100)];

  // Records in another order than that of their positions, and by turns in the buffers.
  const blockWords = (kvHeads * layout.bytes) / 4;
  const runs = Array.from({ length: c.buffers }, () => ({
    words: new Uint32Array(PADDING + Math.ceil(tiles / c.buffers) * blockWords).fill(0xffffffff),
    tiles: [] as number[],
  }));
  for (let i = 0; i < tiles; i++) {
    const position = (((i * 7 + 2) % tiles) + 1) * group;
    const { words, tiles: table } = runs[i % c.buffers];
    const start = PADDING + Math.floor(i / c.buffers) * blockWords;
    for (let head = 0; head < kvHeads; head++) {
      const part = (rows: Float64Array) => rows.subarray(position * headDim, (position + group) * headDim);
      const record = encodeRecord({ keys: part(k[head]), values: part(v[head]) }, layout, 1);
      c.change(new DataView(record.buffer));
      new Uint8Array(words.buffer).set(record, start * 4 + head * layout.bytes);
      const decoded = decodeRecord(record, layout);
      part(k[head]).set(decoded.keys);
      part(v[head]).set(decoded.values);
    }
    table.push(start, position);
  }

  const exactBlock = (position: number, tokens: number) =>
    Uint16Array.from({ length: tokens * 2 * kvHeads * headDim }, (_, i) => {
      const [channel, rest] = [i % headDim, Math.floor(i / headDim)];
      const [head, token] = [rest % kvHeads, position + Math.floor(rest / kvHeads / 2)];
      return toHalf((Math.floor(rest / kvHeads) % 2 === 0 ? k : v)[head][token * headDim + channel]);
    });
  const exactWords = new Uint32Array(PADDING + 2 * group * kvHeads * headDim).fill(0xffffffff);
  const exactHalves = new Uint16Array(exactWords.buffer);
  const tailStart = PADDING + group * kvHeads * headDim;
  exactHalves.set(exactBlock(0, group), PADDING * 2);
  exactHalves.set(exactBlock((tiles + 1) * group, tail), tailStart * 2);
  const exactTiles = [PADDING, 0, group, tailStart, (tiles + 1) * group, tail];
  const exactRuns = c.scattered
    ? Array.from({ length: group + tail }, (_, i) => {
        const position = i < group ? i : i + tiles * group;
        return [PADDING + i * kvHeads * headDim, position, 1];
      })
    : [exactTiles];

  const q = randomArray(c.queryTokens * queryHeads * headDim, 7, c.qScale).map((x) =>
    c.half ? fromHalf(toHalf(x)) : x,
  );
  const qPart = c.half ? new Uint32Array(Uint16Array.from(q, toHalf).buffer) : new Uint32Array(q.buffer);
  const qWords = new Uint32Array(PADDING + qPart.length).fill(0xffffffff);
  qWords.set(qPart, PADDING);
  const sinkLogits = c.sinkLogits ? randomArray(queryHeads, 3, 4) : undefined;

  const stored: StoredLayer = {
    config: {
      queryHeads,
      kvHeads,
      headDim,
      length,
      softmaxScale,
      ...(c.softCap > 0 && { softCap: c.softCap }),
      ...(c.slidingWindow < Infinity && { slidingWindow: c.slidingWindow }),
      ...(sinkLogits && { sinkLogits: [...sinkLogits] }),
      firstKept: 0,
      firstTail: (tiles + 1) * group,
      sink: "exact",
    },
    k,
    v,
  };

  const buffers = {
    q: bufferOf(gpu, qWords),
    records: runs.map(({ words }) => bufferOf(gpu, words)),
    exact: bufferOf(gpu, exactWords),
  };
  /** Attends on the GPU: the bits of the output. */
  const attendOnce = async (): Promise<Uint32Array> => {
    const out = bufferOf(gpu, new Uint32Array(PADDING + q.length).fill(0xffffffff));
    const request = {
      q: { buffer: buffers.q },
      qWord: PADDING,
      half: c.half,
      queryTokens: c.queryTokens,
      position: length - c.queryTokens,
      records: runs
        .map((run, i) => ({ buffer: buffers.records[i], tiles: Uint32Array.from(run.tiles) }))
        .filter((run) => run.tiles.length > 0),
      exact: exactRuns.map((run) => ({ buffer: buffers.exact, tiles: Uint32Array.from(run) })),
      slidingWindow: c.slidingWindow,
      softCap: c.softCap,
      sinkLogits,
      softmaxScale,
      out: { buffer: out },
      outWord: PADDING,
    };
    const data = await runOn(gpu, () => {
      attend(gpu, { kvHeads, queryHeads, headDim, layout }, request, c.partialBytes);
      return gpu.read(out, PADDING * 4, q.length * 4);
    });
    out.destroy();
    return new Uint32Array(data.buffer);
  };
  const dispose = () => [buffers.q, buffers.exact, ...buffers.records].forEach((buffer) => buffer.destroy());
  return { q, stored, attendOnce, dispose };
}

/** Attends and compares with f64. */
export async function checkAttention(
  gpu: Gpu,
  given: Partial<AttentionCase>,
  tolerance = 1e-5,
): Promise<void> {
  const { q, stored, attendOnce, dispose } = prepareAttention(gpu, given);
  const out = new Float32Array((await attendOnce()).buffer);
  dispose();
  const expected = naiveAttention(q, stored).out;
  expect(out.every(Number.isFinite)).toBe(true);
  expect(relativeError(out, expected)).toBeLessThan(tolerance);
}
