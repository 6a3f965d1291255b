/** Sliding windows: memory that is let go, and what can no longer be done then. */
import { expect, it } from "vitest";
import { bytesFor } from "../../src/index.js";
import {
  appendChunks,
  describeEngines,
  evenChunks,
  expectAgrees,
  expectRefused,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
  namedCuts,
  possibleCuts,
  readSaved,
  readStored,
  tileKinds,
  tokensOf,
} from "../support/cache.js";

const GROUP = 64;
const shape = { queryHeads: 2, kvHeads: 1, headDim: 16 };
const base = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 1 };
const tokens = makeTokens(shape, 1200);

describeEngines("sliding window", (kvarn) => {
  it.each([1, 10, 64, 100, 130, 300])(
    "holds %i tokens' records and the sink, and attends right, over a long run",
    async (slidingWindow) => {
      const config = { ...base, slidingWindow };
      const cache = kvarn.createCache(config);
      const { recordBytes: tileBytes } = bytesFor(base, 2 * GROUP);
      for (let length = 0; length < 700; length++) {
        await appendChunks(cache, tokens, [1], { from: length });
        if (length % 23 !== 0 && length % GROUP > 1) continue;
        // The last append found `length` tokens; a query for the newest of them could have been the next call.
        const { start, end } = cache.recordRange(0);
        expect(start).toBe(
          Math.max(GROUP, Math.min(end, Math.floor((length - slidingWindow) / GROUP) * GROUP)),
        );
        expect(end).toBe(Math.max(GROUP, Math.floor(length / GROUP) * GROUP));
        const { recordBytes } = cache.memory();
        expect(recordBytes).toBe(((end - start) / GROUP) * tileBytes);
        expect(recordBytes).toBeLessThanOrEqual((Math.ceil(slidingWindow / GROUP) + 1) * tileBytes);
        await expectAgrees(kvarn, cache, await readStored(cache), makeQueries(shape, 1, length));
      }
    },
  );

  it("lets go of the same tokens however they were appended", async () => {
    for (const slidingWindow of [40, 64, 150]) {
      const config = { ...base, slidingWindow };
      const expected = await filledCache(kvarn, config, tokens, evenChunks(777, 1));
      await expected.flush();
      for (const sizes of [[777], [400, 377], evenChunks(777, 50)]) {
        const cache = await filledCache(kvarn, config, tokens, sizes);
        await cache.flush();
        expectSame(await cache.serialize(), await expected.serialize());
        expect(cache.memory().recordBytes).toBe(bytesFor(config, 777).recordBytes);
      }
    }
  });

  it("frees what a long prompt no longer needs at its flush", async () => {
    const config = { ...base, slidingWindow: 100 };
    const cache = await filledCache(kvarn, config, tokens);
    const before = cache.memory();
    await cache.flush();
    expect(await tileKinds(cache)).toBe(`exact ${"gone ".repeat(16)}record exact`);
    const after = cache.memory();
    expect(after.reservedBytes).toBeLessThan(before.reservedBytes / 8);
    expect(after.f16Bytes).toBe((GROUP + GROUP + (1200 % GROUP)) * 64);
  });

  it.each([1, 2, 63, 64, 65, 100, 128])(
    "attends for the newest token after a flush at any length, window %i",
    async (slidingWindow) => {
      for (const length of [1, 63, 64, 65, 127, 128, 129, 190, 191, 192, 193, 255, 256, 257, 320, 321]) {
        const cache = await filledCache(kvarn, { ...base, slidingWindow }, tokens.of(length));
        await cache.flush();
        await expectAgrees(kvarn, cache, await readStored(cache), makeQueries(shape, 1, length));
      }
    },
  );

  it("does not except the sink", async () => {
    const config = { ...base, slidingWindow: 30 };
    const other = tokensOf(tokens.k.slice(), tokens.v.slice(), 16);
    other.k.fill(9, 0, 50 * 16);
    other.v.fill(-9, 0, 50 * 16);
    // All of them see tokens from 50 on only, and so the second half of the sink.
    const q = makeQueries(shape, 11);
    const [a, b] = [
      await filledCache(kvarn, config, tokens, [90]),
      await filledCache(kvarn, config, other, [90]),
    ];
    expectSame(await a.attend(0, q), await b.attend(0, q));
    expect(await a.attend(0, makeQueries(shape, 12))).not.toEqual(await b.attend(0, makeQueries(shape, 12)));
  });

  it("refuses queries that see what is gone, and takes as many as do not", async () => {
    for (const [slidingWindow, exactWindow, length] of [
      [50, 0, 400],
      [100, 0, 383],
      [64, 30, 384],
      [1, 0, 384],
    ]) {
      const cache = await filledCache(kvarn, { ...base, slidingWindow, exactWindow }, tokens, [
        300,
        length - 300,
      ]);
      await cache.flush();
      const gone = cache.recordRange(0).start;
      const stored = await readStored(cache);
      // A query at position p sees the tokens from p - slidingWindow + 1 on.
      const most = length - (gone + slidingWindow - 1);
      expect(most).toBeGreaterThan(exactWindow);
      await expectAgrees(kvarn, cache, stored, makeQueries(shape, most));
      const tooMany = () => cache.attend(0, makeQueries(shape, most + 1));
      await expectRefused(
        cache,
        tooMany,
        "outside-window",
        new RegExp(`position ${length - most - 1} .* before ${gone}: attend with fewer`),
      );
      await expectRefused(cache, () => cache.attend(0, makeQueries(shape, length)), "outside-window");
    }
  });

  it("keeps a rollback of exactWindow tokens possible, as if they had never come", async () => {
    const exactWindow = 20;
    for (const slidingWindow of [1, 30, 64, 90]) {
      const config = { ...base, slidingWindow, exactWindow };
      for (let length = 310; length < 345; length += 7) {
        const cache = await filledCache(kvarn, config, tokens, [300, length - 300]);
        await cache.flush();
        for (let taken = 0; taken <= exactWindow; taken += 5) {
          const cut = cache.fork();
          cut.truncate(length - taken);
          await expectAgrees(kvarn, cut, await readStored(cut), makeQueries(shape, 1, length));
          await appendChunks(cut, tokens, [taken + 5], { from: length - taken });
          await appendChunks(cut, tokens, [5], { from: length + 5 });
          const never = await filledCache(kvarn, config, tokens, [length + 5, 5]);
          expectSame(await cut.serialize(), await never.serialize());
          for (const each of [cut, never]) each.dispose();
        }
      }
    }
  });

  it.each([1, 8, 50, 64, 100, 200])(
    "is cut only where what later queries see is still there, window %i",
    async (slidingWindow) => {
      for (const [exactWindow, length] of [
        [0, 300],
        [0, 320],
        [30, 310],
        [0, 100],
      ]) {
        const cache = await filledCache(kvarn, { ...base, slidingWindow, exactWindow }, tokens.of(length));
        await cache.flush();
        const { start, end } = cache.recordRange(0);
        const { possible, messages } = possibleCuts(cache, length);
        expect(possible).toEqual(
          Array.from({ length: length + 1 }, (_, n) => {
            // Whatever is appended to n tokens sees those from n - slidingWindow + 1 on.
            const held = start === GROUP || n - slidingWindow + 1 >= start;
            return n <= GROUP || ((n >= end || n % GROUP === 0) && held);
          }),
        );
        for (const message of messages) expect(namedCuts(message, length)).toEqual(possible);
      }
    },
  );

  it("goes on right after a cut into the sink, and one at a tile's end", async () => {
    const config = { ...base, slidingWindow: 100 };
    for (const cut of [0, 30, 64, 384]) {
      const cache = await filledCache(kvarn, config, tokens, [500, 3]);
      expect(await tileKinds(cache)).toBe("exact gone gone gone gone gone record exact");
      const { possible } = possibleCuts(cache, 503);
      if (cut > 64) expect(possible[cut]).toBe(false);
      const target = possible[cut] ? cut : 483;
      cache.truncate(target);
      for (const size of [1, 40, 200, 8]) {
        await appendChunks(cache, tokens, [size], { from: cache.length(0) });
        await expectAgrees(kvarn, cache, await readStored(cache), makeQueries(shape, 1, size));
      }
      if (target > 64) continue;
      const never = await filledCache(kvarn, config, tokens, [target + 241, 8]);
      expectSame(await cache.serialize(), await never.serialize());
    }
  });

  it("of one layer does not bind the others", async () => {
    const layers = [{ slidingWindow: 40 }, {}, { slidingWindow: 200 }];
    const cache = kvarn.createCache({ ...base, layers });
    for (const layer of [0, 1, 2]) await appendChunks(cache, tokens, [500, 9], { layer });
    const saved = readSaved(await cache.serialize());
    const kept = saved.layers.map(({ tiles }) => tiles.filter(({ kind }) => kind !== "gone").length);
    expect(kept).toEqual([2, 8, 5]);
    expect([0, 1, 2].map((layer) => cache.recordRange(layer).start)).toEqual([448, 64, 256]);
    for (const layer of [0, 1, 2]) {
      await expectAgrees(kvarn, cache, await readStored(cache, layer), makeQueries(shape, 2), layer);
    }
    await expectRefused(cache, () => cache.truncate(448), "unsupported-length", /^layer 0 /);
    cache.truncate(490);
    expect(cache.length(1)).toBe(490);
  });

  it("survives saving", async () => {
    const config = { ...base, slidingWindow: 100 };
    const cache = await filledCache(kvarn, config, tokens, [500, 3]);
    const restored = await kvarn.restoreCache(await cache.serialize());
    expect(restored.recordRange(0)).toEqual(cache.recordRange(0));
    for (const each of [cache, restored]) await appendChunks(each, tokens, [70, 1], { from: 503 });
    expectSame(await restored.serialize(), await cache.serialize());
    const q = makeQueries(shape, 3);
    expectSame(await restored.attend(0, q), await cache.attend(0, q));
    await expectRefused(restored, () => restored.attend(0, makeQueries(shape, 150)), "outside-window");
  });
});
