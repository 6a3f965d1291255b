/** Forks share what they hold and never see each other's changes. */
import { describe, expect, it } from "vitest";
import type { KvarnCache } from "../../src/index.js";
import {
  appendChunks,
  describeEngines,
  expectError,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
  watchedEngines,
} from "../support/cache.js";

const GROUP = 64;
const shape = { queryHeads: 2, kvHeads: 2, headDim: 16 };
const config = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 1 };
const tokens = makeTokens(shape, 400);
const others = makeTokens(shape, 400, 2);
const queries = makeQueries(shape, 3);
/** Bytes of one exact token. */
const TOKEN = 128;

/** All of a cache that a change might show in. */
async function snapshot(cache: KvarnCache): Promise<{ bytes: Uint8Array; out: Float32Array }> {
  return { bytes: await cache.serialize(), out: await cache.attend(0, queries) };
}

async function expectSnapshot(cache: KvarnCache, { bytes, out }: Awaited<ReturnType<typeof snapshot>>) {
  expectSame(await cache.serialize(), bytes);
  expectSame(await cache.attend(0, queries), out);
}

describeEngines("fork", (kvarn) => {
  it.each([1, 30, 63, 64, 65, 100, 127, 128, 129, 200, 256])(
    "has %i tokens' history in common, and then each its own",
    async (length) => {
      const parent = await filledCache(kvarn, config, tokens.of(length));
      const fork = parent.fork();
      const { reservedBytes, ...bytes } = fork.memory();
      expect(bytes).toEqual({ ...parent.memory(), reservedBytes: undefined });
      // On a GPU, room that no tile uses is the parent's to answer for.
      const reserved = parent.memory().reservedBytes;
      if (kvarn.backend.kind === "webgpu") expect(reservedBytes).toBeLessThanOrEqual(reserved);
      else expect(reservedBytes).toBe(reserved);
      for (let from = 0; from < 100; from += 20) {
        await appendChunks(parent, others, [20], { from });
        await appendChunks(fork, tokens, [13, 7], { from: length + from });
      }
      const alone = [
        await filledCache(kvarn, config, tokens.of(length)),
        await filledCache(kvarn, config, tokens.of(length)),
      ];
      for (let from = 0; from < 100; from += 20) {
        await appendChunks(alone[0], others, [20], { from });
        await appendChunks(alone[1], tokens, [13, 7], { from: length + from });
      }
      for (const [i, cache] of [parent, fork].entries()) {
        await expectSnapshot(cache, await snapshot(alone[i]));
        await cache.flush();
        await alone[i].flush();
        await expectSnapshot(cache, await snapshot(alone[i]));
      }
    },
  );

  const changes: [string, (cache: KvarnCache) => unknown][] = [
    ["a token", (cache) => appendChunks(cache, others, [1])],
    ["tokens for several tiles", (cache) => appendChunks(cache, others, [150, 1])],
    [
      "tokens for several tiles, refused",
      (cache) => {
        const [k, v] = others.slice(0, 150);
        v[v.length - 1] = NaN;
        return expectError(() => cache.append(0, k, v), "non-finite");
      },
    ],
    ["a flush", (cache) => cache.flush()],
    ["a cut in the tail", (cache) => cache.truncate(230)],
    [
      "a cut in the tail and tokens in its place",
      (cache) => {
        cache.truncate(193);
        return appendChunks(cache, others, [10, 50, 1]);
      },
    ],
    [
      "a cut at a tile's end and tokens in its place",
      (cache) => {
        cache.truncate(128);
        return appendChunks(cache, others, [90]);
      },
    ],
    [
      "a cut in the sink and tokens in its place",
      (cache) => {
        cache.truncate(20);
        return appendChunks(cache, others, [90, 90]);
      },
    ],
    [
      "imported records",
      async (cache) => {
        const records = await cache.exportRecords(0);
        cache.truncate(192);
        await cache.importRecords(0, records);
      },
    ],
    [
      "a clear and a fill",
      (cache) => {
        cache.clear();
        return appendChunks(cache, others, [230]);
      },
    ],
    ["its disposal", (cache) => cache.dispose()],
  ];
  it.each(changes)("or its parent does not see %s on the other side", async (_, change) => {
    for (const side of [0, 1]) {
      const parent = await filledCache(kvarn, config, tokens, [200, 40]);
      const pair = [parent, parent.fork()];
      const before = await snapshot(pair[1 - side]);
      await change(pair[side]);
      await expectSnapshot(pair[1 - side], before);
      // What is done next does not depend on what the other side did either.
      const never = await filledCache(kvarn, config, tokens, [200, 40]);
      for (const cache of [pair[1 - side], never]) await appendChunks(cache, tokens, [60, 1], { from: 240 });
      await expectSnapshot(pair[1 - side], await snapshot(never));
    }
  });

  it("may be forked again, and outlives those that it came from", async () => {
    const first = await filledCache(kvarn, config, tokens, [150]);
    const second = first.fork();
    await appendChunks(second, tokens, [50], { from: 150 });
    const third = second.fork();
    await appendChunks(third, tokens, [50], { from: 200 });
    const fourth = first.fork();
    first.dispose();
    second.dispose();
    await expectSnapshot(third, await snapshot(await filledCache(kvarn, config, tokens, [150, 50, 50])));
    third.dispose();
    await appendChunks(fourth, tokens, [100], { from: 150 });
    await expectSnapshot(fourth, await snapshot(await filledCache(kvarn, config, tokens, [150, 100])));
    await expectError(() => second.attend(0, queries), "disposed");
  });

  it("keeps the layers, their settings, and none of the parent's reserve", async () => {
    const layers = [{ slidingWindow: 30 }, { softCap: 3, sinkLogits: [1, 2] }];
    const parent = kvarn.createCache({ ...config, layers, exactWindow: 9, capacity: 1000 });
    for (const layer of [0, 1]) await appendChunks(parent, tokens, [150], { layer });
    const fork = parent.fork();
    expect(fork.layers).toBe(2);
    expect(fork.memory().totalBytes).toBe(parent.memory().totalBytes);
    expect(fork.memory().reservedBytes).toBeLessThan(parent.memory().reservedBytes / 2);
    for (const layer of [0, 1]) {
      expectSame(await fork.attend(layer, queries), await parent.attend(layer, queries));
    }
    expectSame(await fork.serialize(), await parent.serialize());
  });

  it("of an empty cache is empty", async () => {
    const parent = kvarn.createCache(config);
    const fork = parent.fork();
    await appendChunks(parent, tokens, [10]);
    expect(fork.length(0)).toBe(0);
    expect(fork.memory().totalBytes).toBe(0);
    await appendChunks(fork, others, [10]);
    await expectSnapshot(fork, await snapshot(await filledCache(kvarn, config, others, [10])));
  });
});

describe.each(watchedEngines)("memory of forks, %s", (name, open) => {
  it("is shared until one side changes it, and given back by the last", async () => {
    const { kvarn, heldBytes } = await open();
    const parent = await filledCache(kvarn, config, tokens, [350]);
    await parent.flush();
    const alone = heldBytes();
    const forks = Array.from({ length: 50 }, () => parent.fork());
    expect(heldBytes()).toBe(alone);
    // Each takes a tail of its own, and no more; engines may grow by pages.
    for (const fork of forks) await appendChunks(fork, others, [1]);
    expect(heldBytes() - alone).toBeLessThanOrEqual(50 * GROUP * TOKEN + 65536);
    expect(heldBytes() - alone).toBeGreaterThanOrEqual(50 * 31 * TOKEN - 65536);
    const grown = heldBytes();
    parent.dispose();
    for (const fork of forks.slice(1)) fork.dispose();
    await expectSnapshot(
      forks[0],
      await snapshot(
        await filledCache(kvarn, config, tokens, [350]).then(async (cache) => {
          await cache.flush();
          await appendChunks(cache, others, [1]);
          return cache;
        }),
      ),
    );
    expect(heldBytes()).toBeLessThanOrEqual(grown);
    kvarn.dispose();
    expect(heldBytes()).toBe(0);
  });

  it("comes back whole, whoever is disposed of first", async () => {
    const { kvarn, heldBytes } = await open();
    const orders = [
      [0, 1, 2],
      [2, 1, 0],
      [1, 0, 2],
      [0, 2, 1],
    ];
    let most = 0;
    for (const [i, order] of [...orders, ...orders, ...orders].entries()) {
      const capacity = i % 2 === 0 ? 0 : 500;
      const parent = await filledCache(kvarn, { ...config, capacity }, tokens, [230]);
      const fork = parent.fork();
      await appendChunks(parent, others, [100]);
      const grandchild = fork.fork();
      await appendChunks(grandchild, others, [3, 60, 70]);
      fork.truncate(20);
      await appendChunks(fork, others, [50]);
      await parent.flush();
      const caches = [parent, fork, grandchild];
      for (const which of order) caches[which].dispose();
      if (name === "reference") expect(heldBytes()).toBe(0);
      if (i < 4) most = Math.max(most, heldBytes());
      else expect(heldBytes()).toBeLessThanOrEqual(most);
    }
    kvarn.dispose();
  });
});
