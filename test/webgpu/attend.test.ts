import { afterAll, describe, expect, it } from "vitest";
import { parsePreset, recordLayout } from "../../src/format.js";
import { Gpu } from "../../src/webgpu/gpu.js";
import {
  type AttentionCase,
  checkAttention,
  prepareAttention,
  usualAttention as usual,
} from "../support/attention.js";
import { hasGpu, sharedDevice } from "../support/engines.js";

let gpu: Gpu;
if (hasGpu) gpu = new Gpu(sharedDevice());
afterAll(() => {
  if (hasGpu) gpu.dispose();
});

const prepare = (given: Partial<AttentionCase>) => prepareAttention(gpu, given);
const check = (given: Partial<AttentionCase>, tolerance?: number) => checkAttention(gpu, given, tolerance);

/** Several cases at a time, since making pipelines takes longest. */
async function checkAll(...cases: Partial<AttentionCase>[]): Promise<void> {
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
