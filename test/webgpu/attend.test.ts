import { afterAll, describe, expect, it } from "vitest";
import { parsePreset, recordLayout } from "../../src/format.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { decodeRecord, encodeRecord } from "../../src/reference/record.js";
import { attend } from "../../src/webgpu/attend.js";
import { Gpu } from "../../src/webgpu/gpu.js";
import { relativeError } from "../../src/conformance/compare.js";
import { naiveAttention, type StoredLayer } from "../support/cache.js";
import { hasGpu, sharedDevice } from "../support/engines.js";
import { bufferOf, runOn } from "../support/gpu.js";
import { randomArray } from "../support/random.js";

let gpu: Gpu;
if (hasGpu) gpu = new Gpu(sharedDevice());
afterAll(() => {
  if (hasGpu) gpu.dispose();
});

interface Case {
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

const usual: Case = {
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
function prepare(given: Partial<Case>) {
  const c = { ...usual, ...given };
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
async function check(given: Partial<Case>, tolerance = 1e-5): Promise<void> {
  const { q, stored, attendOnce, dispose } = prepare(given);
  const out = new Float32Array((await attendOnce()).buffer);
  dispose();
  const expected = naiveAttention(q, stored).out;
  expect(out.every(Number.isFinite)).toBe(true);
  expect(relativeError(out, expected)).toBeLessThan(tolerance);
}

/** Several cases at a time, since making pipelines takes longest. */
async function checkAll(...cases: Partial<Case>[]): Promise<void> {
  await Promise.all(cases.map((given) => check(given)));
}

describe.skipIf(!hasGpu)("attention on a GPU", () => {
  it("over codes of all widths", async () => {
    const widths = ["k2v8", "k3v5", "k4v3", "k5v6", "k6v2", "k8v4"];
    await checkAll(
      ...widths.map((width) => ({ preset: `${width}_g64`, ratio: 1 })),
      // Value rows that are not whole words.
      ...["k3v3", "k5v5"].map((width) => ({ preset: `${width}_g128`, ratio: 1, headDim: 16, tail: 100 })),
    );
  });

  it("with heads of all sizes", async () => {
    const sizes = [16, 48, 80, 128, 272, 512];
    await checkAll(
      ...sizes.map((headDim) => ({ preset: "k4v2_g128", headDim, ratio: 1, tiles: 2 })),
      ...[48, 512].map((headDim) => ({ preset: "k8v8_g64", headDim, ratio: 2, tiles: 2 })),
      // So many rows that exact tiles, here longer than a piece, are cut into the longest pieces.
      { preset: "k4v2_g128", headDim: 128, tiles: 2, queryTokens: 15 },
    );
  });

  it.each([1, 2, 3, 4, 5, 8, 12])("with %d query heads per KV head", async (ratio) => {
    await check({ ratio });
    await check({ ratio, kvHeads: 3, queryTokens: 2, half: true });
  });

  // The first of 147 is all of a tile but its last token behind.
  it.each([2, 9, 147])("of %d query tokens, each up to its own position", async (queryTokens) => {
    await check({ queryTokens });
    await check({ queryTokens, ratio: 1 });
  });

  // For some of the query tokens, windows of 266 and of 272 leave one token of a tile out.
  it.each([1, 5, 64, 65, 200, 266, 272])("within a window of %d tokens", async (slidingWindow) => {
    await check({ slidingWindow, queryTokens: 9, tiles: 5 });
    await check({ slidingWindow, queryTokens: 9, tiles: 5, ratio: 1 });
  });

  it("with a soft cap", async () => {
    await check({ softCap: 2, qScale: 4 });
    await check({ softCap: 50, qScale: 4, queryTokens: 2 });
    // Arguments of tanh that overflow exponentials.
    await check({ softCap: 1e-3, qScale: 1000 });
  });

  it("with sink logits", async () => {
    await check({ sinkLogits: true });
    await check({ sinkLogits: true, softCap: 3, slidingWindow: 70, queryTokens: 3, half: true });
  });

  // Few, more and many tiles times rows are divided differently among invocations.
  it.each([1, 6, 12])("over many tiles, scattered over buffers, of %d query tokens", async (queryTokens) => {
    await check({ tiles: 45, headDim: 16, queryTokens });
    await check({ tiles: 45, headDim: 16, queryTokens, buffers: 3, slidingWindow: 1500 });
  });

  it("over more parts than are merged at a time", async () => {
    const many = { tiles: 512, headDim: 16, kvHeads: 1, ratio: 1 };
    await check(many);
    // Only the last parts, of the tail, have anything to see.
    await check({ ...many, slidingWindow: 10 });
  });

  it("of more query tokens, over more buffers, than partial results are kept for at a time", async () => {
    const many = { headDim: 512, kvHeads: 8, tail: 63, scattered: true };
    await check({ ...many, queryTokens: 7, half: true });
    // By blocks of rows, eight query tokens at a time.
    await check({ queryTokens: 37, partialBytes: 100_000 });
  });

  it("over exact tokens that are few in each of many buffers", async () => {
    await check({ scattered: true, headDim: 16, kvHeads: 1, queryTokens: 9 });
  });

  it("whatever the tail holds", async () => {
    for (const tail of [1, 63]) await check({ tail });
  });

  it("sharply, where one token outweighs the others", async () => {
    await check({ qScale: 64, tiles: 19, headDim: 16 }, 1e-4);
    // So many rows that a workgroup goes through all tiles, and the maximum rises on the way.
    await check({ qScale: 64, tiles: 19, headDim: 16, queryTokens: 130 }, 1e-4);
  });

  it("finitely, with scales at the limits of binary16 and queries beyond", async () => {
    const layout = recordLayout(parsePreset(usual.preset), usual.headDim);
    const change = (record: DataView) => {
      for (const [at, count] of [
        [layout.kScale, layout.headDim],
        [layout.kToken, layout.group],
        [layout.vToken, layout.group],
        [layout.vScale, layout.headDim],
      ]) {
        for (let i = 0; i < count; i++) record.setUint16(at + 2 * i, 0x7bff, true);
      }
    };
    const { attendOnce } = prepare({ change, qScale: 1e21 });
    const out = new Float32Array((await attendOnce()).buffer);
    expect(out.every(Number.isFinite)).toBe(true);
  });

  it("where scales of values are zero", async () => {
    const { vScale } = recordLayout(parsePreset(usual.preset), usual.headDim);
    let tile = 0;
    const change = (record: DataView) => {
      for (let i = tile++ % 3; i < usual.headDim; i += 3) record.setUint16(vScale + 2 * i, 0, true);
    };
    await check({ change, tiles: 12 });
  });

  it("as a GPU of hardware does it", async () => {
    const setting = gpu as { software: boolean };
    const { software } = setting;
    setting.software = false;
    try {
      await checkAll(
        ...[1, 2, 3].map((ratio) => ({ ratio, headDim: 32, tiles: 5 })),
        ...[4, 8].map((ratio) => ({ preset: "k4v2_g128", headDim: 128, ratio, tiles: 71 })),
        // So many rows that they go by blocks, the last of which is not full.
        { preset: "k4v2_g128", headDim: 128, queryTokens: 19, tail: 30, slidingWindow: 300, half: true },
        { preset: "k5v3_g64", headDim: 272, ratio: 1, queryTokens: 66, tiles: 1, softCap: 3 },
      );
    } finally {
      setting.software = software;
    }
  });

  it("to the same bits every time", async () => {
    for (const given of [{ tiles: 19 }, { queryTokens: 9 }, { preset: "k3v5_g64", ratio: 1, buffers: 2 }]) {
      const { attendOnce } = prepare(given);
      expect(await attendOnce()).toEqual(await attendOnce());
    }
  });
});
