/** Attention against a textbook one, in f64, over what the cache has stored. */
import { expect, it } from "vitest";
import type { CacheConfig, KvarnCache, LayerConfig } from "../../src/index.js";
import { relativeError } from "../../src/conformance/compare.js";
import {
  appendChunks,
  describeEngines,
  expectAgrees,
  expectSame,
  filledCache,
  halves,
  makeQueries,
  makeTokens,
  readSaved,
  readStored,
  rotateDensely,
  storedLayer,
  type Tokens,
  tokensOf,
} from "../support/cache.js";
import { randomArray } from "../support/random.js";

/** A layer's configuration with all that `createCache` needs besides. */
type OneLayer = Omit<CacheConfig, keyof LayerConfig> & LayerConfig;

describeEngines("attend", (kvarn) => {
  const gqa: OneLayer = {
    ...{ preset: "k4v2_g64", layers: 1, iterations: 2 },
    ...{ queryHeads: 4, kvHeads: 2, headDim: 32 },
  };

  it.each([
    ["one token", [1], false],
    ["a part of the sink", [37], false],
    ["the sink", [64], false],
    ["sink and tail", [64, 1], false],
    ["sink and a longer tail", [101], true],
    ["one record", [64, 64], true],
    ["one record and a tail", [128, 1], false],
    ["records and a tail", [64, 200, 1, 17], false],
    ["a prompt not encoded yet", [333], false],
    ["a prompt encoded, tail left", [333], true],
    ["records to the end", [320], true],
    ["many records", [1000, 3], true],
  ] as const)("agrees over %s", async (_, sizes, flush) => {
    const total = sizes.reduce((sum, size) => sum + size, 0);
    const cache = await filledCache(kvarn, gqa, makeTokens(gqa, total, total), sizes);
    if (flush) await cache.flush();
    const stored = await readStored(cache);
    // Few queries, more than the newest append had, some that lie in records, and all of them.
    for (const queries of new Set([1, 2, 5, 17, 90, total].map((count) => Math.min(count, total)))) {
      if (queries * total > 70_000) continue;
      await expectAgrees(kvarn, cache, stored, makeQueries(gqa, queries, queries));
    }
  });

  it.each([
    [1, 1, 16, "k2v2_g64"],
    [3, 1, 32, "k3v3_g64"],
    [4, 1, 64, "k5v5_g64"],
    [5, 1, 80, "k6v6_g64"],
    [8, 2, 96, "k8v8_g64"],
    [8, 1, 64, "k2v4_g128"],
    [2, 2, 128, "k4v2_g128"],
    [6, 2, 112, "k4v8_g128"],
    [4, 2, 256, "k3v2_g64"],
    [7, 7, 16, "k8v2_g128"],
    [9, 1, 48, "k5v3_g64"],
    [2, 1, 512, "k6v4_g64"],
    [1, 1, 512, "k8v8_g128"],
  ] as const)(
    "agrees with %i query heads, %i KV heads, D=%i, %s",
    async (queryHeads, kvHeads, headDim, preset) => {
      const config = { preset, layers: 1, iterations: 1, queryHeads, kvHeads, headDim };
      const cache = await filledCache(kvarn, config, makeTokens(config, 270, headDim), [267, 3]);
      const stored = await readStored(cache);
      expect(cache.memory().recordBytes).toBeGreaterThan(0);
      for (const queries of [1, 2, 9]) {
        await expectAgrees(kvarn, cache, stored, makeQueries(config, queries, queries));
      }
    },
  );

  it.each([1, 2, 64, 65, 100, 200, 263, 5000])("sees a sliding window of %i tokens", async (window) => {
    const config = { ...gqa, slidingWindow: window };
    const tokens = makeTokens(gqa, 264, window);
    // One query token at a time while the layer grows, then several over what is still there.
    const cache = kvarn.createCache(config);
    for (const [from, size] of [
      [0, 40],
      [40, 100],
      [140, 1],
      [141, 60],
      [201, 55],
      [256, 8],
    ]) {
      await appendChunks(cache, tokens, [size], { from });
      const stored = await readStored(cache);
      for (const queries of new Set([1, Math.min(5, size), size])) {
        await expectAgrees(kvarn, cache, stored, makeQueries(gqa, queries, from));
      }
    }
  });

  const options: [string, Partial<LayerConfig>][] = [
    ["a soft cap", { softCap: 5 }],
    ["a low soft cap", { softCap: 0.01 }],
    ["a soft cap above all scores", { softCap: 1e4 }],
    ["a soft cap that is none", { softCap: 1e9 }],
    ["a softmax scale", { softmaxScale: 0.5 }],
    ["a low softmax scale", { softmaxScale: 1e-6 }],
    ["sink logits", { sinkLogits: [0.5, -1, 3, 0] }],
    ["sink logits above all scores", { sinkLogits: Float32Array.of(80, 1e4, 1e30, 3e38) }],
    ["sink logits below all scores", { sinkLogits: [-80, -1e4, -1e30, -3e38] }],
    ["all at once", { softCap: 3, softmaxScale: 0.3, sinkLogits: [1, 2, -1, 0.25], slidingWindow: 150 }],
  ];
  it.each(options)("heeds %s", async (_, option) => {
    const config = { ...gqa, ...option };
    const cache = await filledCache(kvarn, config, makeTokens(gqa, 230, 9), [100, 100, 30]);
    const stored = await readStored(cache);
    expect(stored.config).toMatchObject(JSON.parse(JSON.stringify({ ...option, sinkLogits: undefined })));
    for (const queries of [1, 30]) await expectAgrees(kvarn, cache, stored, makeQueries(gqa, queries, 3));
  });

  it("has a softmax scale of 1/sqrt(D) and neither cap nor sinks unless told", async () => {
    const tokens = makeTokens(gqa, 200, 4);
    const [plain, told] = [
      await filledCache(kvarn, gqa, tokens),
      await filledCache(kvarn, { ...gqa, softmaxScale: 1 / Math.sqrt(32), slidingWindow: 200 }, tokens),
    ];
    const q = makeQueries(gqa, 20, 4);
    expectSame(await plain.attend(0, q), await told.attend(0, q));
  });

  it("attends in layers of different shapes, each by its own settings", async () => {
    const layers = [
      { queryHeads: 2, kvHeads: 2, headDim: 16 },
      { queryHeads: 4, kvHeads: 1, headDim: 48, slidingWindow: 70, softCap: 4 },
      { queryHeads: 3, kvHeads: 3, headDim: 64, sinkLogits: [1, -2, 0.5] },
    ];
    const cache = kvarn.createCache({ preset: "k4v3_g64", iterations: 2, layers });
    for (const [layer, shape] of layers.entries()) {
      const sizes = [90 + 40 * layer, 70, 5];
      await appendChunks(cache, makeTokens(shape, 260, layer), sizes, { layer });
    }
    const saved = readSaved(await cache.serialize());
    for (const [layer, shape] of layers.entries()) {
      const stored = storedLayer(saved, layer);
      await expectAgrees(kvarn, cache, stored, makeQueries(shape, 5, layer), layer);
    }
  });

  it("takes queries in binary16, and writes to `out`", async () => {
    const cache = await filledCache(kvarn, gqa, makeTokens(gqa, 200, 4), [190, 10]);
    const q = makeQueries(gqa, 7, 4);
    const expected = await cache.attend(0, q);
    expectSame(await cache.attend(0, halves(q)), expected);
    const place = new Float32Array(expected.length + 8).fill(7);
    const out = place.subarray(4, -4);
    expect(await cache.attend(0, q, { out })).toBe(out);
    expectSame(out, expected);
    expect([...place.subarray(0, 4), ...place.subarray(-4)]).toEqual(new Array(8).fill(7));
  });

  it("gives the same bits every time, whatever else the engine did", async () => {
    const tokens = makeTokens(gqa, 300, 4);
    const q = makeQueries(gqa, 9, 4);
    const cache = await filledCache(kvarn, gqa, tokens, [250, 50]);
    const first = await cache.attend(0, q);
    const other = { ...gqa, headDim: 128, preset: "k8v8_g64" };
    await (
      await filledCache(kvarn, other, makeTokens(other, 200, 5), [150, 50])
    ).attend(0, makeQueries(other, 3));
    expectSame(await cache.attend(0, q), first);
    expectSame(await (await filledCache(kvarn, gqa, tokens, [250, 50])).attend(0, q), first);
  });

  it("gives a query the same bits whether its successors are asked with it or not", async () => {
    const tokens = makeTokens(gqa, 310, 4);
    const q = makeQueries(gqa, 10, 4);
    const together = await (await filledCache(kvarn, gqa, tokens, [300, 10])).attend(0, q);
    const width = gqa.queryHeads * gqa.headDim;
    const cache = await filledCache(kvarn, gqa, tokens, [300, 10]);
    for (let i = 9; i >= 0; i--) {
      cache.truncate(301 + i);
      const alone = await cache.attend(0, q.subarray(i * width, (i + 1) * width));
      expect(relativeError(alone, together.subarray(i * width, (i + 1) * width))).toBeLessThan(1e-5);
    }
  });

  it("works through more query elements than engines take at once", async () => {
    const config = { ...gqa, queryHeads: 16, kvHeads: 1, headDim: 128 };
    const cache = await filledCache(kvarn, config, makeTokens(config, 150, 4), [140, 10]);
    await expectAgrees(kvarn, cache, await readStored(cache), makeQueries(config, 150, 4));
  });

  // Scales of a record, or scores, at the ends of what they can be.
  interface Adversary {
    tokens: Tokens;
    /** Of the queries. */
    scale?: number;
    /** Factor on a channel of the queries, in the rotated frame. */
    channel?: (channel: number) => number;
  }
  const adversarial: [string, () => Adversary][] = [
    ["channels whose scales differ by 1e4", () => ({ tokens: outliers((c) => (c % 7 === 0 ? 1e4 : 1)) })],
    ["one channel 1e4 above the rest", () => ({ tokens: outliers((c) => (c === 5 ? 1e4 : 1)) })],
    ["channels whose scales fall from 1e2 to 1e-2", () => ({ tokens: outliers((c) => 10 ** (2 - c / 8)) })],
    [
      "outlier channels that the queries make up for",
      () => ({ tokens: outliers((c) => 10 ** (c % 3)), channel: (c) => 10 ** -(c % 3) }),
    ],
    ["channels far from zero", () => ({ tokens: offset((c) => (c % 3 === 0 ? 300 : 0)) })],
    ["queries 100 times as long", () => ({ tokens: makeTokens(heads, LENGTH, 21), scale: 100 })],
    ["queries 1e-6 times as long", () => ({ tokens: makeTokens(heads, LENGTH, 22), scale: 1e-6 })],
    ["tiny keys and values", () => ({ tokens: scaled(2 ** -14, 2 ** -14) })],
    ["subnormal values", () => ({ tokens: scaled(1, 2 ** -22) })],
    ["huge keys", () => ({ tokens: scaled(4096, 1) })],
    ["huge values", () => ({ tokens: scaled(1, 4096) })],
    ["huge keys, small queries", () => ({ tokens: scaled(4096, 1), scale: 1 / 4096 })],
    ["equal tokens", () => ({ tokens: constant(1.25) })],
    ["zeros", () => ({ tokens: constant(0) })],
  ];
  const heads = { queryHeads: 2, kvHeads: 1, headDim: 32 };
  const LENGTH = 300;
  const width = heads.kvHeads * heads.headDim;

  /** K by token and channel in the rotated frame. */
  const rotatedKeys = (change: (x: number, channel: number) => number): Tokens => {
    const { k, v } = makeTokens(heads, LENGTH, 20);
    const rotated = k.map((x, i) => change(x, i % heads.headDim));
    return tokensOf(Float32Array.from(rotateDensely(rotated, heads.headDim)), v, width);
  };
  const outliers = (scale: (channel: number) => number) => rotatedKeys((x, c) => x * scale(c));
  const offset = (offset: (channel: number) => number) => rotatedKeys((x, c) => x + offset(c));
  const scaled = (k: number, v: number) => {
    const tokens = makeTokens(heads, LENGTH, 23);
    return tokensOf(
      tokens.k.map((x) => x * k),
      tokens.v.map((x) => x * v),
      width,
    );
  };
  const constant = (value: number) => {
    const values = new Float32Array(LENGTH * width).fill(value);
    return tokensOf(values, values, width);
  };

  it.each(adversarial)("is right on %s", async (_, make) => {
    const { tokens, scale = 1, channel = () => 1 } = make();
    const queries = (count: number) => {
      const q = makeQueries(heads, count, 3, scale).map((x, i) => x * channel(i % heads.headDim));
      return Float32Array.from(rotateDensely(q, heads.headDim));
    };
    for (const preset of ["k4v2_g64", "k2v2_g128", "k8v8_g64"]) {
      const config = { preset, layers: 1, iterations: 4, ...heads };
      const cache = await filledCache(kvarn, config, tokens, [LENGTH - 2, 2]);
      const stored = await readStored(cache);
      for (const count of [1, 6]) await expectAgrees(kvarn, cache, stored, queries(count));
    }
  });

  it("stays finite with the longest queries and keys there are", async () => {
    for (const softCap of [undefined, 50]) {
      const config = { ...gqa, ...heads, softCap };
      // Rotated, the first token of all ones is one long channel.
      const k = randomArray(200 * width, 5, 8192);
      const tokens = tokensOf(k.fill(65504 / Math.sqrt(32), 0, 32), randomArray(200 * width, 6), width);
      const cache = await filledCache(kvarn, config, tokens, [190, 10]);
      for (const scale of [1e10, -1e15, 2 ** 60]) {
        const q = makeQueries(heads, 4, 7, scale);
        const out = await cache.attend(0, q);
        expect(out.every(Number.isFinite)).toBe(true);
        expect(out.some((x) => x !== 0)).toBe(true);
      }
      const most = new Float32Array(width * 2).fill(9e19);
      expect((await cache.attend(0, most)).every(Number.isFinite)).toBe(true);
    }
  });

  it.each<[string, Partial<LayerConfig>]>([
    ["softmaxScale 1e39", { softmaxScale: 1e39 }],
    ["softmaxScale 1e30", { softmaxScale: 1e30 }],
    ["softmaxScale 1e-50", { softmaxScale: 1e-50 }],
    ["softCap 1e39", { softCap: 1e39 }],
    ["softCap 1e-50", { softCap: 1e-50 }],
    ["softCap 1e-40", { softCap: 1e-40 }],
  ])("is right or refused at the ends of f32: %s", async (_, option) => {
    const tokens = makeTokens(heads, LENGTH, 21);
    let cache: KvarnCache;
    try {
      cache = await filledCache(kvarn, { ...gqa, ...heads, ...option }, tokens, [LENGTH - 2, 2]);
    } catch (error) {
      expect(error).toMatchObject({ name: "KvarnError", code: "invalid-argument" });
      return;
    }
    await expectAgrees(kvarn, cache, await readStored(cache), makeQueries(heads, 4));
    for (const scale of [1e10, 1e20, 1e29]) {
      const out = await cache.attend(0, makeQueries(heads, 4, 3, scale)).catch((error: unknown) => error);
      if (out instanceof Float32Array) expect(out.every(Number.isFinite)).toBe(true);
      else expect(out).toMatchObject({ name: "KvarnError", code: "non-finite" });
    }
  });
});
