/** Calls take effect in the order in which they are made, awaited or not, and have read their arguments by then. */
import { expect, it } from "vitest";
import type { KvarnCache } from "../../src/index.js";
import {
  appendChunks,
  describeEngines,
  expectError,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
} from "../support/cache.js";

const shape = { queryHeads: 2, kvHeads: 1, headDim: 32 };
const config = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 1 };
const tokens = makeTokens(shape, 500);
const q = makeQueries(shape, 3);

/** Every kind of call. Those that return something come as thunks, so that a caller may await each or none. */
function script(cache: KvarnCache): (() => unknown)[] {
  const append = (from: number, to: number) => () => cache.append(0, ...tokens.slice(from, to));
  return [
    append(0, 150),
    () => cache.attend(0, q),
    append(150, 151),
    () => cache.exportRecords(0),
    () => cache.serialize(),
    () => cache.truncate(130),
    () => cache.attend(0, q),
    append(200, 400),
    () => cache.flush(),
    () => cache.attend(0, q),
    () => cache.length(0),
    () => cache.serialize(),
    () => cache.truncate(64),
    () => cache.recordRange(0),
    append(300, 464),
    () => cache.exportRecords(0),
    append(464, 465),
    () => cache.exportRecords(0),
    () => cache.fork().serialize(),
    () => cache.clear(),
    () => cache.memory(),
    append(5, 9),
    () => cache.attend(0, q),
    () => cache.serialize(),
  ];
}

describeEngines("order", (kvarn) => {
  it("is that of the calls, awaited or not", async () => {
    const awaited: unknown[] = [];
    for (const call of script(kvarn.createCache(config))) awaited.push(await call());
    const pending = script(kvarn.createCache(config)).map((call) => call());
    const results = await Promise.all(pending);
    expect(results).toHaveLength(awaited.length);
    results.forEach((result, i) => {
      if (ArrayBuffer.isView(result)) expectSame(result as Uint8Array, awaited[i] as Uint8Array);
      // What a call has replaced is held until a GPU has said that it took the call.
      else if (i === 20)
        expect({ ...(result as object), reservedBytes: 0 }).toEqual({
          ...(awaited[i] as object),
          reservedBytes: 0,
        });
      else expect(result).toEqual(awaited[i]);
    });
  });

  it("holds between caches that share memory", async () => {
    const cache = await filledCache(kvarn, config, tokens, [100]);
    const before = await cache.attend(0, q);
    const attending = cache.attend(0, q);
    const fork = cache.fork();
    const first = appendChunks(cache, tokens, [60, 60], { from: 300 });
    const forked = fork.attend(0, q);
    const second = appendChunks(fork, tokens, [100, 3], { from: 100 });
    expectSame(await attending, before);
    expectSame(await forked, before);
    await Promise.all([first, second]);
    const straight = await filledCache(kvarn, config, tokens, [100, 100, 3]);
    expectSame(await fork.serialize(), await straight.serialize());
  });

  it("holds while the engine's memory grows", async () => {
    const cache = await filledCache(kvarn, config, tokens, [250, 40]);
    const expected = [await cache.attend(0, q), await cache.serialize(), await cache.exportRecords(0)];
    const pending: Promise<Float32Array | Uint8Array>[] = [];
    for (const read of [() => cache.attend(0, q), () => cache.serialize(), () => cache.exportRecords(0)]) {
      pending.push(read());
      kvarn.createCache({ ...config, capacity: 50_000 });
      const other = filledCache(
        kvarn,
        { ...config, headDim: 256 },
        makeTokens({ kvHeads: 1, headDim: 256 }, 300),
      );
      pending.push(other.then((grown) => grown.serialize()));
    }
    const results = (await Promise.all(pending)).filter((_, i) => i % 2 === 0);
    results.forEach((result, i) => expectSame(result, expected[i]));
  });

  it("lets arrays change as soon as a call returns", async () => {
    const expected = await filledCache(kvarn, config, tokens, [150, 150, 20]);
    const cache = kvarn.createCache(config);
    const k = new Float32Array(150 * 32);
    const v = new Float32Array(150 * 32);
    const appends = [
      [0, 150],
      [150, 300],
      [300, 320],
    ].map(([from, to]) => {
      const [newK, newV] = tokens.slice(from, to);
      const views = [k.subarray(0, newK.length), v.subarray(0, newV.length)] as const;
      views[0].set(newK);
      views[1].set(newV);
      const appending = cache.append(0, ...views);
      k.fill(NaN);
      v.fill(NaN);
      return appending;
    });
    const query = q.slice();
    const attending = cache.attend(0, query);
    query.fill(NaN);
    await Promise.all(appends);
    expectSame(await cache.serialize(), await expected.serialize());
    expectSame(await attending, await expected.attend(0, q));
  });

  it("is not upset by a call that fails", async () => {
    const cache = kvarn.createCache(config);
    const [k, v] = tokens.slice(100, 200);
    v[v.length - 1] = Infinity;
    const [good, bad, after] = [
      cache.append(0, ...tokens.slice(0, 100)),
      cache.append(0, k, v),
      cache.append(0, ...tokens.slice(100, 200)),
    ];
    expect(() => cache.truncate(500)).toThrow(/cannot be cut/);
    const attending = cache.attend(0, q);
    await expectError(() => bad, "non-finite");
    await Promise.all([good, after]);
    const expected = await filledCache(kvarn, config, tokens, [100, 100]);
    expectSame(await attending, await expected.attend(0, q));
    expectSame(await cache.serialize(), await expected.serialize());
  });
});
