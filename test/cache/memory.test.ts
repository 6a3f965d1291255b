/** memory() and bytesFor() tell the truth, and engines give back what caches no longer need. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  bytesFor,
  type CacheConfig,
  type Kvarn,
  type KvarnCache,
  type LayerConfig,
  parsePreset,
  recordLayout,
} from "../../src/index.js";
import {
  appendChunks,
  describeEngines,
  evenChunks,
  expectError,
  expectRefused,
  filledCache,
  makeQueries,
  makeTokens,
  randomChunks,
  watchedEngines,
} from "../support/cache.js";

const GROUP = 64;
const shape = { queryHeads: 2, kvHeads: 1, headDim: 16 };
const config = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 0 };
const PAGE = 65536;

/** Keeps watch over what a cache reserves while it grows. */
class Watch {
  peak = 0;
  steps = 0;

  constructor(readonly cache: KvarnCache) {}

  /** Expects no more reserved than 1.25 times the most that was held so far. */
  check(): void {
    const { totalBytes, reservedBytes } = this.cache.memory();
    this.peak = Math.max(this.peak, totalBytes);
    this.steps++;
    const state = { step: this.steps, totalBytes, reservedBytes, peak: this.peak };
    if (reservedBytes > 1.25 * this.peak || reservedBytes < totalBytes) {
      expect(state).toEqual({ ...state, reservedBytes: `from ${totalBytes} to ${1.25 * this.peak}` });
    }
  }

  async append(tokens: ReturnType<typeof makeTokens>, sizes: readonly number[], layer = 0): Promise<void> {
    for (const size of sizes) {
      const from = this.cache.length(layer);
      await appendChunks(this.cache, tokens, [size], { layer, from });
      this.check();
    }
  }
}

const SHAPES: [string, CacheConfig][] = [
  ["three layers", { ...config, layers: 3 }],
  ["an exact window", { ...config, layers: 2, exactWindow: 37 }],
  ["a long exact window", { ...config, exactWindow: 200 }],
  ["a sliding window", { ...config, slidingWindow: 50 }],
  ["a sliding and an exact window", { ...config, slidingWindow: 100, exactWindow: 70 }],
  [
    "windows and shapes of all kinds",
    {
      preset: "k3v5_g64",
      iterations: 0,
      layers: [
        { queryHeads: 4, kvHeads: 4, headDim: 16 },
        { ...shape, slidingWindow: 1 },
        { ...shape, headDim: 48, slidingWindow: 130 },
      ],
    },
  ],
  ["groups of 128", { ...config, preset: "k2v2_g128", exactWindow: 10 }],
];

const layersOf = ({ layers, ...common }: CacheConfig): LayerConfig[] =>
  (typeof layers === "number" ? Array.from({ length: layers }, () => ({})) : layers).map(
    (layer) => ({ ...common, ...layer }) as LayerConfig,
  );

describeEngines("memory()", (kvarn) => {
  it.each(SHAPES)("is what bytesFor says, with %s", async (_, config) => {
    const tokens = layersOf(config).map((layer, i) => makeTokens(layer, 520, i));
    for (const length of [0, 1, 63, 64, 65, 127, 128, 129, 192, 200, 256, 300, 384, 511, 520]) {
      for (const size of [length, 50]) {
        const cache = kvarn.createCache(config);
        for (const [layer, some] of tokens.entries()) {
          await appendChunks(cache, some, evenChunks(length, Math.max(1, size)), { layer });
        }
        await cache.flush();
        const { reservedBytes, ...bytes } = cache.memory();
        expect(bytes).toEqual(bytesFor(config, length));
        expect(reservedBytes).toBeGreaterThanOrEqual(bytes.totalBytes);
        cache.dispose();
      }
    }
  });

  it("adds up, whatever the cache went through", async () => {
    const layers = [shape, { queryHeads: 3, kvHeads: 3, headDim: 32 }];
    const cache = kvarn.createCache({ ...config, layers });
    const expected = (counts: [sink: number, records: number, tail: number][]) => {
      const sum = (bytes: (layer: (typeof layers)[number], i: number) => number) =>
        layers.reduce((total, layer, i) => total + layer.kvHeads * bytes(layer, i), 0);
      const record = ({ headDim }: { headDim: number }) =>
        recordLayout(parsePreset(config.preset), headDim).bytes;
      const sinkBytes = sum(({ headDim }, i) => counts[i][0] * headDim * 4);
      const recordBytes = sum((layer, i) => counts[i][1] * record(layer));
      const tailBytes = sum(({ headDim }, i) => counts[i][2] * headDim * 4);
      const totalBytes = sinkBytes + recordBytes + tailBytes;
      const f16Bytes = sinkBytes + tailBytes + sum(({ headDim }, i) => counts[i][1] * GROUP * headDim * 4);
      const ratio = totalBytes === 0 ? 1 : f16Bytes / totalBytes;
      const recordRatio = sum(({ headDim }) => GROUP * headDim * 4) / sum(record);
      const others = { outlierBytes: 0, queryBytes: 0 };
      return { sinkBytes, recordBytes, tailBytes, ...others, totalBytes, f16Bytes, ratio, recordRatio };
    };
    const check = (...counts: [number, number, number][]) => {
      const { reservedBytes, ...bytes } = cache.memory();
      expect(bytes).toEqual(expected(counts));
      expect(reservedBytes).toBeGreaterThanOrEqual(bytes.totalBytes);
    };
    const tokens = layers.map((layer) => makeTokens(layer, 400));
    check([0, 0, 0], [0, 0, 0]);
    await appendChunks(cache, tokens[0], [30]);
    check([30, 0, 0], [0, 0, 0]);
    await appendChunks(cache, tokens[1], [270], { layer: 1 });
    check([30, 0, 0], [64, 0, 206]);
    await cache.flush();
    check([30, 0, 0], [64, 3, 14]);
    await appendChunks(cache, tokens[0], [200, 40], { from: 30 });
    check([64, 2, 78], [64, 3, 14]);
    cache.truncate(256);
    check([64, 2, 64], [64, 3, 0]);
    cache.truncate(128);
    check([64, 1, 0], [64, 1, 0]);
    cache.truncate(20);
    check([20, 0, 0], [20, 0, 0]);
    cache.clear();
    check([0, 0, 0], [0, 0, 0]);
    await cache.importRecords(1, await kvarn.encode(...tokens[1].slice(0, 128), { ...config, ...layers[1] }));
    check([0, 0, 0], [0, 2, 0]);
  });

  it.each(SHAPES)("reserves at most a quarter more, growing token by token, with %s", async (_, config) => {
    const layers = layersOf(config);
    const tokens = layers.map((layer, i) => makeTokens(layer, 450, i));
    const watch = new Watch(kvarn.createCache(config));
    for (let i = 0; i < 450; i++)
      for (const layer of layers.keys()) await watch.append(tokens[layer], [1], layer);
    await watch.cache.flush();
    watch.check();
  });

  it.each(SHAPES)("reserves at most a quarter more, growing in chunks, with %s", async (_, config) => {
    const layers = layersOf(config);
    const tokens = layers.map((layer, i) => makeTokens(layer, 910, i));
    for (const sizes of [
      [900],
      [100, 800],
      evenChunks(900, 40),
      randomChunks(900, 150, 1),
      [300, ...evenChunks(100, 1)],
    ]) {
      const watch = new Watch(kvarn.createCache(config));
      for (const size of sizes)
        for (const layer of layers.keys()) await watch.append(tokens[layer], [size], layer);
      await watch.cache.flush();
      watch.check();
      for (let i = 0; i < 3; i++)
        for (const layer of layers.keys()) await watch.append(tokens[layer], [1], layer);
      await watch.cache.flush();
      watch.check();
      watch.cache.dispose();
    }
  });

  it("reserves at most a quarter more in many layers of one engine step each", async () => {
    // A GPU of software takes a millisecond a call.
    for (const layers of kvarn.backend.kind === "webgpu" ? [8] : [8, 40]) {
      const tokens = makeTokens(shape, 300);
      for (const prompt of [1, 64, 100]) {
        const watch = new Watch(kvarn.createCache({ ...config, layers }));
        for (let layer = 0; layer < layers; layer++) await watch.append(tokens, [prompt], layer);
        for (let i = 0; i < 90; i++)
          for (let layer = 0; layer < layers; layer++) await watch.append(tokens, [1], layer);
        watch.cache.dispose();
      }
    }
  });

  it("reserves at most a quarter more however layers are filled", async () => {
    const layers = 4;
    const tokens = makeTokens(shape, 5000);
    const step = fc.tuple(
      fc.nat(layers - 1),
      fc.oneof(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 7, max: 120 })),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60, size: "max" }), async (steps) => {
        const watch = new Watch(kvarn.createCache({ ...config, layers }));
        for (const [layer, size] of steps) await watch.append(tokens, [size], layer);
        watch.cache.dispose();
      }),
      { numRuns: 50, seed: 3 },
    );
  });

  it("reserves at most a quarter more after cuts, forks and a return", async () => {
    const layers = 3;
    const tokens = makeTokens(shape, 900);
    const watch = new Watch(kvarn.createCache({ ...config, layers }));
    for (let layer = 0; layer < layers; layer++) await watch.append(tokens, [250, 5], layer);
    for (const cut of [251, 250, 192, 64, 60, 1, 0]) {
      watch.cache.truncate(cut);
      watch.check();
      for (let layer = 0; layer < layers; layer++) await watch.append(tokens, [1, 3], layer);
      watch.cache.truncate(cut);
    }
    for (let layer = 0; layer < layers; layer++) await watch.append(tokens, [210], layer);
    // A fork shares its parent's history; both go on from there.
    const forked = new Watch(watch.cache.fork());
    forked.check();
    for (let i = 0; i < 70; i++) {
      for (let layer = 0; layer < layers; layer++) {
        await forked.append(tokens, [1], layer);
        await watch.append(tokens, [1], layer);
      }
    }
    const restored = new Watch(await kvarn.restoreCache(await watch.cache.serialize()));
    restored.check();
    for (let i = 0; i < 70; i++)
      for (let layer = 0; layer < layers; layer++) await restored.append(tokens, [1], layer);
  });

  it("reserves at most a quarter more when one layer grows after a cut", async () => {
    const tokens = makeTokens(shape, 200);
    for (const length of [4, 60, 127]) {
      const watch = new Watch(kvarn.createCache({ ...config, layers: 2 }));
      for (const layer of [0, 1]) await watch.append(tokens, [length], layer);
      watch.cache.truncate(length > 64 ? 65 : 1);
      watch.check();
      await watch.append(tokens, [length + 1], 0);
    }
  });

  it("takes room in steps: not token by token, and once a tile in a long context", async () => {
    const cache = kvarn.createCache(config);
    const tokens = makeTokens(shape, 2304);
    const changes = async (from: number, to: number) => {
      let count = 0;
      for (let i = from; i < to; i++) {
        const { reservedBytes } = cache.memory();
        await appendChunks(cache, tokens, [1], { from: i });
        if (cache.memory().reservedBytes !== reservedBytes) count++;
      }
      return count;
    };
    expect(await changes(0, 64)).toBeLessThanOrEqual(16);
    await appendChunks(cache, tokens, [1920], { from: 64 });
    // Five tiles begin, the first of them while the prompt's tiles are being encoded.
    // On a GPU, records and exact tiles have buffers of their own.
    expect(await changes(1984, 2304)).toBeLessThanOrEqual(kvarn.backend.kind === "webgpu" ? 12 : 6);
  });

  it("counts what `capacity` sets aside, and takes no more while that lasts", async () => {
    const tokens = makeTokens(shape, 1200);
    for (const exactWindow of [0, 100]) {
      const layers = 2;
      const cache = kvarn.createCache({ ...config, layers, exactWindow, capacity: 500 });
      const { reservedBytes, totalBytes } = cache.memory();
      expect(totalBytes).toBe(0);
      expect(reservedBytes).toBeGreaterThanOrEqual(
        bytesFor({ ...config, layers, exactWindow }, 500).totalBytes,
      );
      for (let i = 0; i < 500; i++)
        for (let layer = 0; layer < layers; layer++)
          await appendChunks(cache, tokens, [1], { layer, from: i });
      expect(cache.memory().reservedBytes).toBe(reservedBytes);
      await cache.flush();
      cache.truncate(exactWindow === 0 ? 448 : 384);
      expect(cache.memory().reservedBytes).toBe(reservedBytes);
      cache.clear();
      expect(cache.memory().reservedBytes).toBe(reservedBytes);
      for (let layer = 0; layer < layers; layer++)
        await appendChunks(cache, tokens, evenChunks(1200, 100), { layer });
      expect(cache.length(1)).toBe(1200);
      expect(cache.memory().reservedBytes).toBeGreaterThan(reservedBytes);
    }
  });

  it("does not make a cache behave differently that `capacity` is given", async () => {
    const tokens = makeTokens(shape, 400);
    for (const capacity of [1, 63, 64, 65, 300, 1000]) {
      const caches = [kvarn.createCache({ ...config, capacity }), kvarn.createCache(config)];
      for (const cache of caches) {
        await appendChunks(cache, tokens, [100, 100, 60]);
        cache.truncate(230);
        await appendChunks(cache, tokens, [170], { from: 230 });
        await cache.flush();
      }
      expect(await caches[0].serialize()).toEqual(await caches[1].serialize());
    }
  });
});

describe("bytesFor", () => {
  it("makes no cache", () => {
    const large = { layers: 80, queryHeads: 64, kvHeads: 8, headDim: 128 };
    const { totalBytes, f16Bytes, ratio, recordRatio } = bytesFor(large, 131072);
    expect(f16Bytes).toBe(131072 * 80 * 8 * 128 * 4);
    expect(recordRatio).toBeCloseTo((128 * 128 * 4) / 13824, 10);
    expect(ratio).toBeCloseTo(f16Bytes / totalBytes, 10);
    expect(ratio).toBeGreaterThan(4.7);
    expect(bytesFor(large, 0)).toMatchObject({ totalBytes: 0, f16Bytes: 0, ratio: 1 });
  });

  it("knows the ratio of D=64 on long contexts", () => {
    expect(bytesFor({ layers: 1, queryHeads: 9, kvHeads: 3, headDim: 64 }, 32768).recordRatio).toBeCloseTo(
      4.49,
      2,
    );
  });

  it.each([-1, 0.5, NaN, 2 ** 31, "5", undefined] as number[])("refuses %s tokens", async (tokens) => {
    await expectError(() => bytesFor(config, tokens), "invalid-argument", /^tokens must be/);
  });

  it("refuses what createCache refuses", async () => {
    await expectError(() => bytesFor({ ...config, headDim: 24 }, 5), "unsupported-head-dim");
    await expectError(() => bytesFor({ ...config, preset: "k4v2" }, 5), "unsupported-preset");
  });
});

describe.each(watchedEngines)("an engine's memory, %s", (name, open) => {
  // WebAssembly's memory grows by pages, so its tiles are large ones here; the reference backend counts every byte.
  const heads = name === "reference" ? shape : { queryHeads: 4, kvHeads: 4, headDim: 64 };
  const wide = { ...heads, preset: "k4v2_g64", iterations: 0 };
  const width = heads.kvHeads * heads.headDim;
  const exactTile = GROUP * width * 4;

  it("is what its caches reserve", async () => {
    const { kvarn, heldBytes } = await open();
    const base = heldBytes();
    const layers = 4;
    const tokens = makeTokens(wide, 1000);
    const cache = kvarn.createCache({ ...wide, layers });
    for (let from = 0; from < 1000; from += 25) {
      for (let layer = 0; layer < layers; layer++)
        await appendChunks(cache, tokens, [20, 5], { layer, from });
      const { reservedBytes } = cache.memory();
      const held = heldBytes() - base;
      if (name === "reference") expect(held).toBe(reservedBytes);
      // Besides: room to work in, and gaps that a later tile will fill.
      else expect(held).toBeGreaterThanOrEqual(reservedBytes - PAGE);
    }
    expect(heldBytes() - base).toBeLessThanOrEqual(1.25 * cache.memory().totalBytes + 2 * exactTile);
    kvarn.dispose();
  });

  it("does not grow with caches that come and go", async () => {
    const { kvarn, heldBytes } = await open();
    const tokens = makeTokens(wide, 300);
    const run = async () => {
      const caches: KvarnCache[] = [];
      for (const [i, extra] of [
        {},
        { exactWindow: 100 },
        { slidingWindow: 70 },
        { capacity: 400 },
      ].entries()) {
        const cache = await filledCache(kvarn, { ...wide, ...extra, layers: 1 }, tokens, [200 - i, 90, 1]);
        await cache.attend(0, makeQueries(wide, 2));
        caches.push(cache, cache.fork(), await kvarn.restoreCache(await cache.serialize()));
        await appendChunks(caches.at(-2)!, tokens, [9]);
        await kvarn.encode(...tokens.slice(0, 128), wide);
      }
      for (const cache of caches) cache.dispose();
    };
    const empty = heldBytes();
    await run();
    const after = heldBytes();
    if (name === "reference") expect(after).toBe(empty);
    for (let i = 0; i < 3; i++) await run();
    expect(heldBytes()).toBe(after);
    kvarn.dispose();
  });

  it("does not grow with calls that fail", async () => {
    const { kvarn, heldBytes } = await open();
    const tokens = makeTokens(wide, 400);
    const cache = await filledCache(kvarn, { ...wide, layers: 1 }, tokens, [250, 50]);
    const [k, v] = tokens.slice(0, 350);
    v[v.length - 1] = NaN;
    const saved = await cache.serialize();
    saved[saved.length - 9] ^= 1;
    const records = await kvarn.encode(...tokens.slice(0, 64), wide);
    const fail = async () => {
      await expectError(() => cache.append(0, k, v), "non-finite");
      await expectError(() => cache.attend(0, makeQueries(wide, 301)), "invalid-shape");
      await expectError(() => cache.truncate(299.5), "invalid-argument");
      await expectError(() => cache.importRecords(0, records), "unsupported-length");
      await expectError(() => kvarn.restoreCache(saved), "corrupt-data");
      await expectError(
        () => kvarn.encode(k.subarray(0, 64 * width), v.subarray(286 * width), wide),
        "non-finite",
      );
    };
    await fail();
    const held = heldBytes();
    for (let i = 0; i < 20; i++) await fail();
    expect(heldBytes()).toBe(held);
    if (name === "reference") expect(held).toBe(cache.memory().reservedBytes);
    kvarn.dispose();
  });

  it("grows by records alone once a cache has settled", async () => {
    const { kvarn, heldBytes } = await open();
    const layers = 2;
    const cache = kvarn.createCache({ ...wide, layers });
    const tokens = makeTokens(wide, 2200);
    const q = makeQueries(wide, 1);
    const out = new Float32Array(q.length);
    const grow = async (from: number, to: number) => {
      for (let i = from; i < to; i++) {
        for (let layer = 0; layer < layers; layer++) {
          await appendChunks(cache, tokens, [1], { layer, from: i });
          if (i % 100 === 0) await cache.attend(layer, q, { out });
        }
      }
    };
    await grow(0, 1000);
    const before = { held: heldBytes(), records: cache.memory().recordBytes };
    await grow(1000, 2200);
    const grown = heldBytes() - before.held;
    const records = cache.memory().recordBytes - before.records;
    // A GPU's buffers grow by a quarter at a time.
    expect(grown).toBeLessThanOrEqual((name === "webgpu" ? 1.25 : 1) * records + exactTile + PAGE);
    kvarn.dispose();
  });

  it("does not grow once a sliding window has filled", async () => {
    const { kvarn, heldBytes } = await open();
    const cache = kvarn.createCache({ ...wide, layers: 2, slidingWindow: 150 });
    const tokens = makeTokens(wide, 1500);
    const grow = async (from: number, to: number) => {
      for (let i = from; i < to; i++)
        for (const layer of [0, 1]) await appendChunks(cache, tokens, [1], { layer, from: i });
    };
    await grow(0, 700);
    const [held, { reservedBytes }] = [heldBytes(), cache.memory()];
    await grow(700, 1500);
    expect(cache.memory().reservedBytes).toBeLessThanOrEqual(reservedBytes + exactTile);
    expect(heldBytes()).toBeLessThanOrEqual(held + exactTile);
    kvarn.dispose();
  });
});

// How much a GPU has is its own affair: test/webgpu/faults.test.ts has one refuse.
describe.each(watchedEngines.filter(([name]) => name !== "webgpu"))(
  "more memory than there is, %s",
  (name, open) => {
    // Tiles of 48 MiB, so that less than a hundred fill the memory, and of 256 KiB, to fill what is left.
    const huge = {
      queryHeads: 128,
      kvHeads: 128,
      headDim: 512,
      preset: "k8v8_g128",
      layers: 1,
      exactWindow: 2 ** 20,
    };
    const medium = { queryHeads: 8, kvHeads: 8, headDim: 128, preset: "k4v2_g64", layers: 1, iterations: 0 };
    const small = makeTokens(shape, 200);

    async function expectUsable(kvarn: Kvarn): Promise<void> {
      const cache = await filledCache(kvarn, config, small, [150, 50]);
      expect((await cache.attend(0, makeQueries(shape, 2))).every(Number.isFinite)).toBe(true);
      cache.dispose();
    }

    /** Makes caches until there is no room for a tile of this shape. */
    function fill(kvarn: Kvarn, shape: CacheConfig): void {
      for (let capacity = 2 ** 17; capacity >= GROUP;) {
        try {
          kvarn.createCache({ ...shape, capacity });
        } catch (error) {
          expect(error).toMatchObject({ name: "KvarnError", code: "out-of-memory" });
          capacity /= 2;
        }
      }
    }

    it("is refused as `capacity`", async () => {
      const { kvarn } = await open();
      for (const capacity of [200_000, 2 ** 31 - 1]) {
        await expectError(() => kvarn.createCache({ ...huge, capacity }), "out-of-memory");
        await expectUsable(kvarn);
      }
      if (name === "reference") return;
      // What was taken before there was too little is there for others.
      const cache = kvarn.createCache({ ...huge, capacity: 3_000 });
      expect(cache.memory().reservedBytes).toBeGreaterThan(2 ** 30);
      kvarn.dispose();
    });

    // Only an engine with a memory of its own runs out of it in the middle of things.
    if (name === "reference") return;
    it("is refused by append, flush, import and restore, which change nothing", async () => {
      const { kvarn } = await open();
      const tokens = makeTokens(medium, 600);
      const cache = await filledCache(kvarn, medium, tokens.of(300));
      const prompt = await filledCache(kvarn, medium, tokens.of(600));
      const records = await kvarn.encode(...tokens.slice(0, 64), medium);
      const saved = await prompt.serialize();
      await prompt.attend(0, makeQueries(medium, 2));
      fill(kvarn, huge);
      fill(kvarn, medium);
      await expectRefused(cache, () => cache.append(0, ...tokens.slice(0, 200)), "out-of-memory");
      await expectRefused(prompt, () => prompt.flush(), "out-of-memory");
      await expectError(() => kvarn.restoreCache(saved), "out-of-memory");
      cache.truncate(64);
      const many = new Uint8Array(40 * records.length);
      for (let i = 0; i < 40; i++) many.set(records, i * records.length);
      await expectRefused(cache, () => cache.importRecords(0, many), "out-of-memory");
      await expectUsable(kvarn);
      await cache.importRecords(0, records);
      prompt.dispose();
      await appendChunks(cache, tokens, [200, 1]);
      expect((await cache.attend(0, makeQueries(medium, 2))).every(Number.isFinite)).toBe(true);
      kvarn.dispose();
    });

    it("does not fail an append that has been made, when room of other layers cannot be given back", async () => {
      const { kvarn } = await open();
      const two = { ...config, layers: 2 };
      const tokens = makeTokens(shape, 200);
      const caches = [kvarn.createCache(two), kvarn.createCache(two)];
      for (const cache of caches) {
        for (const size of [50, 10]) {
          const from = cache.length(0);
          for (const layer of [0, 1]) await appendChunks(cache, tokens, [size], { layer, from });
        }
        cache.truncate(1);
      }
      // Leaves room for what 120 tokens more take, and no more.
      const hole = await filledCache(kvarn, config, tokens.of(57));
      for (const shape of [huge, medium, config]) fill(kvarn, shape);
      const token = tokens.of(1);
      await expectError(async () => {
        for (;;) await filledCache(kvarn, config, token);
      }, "out-of-memory");
      hole.dispose();
      for (const cache of caches) {
        const done = await cache.append(0, ...tokens.slice(0, 120)).then(
          () => true,
          () => false,
        );
        expect([done, cache.length(0)]).toEqual([done, done ? 121 : 1]);
      }
      kvarn.dispose();
    });
  },
);
