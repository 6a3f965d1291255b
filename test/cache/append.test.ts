/** Tokens appended in any way make the same bytes. */
import { describe, expect, it } from "vitest";
import type { CacheConfig, Float16ArrayLike, Tensor } from "../../src/index.js";
import { fromHalf } from "../../src/half.js";
import {
  appendChunks,
  describeEngines,
  evenChunks,
  expectSame,
  filledCache,
  halves,
  makeTokens,
  randomChunks,
  readSaved,
  rotateDensely,
  storedLayer,
  tokensOf,
} from "../support/cache.js";
import { randomArray } from "../support/random.js";

const CASES = [
  { preset: "k4v2_g64", queryHeads: 2, kvHeads: 2, headDim: 16, iterations: 8, count: 209 },
  { preset: "k2v4_g64", queryHeads: 6, kvHeads: 2, headDim: 32, iterations: 8, count: 192 },
  { preset: "k3v5_g64", queryHeads: 4, kvHeads: 1, headDim: 80, iterations: 2, count: 150 },
  { preset: "k4v2_g128", queryHeads: 3, kvHeads: 1, headDim: 64, iterations: 2, count: 300 },
  { preset: "k8v6_g128", queryHeads: 1, kvHeads: 1, headDim: 32, iterations: 0, count: 257 },
] as const;

const names = (cases: readonly (typeof CASES)[number][]) =>
  cases.map(
    (config) => [`${config.preset}, ${config.kvHeads} x ${config.headDim}`, config, config.count] as const,
  );

describeEngines("append", (kvarn) => {
  it.each(names(CASES))("makes the same bytes at once and in pieces: %s", async (_, shape, count) => {
    const config: CacheConfig = { ...shape, layers: 1 };
    const tokens = makeTokens(shape, count, 3);
    const group = Number(shape.preset.split("_g")[1]);
    const wholeTiles = Math.floor(count / group) * group;

    const atOnce = await filledCache(kvarn, config, tokens);
    await atOnce.flush();
    const saved = await atOnce.serialize();
    const records = await atOnce.exportRecords(0);
    expect(atOnce.recordRange(0)).toEqual({ start: group, end: wholeTiles });
    // The same records that the codec makes, which knows no cache.
    expectSame(records, await kvarn.encode(...tokens.slice(group, wholeTiles), shape));

    const divisions = [
      evenChunks(count, 1),
      evenChunks(count, group),
      evenChunks(count, group - 1),
      [group + 1, count - group - 1],
      randomChunks(count, 20, 4),
      randomChunks(count, 2 * group, 5),
    ];
    for (const sizes of divisions) {
      const cache = await filledCache(kvarn, config, tokens, sizes);
      await cache.flush();
      expectSame(await cache.exportRecords(0), records);
      expectSame(await cache.serialize(), saved);
    }
  });

  it("takes f32 and binary16 in any kind of array, and K and V in different ones", async () => {
    const config = { preset: "k4v2_g64", layers: 1, queryHeads: 2, kvHeads: 2, headDim: 32, iterations: 1 };
    const tokens = makeTokens(config, 150, 7);
    expect(tokens.k.every((x) => fromHalf(halves([x])[0]) === x)).toBe(true);
    const saved = await (await filledCache(kvarn, config, tokens)).serialize();
    for (const makeK of ARRAYS) {
      for (const makeV of ARRAYS) {
        const cache = kvarn.createCache(config);
        await cache.append(0, makeK(tokens.k), makeV(tokens.v));
        expectSame(await cache.serialize(), saved);
      }
    }
  });

  it("keeps the layers apart", async () => {
    const shapes = [
      { queryHeads: 2, kvHeads: 2, headDim: 16 },
      { queryHeads: 3, kvHeads: 1, headDim: 48 },
      { queryHeads: 4, kvHeads: 2, headDim: 32, slidingWindow: 70 },
    ];
    const common = { preset: "k3v2_g64", iterations: 1 };
    const tokens = shapes.map((shape, i) => makeTokens(shape, 200, 11 + i));
    const together = kvarn.createCache({ ...common, layers: shapes });
    for (let from = 0; from < 200; from += 25) {
      for (const layer of [2, 0, 1]) await appendChunks(together, tokens[layer], [25], { layer, from });
    }
    await together.flush();
    const saved = readSaved(await together.serialize());
    for (const [i, shape] of shapes.entries()) {
      const alone = await filledCache(kvarn, { ...common, ...shape, layers: 1 }, tokens[i]);
      await alone.flush();
      expectSame(await together.exportRecords(i), await alone.exportRecords(0));
      const { tiles } = readSaved(await alone.serialize()).layers[0];
      tiles.forEach(({ data }, tile) => expectSame(saved.layers[i].tiles[tile].data, data));
      expect(saved.layers[i].tiles).toHaveLength(tiles.length);
    }
  });

  it.each([16, 48, 64, 80, 128])("keeps tokens rotated and rounded to binary16, D=%i", async (headDim) => {
    const shape = { queryHeads: 2, kvHeads: 2, headDim };
    const width = 2 * headDim;
    // Values that binary16 does not have, among them such as are subnormal there.
    const uneven = (seed: number) =>
      randomArray(20 * width, seed).map((x, i) => (x / 3) * 10 ** -(Math.floor(i / width) % 7));
    const tokens = tokensOf(uneven(1), uneven(2), width);
    const cache = await filledCache(kvarn, { ...shape, layers: 1 }, tokens, [13, 7]);
    const stored = storedLayer(readSaved(await cache.serialize()));
    for (const [given, kept] of [[tokens.k, stored.k] as const, [tokens.v, stored.v] as const]) {
      const rotated = rotateDensely(given, headDim);
      let inexact = 0;
      rotated.forEach((x, i) => {
        const [token, head, channel] = [Math.floor(i / width), Math.floor(i / headDim) % 2, i % headDim];
        const value = kept[head][token * headDim + channel];
        // Off by rounding to binary16 at most, give or take the f32 arithmetic of the rotation.
        expect(Math.abs(value - x)).toBeLessThanOrEqual(Math.max(2 ** -25, Math.abs(x) * 2 ** -11) * 1.01);
        if (value !== fromHalf(halves([x])[0])) inexact++;
      });
      expect(inexact).toBeLessThan(rotated.length / 100);
    }
  });

  it("rounds to binary16 half to even, at the ends of its range, too", async () => {
    const step = 2 ** -24;
    const values = [
      // Ties of subnormals, the last of which becomes the least normal number, and of normal numbers.
      ...[0.5, 1.5, 2.5, 1022.5, 1023.5, 1024.5, 1025.5].map((steps) => steps * step),
      ...[0.4999, 0.5001, 1023.4999, 1023.5001].map((steps) => Math.fround(steps * step)),
      ...[1, 3, 2045, 2047].map((odd) => 1 + odd * 2 ** -11),
      ...[2047.5, 65_488, 65_504, 65_519.99].map(Math.fround),
      ...randomArray(40, 9).map((x, i) => x * 2 ** (i - 26)),
    ].flatMap((x) => [x, -x]);
    const headDim = 16;
    // Rotated, four times a value in the first channel is that value in all of them.
    const rows = new Float32Array(values.length * headDim);
    values.forEach((x, i) => (rows[i * headDim] = 4 * x));
    const tokens = tokensOf(rows, rows, headDim);
    const config = { preset: "k4v2_g128", layers: 1, queryHeads: 1, kvHeads: 1, headDim };
    const saved = readSaved(await (await filledCache(kvarn, config, tokens)).serialize());
    const kept = saved.layers[0].tiles.flatMap(({ data }) => [...new Uint16Array(data.buffer)]);
    const perToken = 2 * headDim;
    expectSame(
      kept,
      Array.from(kept, (_, i) => halves([values[Math.floor(i / perToken)]])[0]),
    );
    expect(kept).toHaveLength(values.length * perToken);
  });

  it("counts tokens when the call returns", async () => {
    const config = { layers: 2, queryHeads: 1, kvHeads: 1, headDim: 16 };
    const cache = kvarn.createCache(config);
    const pending = cache.append(1, ...makeTokens(config, 3).slice(0, 3));
    expect([cache.length(0), cache.length(1), cache.layers]).toEqual([0, 3, 2]);
    await pending;
    expect(cache.memory().tailBytes + cache.memory().sinkBytes).toBe(3 * 64);
  });
});

describe("the stand-in for Float16Array", () => {
  it("is no Uint16Array", () => {
    expect(standIn(new Float32Array(2))).not.toBeInstanceOf(Uint16Array);
  });
});

/** The same numbers in every kind of array that a runtime may have; they must be exact in binary16. */
const ARRAYS: ((values: Float32Array) => Tensor)[] = [
  (values) => values,
  // Not where its buffer begins.
  (values) => new Float32Array([7, ...values]).subarray(1),
  (values) => halves(values),
  (values) => new Uint16Array([1, ...halves(values)]).subarray(1),
  standIn,
];

const Float16 = (globalThis as { Float16Array?: new (values: Float32Array) => Float16ArrayLike })
  .Float16Array;
if (Float16) ARRAYS.push((values) => new Float16(values));

/** What makes a Float16Array one, for runtimes without it. */
function standIn(values: Float32Array): Float16ArrayLike {
  const bits = halves(values);
  const view = new DataView(bits.buffer);
  const properties = { length: bits.length, BYTES_PER_ELEMENT: 2, [Symbol.toStringTag]: "Float16Array" };
  for (const [name, value] of [
    ...Object.entries(properties),
    [Symbol.toStringTag, "Float16Array"] as const,
  ]) {
    Object.defineProperty(view, name, { value });
  }
  return view as unknown as Float16ArrayLike;
}
