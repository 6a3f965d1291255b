/** Cuts: where they can be made, and that what is left is as if nothing had come after. */
import { expect, it } from "vitest";
import type { Kvarn, KvarnCache } from "../../src/index.js";
import {
  appendChunks,
  describeEngines,
  expectRefused,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
  namedCuts,
  possibleCuts,
  tileKinds,
} from "../support/cache.js";

const shape = { queryHeads: 2, kvHeads: 2, headDim: 16 };
const config = { ...shape, preset: "k3v2_g64", layers: 1, iterations: 1 };
const tokens = makeTokens(shape, 500);

/** A cache that was given `length` tokens and no more, those before `tail` encoded but for the sink. */
async function neverLonger(kvarn: Kvarn, length: number, tail: number): Promise<KvarnCache> {
  const cache = kvarn.createCache(config);
  const encoded = Math.min(tail, length);
  if (encoded > 0) await appendChunks(cache, tokens, [encoded]);
  await cache.flush();
  if (length > encoded) await appendChunks(cache, tokens, [length - encoded], { from: encoded });
  return cache;
}

async function expectEqualCaches(a: KvarnCache, b: KvarnCache): Promise<void> {
  expectSame(await a.serialize(), await b.serialize());
  expect(a.recordRange(0)).toEqual(b.recordRange(0));
  if (a.length(0) === 0) return;
  const q = makeQueries(shape, Math.min(2, a.length(0)));
  expectSame(await a.attend(0, q), await b.attend(0, q));
}

describeEngines("truncate", (kvarn) => {
  // The tail begins at 320 where it was flushed, at 192 where the last 128 tokens came in one append.
  it.each([
    ["flushed", [350], true, 320],
    ["with a long tail", [222, 128], false, 192],
    ["not encoded at all", [350], false, 64],
    ["with records to its end", [320], true, 320],
    ["that is a part of the sink", [40], true, 64],
  ] as const)(
    "of a cache %s equals never having been longer, at every cut",
    async (_, sizes, flush, tail) => {
      const length = sizes.reduce((sum, size) => sum + size, 0);
      const cache = await filledCache(kvarn, config, tokens, sizes);
      if (flush) await cache.flush();
      const allowed = (n: number) => n <= 64 || n >= tail || n % 64 === 0;
      expect(possibleCuts(cache, length).possible).toEqual(
        Array.from({ length: length + 1 }, (_, n) => allowed(n)),
      );
      const interesting = [0, 1, 63, 64, 65, 128, 192, 193, 255, 256, 320, 321, length - 1, length];
      for (const n of interesting.filter((n) => n <= length && allowed(n))) {
        const cut = cache.fork();
        cut.truncate(n);
        const expected = await neverLonger(kvarn, n, tail);
        expect(cut.length(0)).toBe(n);
        await expectEqualCaches(cut, expected);
        // And both go on alike, with tokens that were not there before.
        for (const each of [cut, expected]) {
          await appendChunks(each, makeTokens(shape, 90, n + 2), [30, 60]);
          await each.flush();
        }
        await expectEqualCaches(cut, expected);
      }
    },
  );

  it("works in place, again and again", async () => {
    const cache = await filledCache(kvarn, config, tokens, [400, 30]);
    for (const n of [401, 384, 256, 256, 64, 63, 1, 0, 0]) {
      cache.truncate(n);
      await expectEqualCaches(cache, await neverLonger(kvarn, n, 384));
    }
    await appendChunks(cache, tokens, [150]);
    await expectEqualCaches(cache, await filledCache(kvarn, config, tokens, [150]));
  });

  it.each([
    ["records and a tail", [350], {}],
    ["a long tail", [222, 128], {}],
    ["records to its end", [320], {}],
    ["an exact window", [350], { exactWindow: 100 }],
  ] as const)("is refused elsewhere, naming the cuts of a cache with %s", async (_, sizes, extra) => {
    const cache = await filledCache(kvarn, { ...config, ...extra }, tokens, sizes);
    await cache.flush();
    const length = cache.length(0);
    const { possible, messages } = possibleCuts(cache, length);
    expect(messages.size).toBe(possible.filter((can) => !can).length);
    for (const message of messages) expect(namedCuts(message, length)).toEqual(possible);
    await expectRefused(
      cache,
      () => cache.truncate(length + 1),
      "unsupported-length",
      /^layer 0 holds 3\d0 /,
    );
    await expectRefused(cache, () => cache.truncate(100), "unsupported-length", /cannot be cut to 100;/);
  });

  it("cuts all layers or none", async () => {
    const layers = [shape, { queryHeads: 3, kvHeads: 1, headDim: 32 }, shape];
    const cache = kvarn.createCache({ preset: "k4v2_g64", iterations: 0, layers });
    for (const [layer, total] of [300, 300, 290].entries()) {
      await appendChunks(cache, makeTokens(layers[layer], total, layer), [total - 10, 10], { layer });
    }
    // The last layer has the shortest tail, and is the shortest.
    expect([0, 1, 2].map((layer) => cache.recordRange(layer).end)).toEqual([256, 256, 256]);
    await expectRefused(cache, () => cache.truncate(295), "unsupported-length", /^layer 2 holds 290 tokens/);
    await expectRefused(cache, () => cache.truncate(250), "unsupported-length", /^layer 0 /);
    cache.truncate(257);
    expect([0, 1, 2].map((layer) => cache.length(layer))).toEqual([257, 257, 257]);
    cache.truncate(128);
    expect([0, 1, 2].map((layer) => cache.length(layer))).toEqual([128, 128, 128]);
    await expectRefused(cache, () => cache.truncate(129), "unsupported-length", /^layer 0 holds 128 tokens/);
  });

  it("cannot be asked of a layer that holds nothing yet, but for 0", async () => {
    const cache = await filledCache(kvarn, { ...config, layers: 2 }, tokens, [10]);
    await expectRefused(
      cache,
      () => cache.truncate(5),
      "unsupported-length",
      /^layer 1 holds 0 tokens .* 0 to 0$/,
    );
    cache.truncate(0);
    expect(cache.memory().totalBytes).toBe(0);
  });

  it("leaves an imported first tile whole or drops it", async () => {
    const source = await filledCache(kvarn, config, tokens, [320]);
    await source.flush();
    const cache = kvarn.createCache(config);
    await cache.importRecords(0, await source.exportRecords(0));
    await appendChunks(cache, tokens, [20], { from: 320 });
    expect(await tileKinds(cache)).toBe("record record record record exact");
    const { possible, messages } = possibleCuts(cache, 276);
    expect(possible).toEqual(Array.from({ length: 277 }, (_, n) => n % 64 === 0 || n >= 256));
    for (const message of messages) expect(namedCuts(message, 276)).toEqual(possible);
    cache.truncate(64);
    expect(await tileKinds(cache)).toBe("record");
    cache.truncate(0);
    await appendChunks(cache, tokens, [70]);
    await expectEqualCaches(cache, await filledCache(kvarn, config, tokens, [70]));
  });
});

describeEngines("clear", (kvarn) => {
  it("makes a cache as new", async () => {
    for (const slidingWindow of [undefined, 70]) {
      const cache = await filledCache(kvarn, { ...config, slidingWindow }, tokens, [200, 200]);
      cache.clear();
      const fresh = kvarn.createCache({ ...config, slidingWindow });
      expect(cache.length(0)).toBe(0);
      expect(cache.memory()).toEqual(fresh.memory());
      await expectEqualCaches(cache, fresh);
      for (const each of [cache, fresh]) await appendChunks(each, tokens, [100, 100, 7]);
      await expectEqualCaches(cache, fresh);
    }
  });
});
