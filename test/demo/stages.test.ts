import { describe, expect, it } from "vitest";
import { openKvarn } from "../../src/index.js";
import { relativeError } from "../../src/conformance/compare.js";
import { CHOICES, DEFAULT_SETTINGS, presetName } from "../../demo/settings.js";
import { computeStages, type Stage } from "../../demo/stages.js";
import { randomArray } from "../support/random.js";

const headDim = 32;
const kvarn = await openKvarn({ backend: "wasm", variant: "strict" });

/** A tile with a channel and a token that stand out. */
function makeTile(group: number, seed: number): Float32Array {
  return randomArray(group * headDim, seed).map((value, i) => {
    return value * (i % headDim === 5 ? 12 : 1) * (Math.floor(i / headDim) === 9 ? 3 : 1);
  });
}

/** Standard deviation of `count` values from `start` on, `stride` apart. */
function deviation(values: Float32Array, start: number, stride: number, count: number): number {
  const picked = Array.from({ length: count }, (_, i) => values[start + i * stride]);
  const mean = picked.reduce((sum, value) => sum + value, 0) / count;
  return Math.sqrt(picked.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (count - 1));
}

function expectSpreads({ values, channels, tokens }: Stage, group: number): void {
  for (const channel of [0, 5, headDim - 1])
    expect(channels[channel]).toBeCloseTo(deviation(values, channel * group, 1, group), 5);
  for (const token of [0, 9, group - 1])
    expect(tokens[token]).toBeCloseTo(deviation(values, token, group, headDim), 5);
}

describe("computeStages", () => {
  it.each([
    ["k", 64],
    ["v", 128],
  ] as const)("ends with what the record of %s decodes to, %i tokens", async (part, group) => {
    const settings = { ...DEFAULT_SETTINGS, keyBits: 3, valueBits: 5, group } as const;
    const tile = { k: makeTile(group, 1), v: makeTile(group, 2), headDim };
    const stages = await computeStages(kvarn, tile, part, settings);
    expect(stages).toMatchObject({ part, headDim, tokens: group, backend: "wasm strict" });
    for (const name of ["cache", "rotated", "normalized", "quantized"] as const)
      expectSpreads(stages[name], group);

    // Channel 5 of token 9, as it was put in.
    expect(stages.cache.values[5 * group + 9]).toBe(tile[part][9 * headDim + 5]);
    const rotated = await kvarn.rotate(tile[part], { headDim });
    expect(stages.rotated.values[5 * group + 9]).toBeCloseTo(rotated[9 * headDim + 5], 2);

    // What the normalization divided by, it has to be multiplied with, for the rounded tile as well.
    const restored = stages.quantized.values.map((value, i) => {
      return value * (stages.rotated.values[i] / stages.normalized.values[i]);
    });
    const tokensFirst = Float32Array.from(restored, (_, i) => {
      return restored[(i % headDim) * group + Math.floor(i / headDim)];
    });
    const back = await kvarn.rotate(tokensFirst, { headDim });
    const record = { preset: presetName(settings), kvHeads: 1, headDim };
    const bytes = await kvarn.encode(tile.k, tile.v, record);
    const decoded = (await kvarn.decode(bytes, record))[part];
    // The scales of a record are in binary16.
    expect(relativeError(back, decoded)).toBeLessThan(2e-3);
    expect(stages.recordBytes).toBe(bytes.length);
    expect(stages.error[part]).toBeCloseTo(relativeError(decoded, tile[part]), 6);
  });

  it("leaves the spread as it is without iterations, and evens it out with them", async () => {
    const tile = { k: makeTile(128, 3), v: makeTile(128, 4), headDim };
    const spread = async (iterations: number): Promise<number> => {
      const { normalized } = await computeStages(kvarn, tile, "k", { ...DEFAULT_SETTINGS, iterations });
      return Math.max(...normalized.tokens) / Math.min(...normalized.tokens);
    };
    const { rotated } = await computeStages(kvarn, tile, "k", DEFAULT_SETTINGS);
    expect(await spread(0)).toBeCloseTo(Math.max(...rotated.tokens) / Math.min(...rotated.tokens), 3);
    expect(await spread(8)).toBeLessThan(0.8 * (await spread(0)));
  });

  it("has no error to tell of a tile of zeros", async () => {
    const zeros = new Float32Array(128 * headDim);
    const stages = await computeStages(kvarn, { k: zeros, v: zeros, headDim }, "v", DEFAULT_SETTINGS);
    expect(stages.error).toEqual({ k: null, v: null });
    expect(Math.max(...stages.quantized.channels)).toBe(0);
  });
});

describe("the settings of the demo", () => {
  it("start as the package's defaults and offer them", () => {
    expect(presetName(DEFAULT_SETTINGS)).toBe("k4v2_g128");
    for (const name of ["keyBits", "valueBits", "group", "iterations"] as const)
      expect(CHOICES[name]).toContain(DEFAULT_SETTINGS[name]);
  });
});
