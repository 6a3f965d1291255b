/**
 * Attention of many query tokens at once. Engines take rows (query heads of query tokens) in blocks, and from 24 rows of a KV
 * head on they go another way: WASM over records, GPUs of software over everything (GPUs of hardware from 32 on).
 */
import { expect, it } from "vitest";
import type { CacheConfig, LayerConfig } from "../../src/index.js";
import { relativeError } from "../../src/conformance/compare.js";
import {
  describeEngines,
  expectAgrees,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
  readStored,
} from "../support/cache.js";

type OneLayer = Omit<CacheConfig, keyof LayerConfig> & LayerConfig;

describeEngines("attend to many queries", (kvarn) => {
  const shape = (queryHeads: number, kvHeads: number, headDim: number, preset = "k4v2_g64"): OneLayer => {
    return { preset, layers: 1, iterations: 1, queryHeads, kvHeads, headDim };
  };

  // Rows of one KV head are its query heads times the query tokens.
  it.each([
    [shape(1, 1, 32), [15, 16, 17, 23, 24, 25, 31, 32, 33]],
    [shape(4, 2, 48), [11, 12, 13]],
    [shape(3, 1, 80, "k3v5_g64"), [7, 8, 9]],
    [shape(4, 1, 64, "k8v4_g128"), [5, 6, 7]],
    [shape(23, 1, 16, "k2v2_g64"), [1, 2]],
    [shape(24, 1, 16, "k2v2_g64"), [1, 2]],
    [shape(25, 1, 16, "k2v2_g64"), [1, 2]],
    [shape(2, 1, 512, "k5v6_g64"), [11, 12]],
  ] as const)("agrees below, at and above so many rows as change the way: %o", async (config, counts) => {
    const cache = await filledCache(kvarn, config, makeTokens(config, 300, 5), [261, 39]);
    const stored = await readStored(cache);
    expect(cache.memory().recordBytes).toBeGreaterThan(0);
    for (const count of counts) await expectAgrees(kvarn, cache, stored, makeQueries(config, count, count));
  });

  it("gives a query the same, however many are asked with it", async () => {
    const config = { ...shape(4, 2, 48, "k4v3_g64"), slidingWindow: 170, sinkLogits: [1, 0, -1, 2] };
    const cache = await filledCache(kvarn, config, makeTokens(config, 290, 6), [230, 60]);
    const q = makeQueries(config, 60, 6);
    const width = config.queryHeads * config.headDim;
    const together = await cache.attend(0, q);
    for (const count of [1, 2, 5, 11, 12, 13, 40]) {
      const expected = together.subarray(-count * width);
      const actual = await cache.attend(0, q.subarray(-count * width));
      // Integers, and the order of sums, are the same in WASM.
      if (kvarn.backend.kind === "wasm") expectSame(actual, expected);
      else expect(relativeError(actual, expected)).toBeLessThan(1e-5);
    }
  });

  // Edges of what rows see: within a block of rows, within a tile, at the ends of tiles.
  it.each([
    [shape(1, 1, 32), undefined, 200],
    [shape(3, 1, 32), undefined, 131],
    [shape(5, 1, 16), 20, 45],
    [shape(3, 1, 32), 65, 64],
    [shape(7, 1, 16), 100, 29],
    [shape(4, 2, 48), 130, 63],
    [shape(2, 1, 32, "k4v4_g128"), 150, 106],
  ])("masks by row where the queries' own tokens are records: %o, window %s, %i queries", async (...row) => {
    const [config, slidingWindow, count] = row;
    const length = 5 * 64 + (config.preset === "k4v4_g128" ? 64 : 0);
    const cache = await filledCache(kvarn, { ...config, slidingWindow }, makeTokens(config, length, 8));
    await cache.flush();
    await expectAgrees(kvarn, cache, await readStored(cache), makeQueries(config, count, 8));
  });

  it.each([
    [shape(1, 1, 32), undefined],
    [shape(5, 1, 16), 1],
    [shape(3, 1, 32), 2],
    [shape(4, 2, 32), 17],
    [shape(3, 1, 32), 64],
    [shape(1, 1, 48), 65],
    [shape(7, 1, 16), 100],
    [shape(3, 1, 32), 203],
  ])("masks by row where they are exact: %o, window %s", async (config, slidingWindow) => {
    const options = { slidingWindow, softCap: 20 };
    const tokens = makeTokens(config, 300, 9);
    const cache = await filledCache(kvarn, { ...config, ...options }, tokens, [203, 97]);
    await expectAgrees(kvarn, cache, await readStored(cache), makeQueries(config, 97, 9));
  });
});
