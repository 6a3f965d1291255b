/** Which tokens are records when, and that drafts can be taken back. */
import { expect, it } from "vitest";
import type { Kvarn, KvarnCache } from "../../src/index.js";
import {
  appendChunks,
  describeEngines,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
  randomChunks,
  readSaved,
  tileKinds,
  tokensOf,
} from "../support/cache.js";

const GROUP = 64;
const shape = { queryHeads: 2, kvHeads: 1, headDim: 16 };
const plain = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 1 };

/** SPEC 5: tiles k >= 1 with `(k+1) * G <= length - exactWindow`; where the last of them ends, or the sink. */
function recordsEnd(length: number, exactWindow: number, group = GROUP): number {
  let end = group;
  while (end + group <= length - exactWindow) end += group;
  return end;
}

describeEngines("schedule", (kvarn) => {
  it.each([0, 1, 7, 63, 64, 65, 150, 1000])(
    "encodes on each append what the last one left complete, exactWindow %i",
    async (exactWindow) => {
      const tokens = makeTokens(shape, 700);
      for (const sizes of [randomChunks(700, 90, exactWindow), [64, 64, 128, 1, 63, 192, 188], [700]]) {
        const cache = kvarn.createCache({ ...plain, exactWindow });
        let length = 0;
        for (const size of sizes) {
          await appendChunks(cache, tokens, [size], { from: length });
          expect(cache.recordRange(0)).toEqual({ start: GROUP, end: recordsEnd(length, exactWindow) });
          length += size;
          expect(cache.length(0)).toBe(length);
        }
        await cache.flush();
        const end = recordsEnd(700, exactWindow);
        expect(cache.recordRange(0)).toEqual({ start: GROUP, end });
        expect(await cache.exportRecords(0)).toHaveLength(cache.memory().recordBytes);
      }
    },
  );

  it("encodes token by token at the tile's end and not before", async () => {
    const group = 128;
    const tokens = makeTokens(shape, 260);
    const cache = kvarn.createCache({ ...plain, preset: "k4v2_g128", exactWindow: 3 });
    for (let length = 0; length < 260; length++) {
      await appendChunks(cache, tokens, [1], { from: length });
      expect(cache.recordRange(0).end).toBe(recordsEnd(length, 3, group));
    }
    expect(cache.recordRange(0)).toEqual({ start: 128, end: 256 });
  });

  it("keeps the newest append exact, however long it is", async () => {
    const cache = kvarn.createCache(plain);
    const tokens = makeTokens(shape, 1000);
    await appendChunks(cache, tokens, [300]);
    expect(await tileKinds(cache)).toBe("exact exact exact exact exact");
    await appendChunks(cache, tokens, [400], { from: 300 });
    expect(await tileKinds(cache)).toBe(`exact record record record ${"exact ".repeat(7).trim()}`);
    await cache.flush();
    expect(await tileKinds(cache)).toBe(`exact ${"record ".repeat(9)}exact`);
  });

  it("flushes what the next append would encode, once", async () => {
    const tokens = makeTokens(shape, 260);
    for (const exactWindow of [0, 30]) {
      for (const length of [0, 1, 63, 64, 65, 127, 128, 129, 158, 192, 259]) {
        const flushed = kvarn.createCache({ ...plain, exactWindow });
        const other = kvarn.createCache({ ...plain, exactWindow });
        if (length > 0)
          await Promise.all([flushed, other].map((cache) => appendChunks(cache, tokens, [length])));
        await flushed.flush();
        const bytes = await flushed.serialize();
        await flushed.flush();
        expectSame(await flushed.serialize(), bytes);
        expect(flushed.recordRange(0).end).toBe(recordsEnd(length, exactWindow));
        await appendChunks(flushed, tokens, [1], { from: length });
        await appendChunks(other, tokens, [1], { from: length });
        expectSame(await flushed.serialize(), await other.serialize());
      }
    }
  });

  it("flushes every layer by its own length", async () => {
    const cache = kvarn.createCache({ ...plain, layers: 3 });
    const tokens = makeTokens(shape, 200);
    await appendChunks(cache, tokens, [200], { layer: 0 });
    await appendChunks(cache, tokens, [130], { layer: 2 });
    await cache.flush();
    expect([0, 1, 2].map((layer) => cache.recordRange(layer).end)).toEqual([192, 64, 128]);
    const lengths = readSaved(await cache.serialize()).layers.map(({ config }) => config.length);
    expect(lengths).toEqual([200, 0, 130]);
  });

  it("takes drafts back that were appended together, at every length around a tile's end", async () => {
    const tokens = makeTokens(shape, 260);
    const drafts = makeTokens(shape, 40, 5);
    for (const prompt of [1, 60, 64, 100, 126, 127, 128, 129, 190, 191, 192, 193]) {
      const [cache, never] = await pair(kvarn, {}, tokens.slice(0, prompt));
      await cache.append(0, ...drafts.slice(0, 40));
      // Rejected but for three: the prompt's due tiles are records now, as they are after any append.
      cache.truncate(prompt + 3);
      await never.append(0, ...drafts.slice(0, 3));
      await expectEqualCaches(cache, never);
      await Promise.all([cache, never].map((each) => appendChunks(each, tokens, [20, 47], { from: 193 })));
      await expectEqualCaches(cache, never);
    }
  });

  it("takes drafts back that were appended one by one, up to exactWindow of them", async () => {
    const exactWindow = 5;
    const tokens = makeTokens(shape, 400);
    const drafts = makeTokens(shape, exactWindow, 6);
    const config = { exactWindow };
    const [cache, never] = await pair(kvarn, config, tokens.slice(0, 118));
    let [same, ahead] = [0, 0];
    for (let length = 118; length < 210;) {
      for (let i = 0; i < exactWindow; i++) await cache.append(0, ...drafts.slice(i, i + 1));
      cache.truncate(length);
      // Encoded tiles stay encoded: a tile that was due while the drafts were there is due a little later without.
      if (cache.recordRange(0).end === never.recordRange(0).end) {
        await expectEqualCaches(cache, never);
        same++;
      } else {
        expect(cache.recordRange(0).end).toBe(recordsEnd(length - 1, 0));
        ahead++;
      }
      const accepted = 1 + (length % 3);
      await Promise.all(
        [cache, never].map((each) => appendChunks(each, tokens, [accepted], { from: length })),
      );
      length += accepted;
    }
    expect(ahead).toBeGreaterThan(0);
    expect(same).toBeGreaterThan(20);
    await expectEqualCaches(cache, never);
    expect(cache.recordRange(0).end).toBe(192);
  });

  it("cannot take back more than exactWindow once a tile has ended in between", async () => {
    const tokens = makeTokens(shape, 200);
    const cache = kvarn.createCache({ ...plain, exactWindow: 4 });
    await appendChunks(cache, tokens, [127]);
    await appendChunks(cache, tokens, [1, 1, 1, 1, 1, 1], { from: 127 });
    expect([cache.length(0), cache.recordRange(0).end]).toEqual([133, 128]);
    expect(() => cache.truncate(127)).toThrow(/128/);
    cache.truncate(129);
  });
});

/** Two caches with the same tokens. */
async function pair(
  kvarn: Kvarn,
  config: { exactWindow?: number },
  [k, v]: [Float32Array, Float32Array],
): Promise<[KvarnCache, KvarnCache]> {
  const make = () => filledCache(kvarn, { ...plain, ...config }, tokensOf(k, v, shape.headDim));
  return [await make(), await make()];
}

async function expectEqualCaches(a: KvarnCache, b: KvarnCache): Promise<void> {
  expectSame(await a.serialize(), await b.serialize());
  const q = makeQueries(shape, Math.min(3, a.length(0)));
  expectSame(await a.attend(0, q), await b.attend(0, q));
}
