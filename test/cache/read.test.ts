/** K and V back out of a cache. */
import { describe, expect, it } from "vitest";
import { relativeError } from "../../src/conformance/compare.js";
import {
  describeEngines,
  expectError,
  expectRefused,
  expectSame,
  filledCache,
  makeTokens,
  type Tokens,
} from "../support/cache.js";

const shape = { queryHeads: 4, kvHeads: 2, headDim: 32 };
const config = { ...shape, preset: "k8v8_g64", layers: 1 };
const width = shape.kvHeads * shape.headDim;
const all = makeTokens(shape, 5 * 64 + 30);

/** Tokens by tile: how far K and V are from what was put in. */
function errorsByTile(read: { k: Float32Array; v: Float32Array }, tokens: Tokens): number[] {
  return Array.from({ length: Math.ceil(tokens.count / 64) }, (_, tile) => {
    const [from, to] = [tile * 64 * width, Math.min(tokens.count, (tile + 1) * 64) * width];
    const error = (side: "k" | "v") =>
      relativeError(read[side].subarray(from, to), tokens[side].subarray(from, to));
    return Math.max(error("k"), error("v"));
  });
}

describeEngines("read", (kvarn) => {
  it.each([1, 64, 65, 200, all.count])("returns all of %i tokens, exact ones as binary16", async (count) => {
    const tokens = all.of(count);
    const cache = await filledCache(kvarn, config, tokens, [count]);
    await cache.flush();
    const read = await cache.read(0);
    expect([read.k.length, read.v.length]).toEqual([count * width, count * width]);
    const { start, end } = cache.recordRange(0);
    errorsByTile(read, tokens).forEach((error, tile) => {
      const isRecord = tile * 64 >= start && tile * 64 < end;
      expect(error, `tile ${tile}`).toBeLessThan(isRecord ? 0.02 : 4e-4);
      expect(error, `tile ${tile}`).toBeGreaterThan(isRecord ? 1e-3 : 1e-6);
    });
  });

  it("returns of records what decode does", async () => {
    const cache = await filledCache(kvarn, config, all, [100, all.count - 100]);
    await cache.flush();
    const read = await cache.read(0);
    const decoded = await kvarn.decode(await cache.exportRecords(0), config);
    const { start, end } = cache.recordRange(0);
    expect([start, end]).toEqual([64, 5 * 64]);
    for (const side of ["k", "v"] as const)
      expectSame(read[side].subarray(start * width, end * width), decoded[side]);
  });

  it("reads layers of their own, a record in the sink's place, and nothing", async () => {
    const cache = kvarn.createCache({ ...config, layers: 3 });
    const records = await kvarn.encode(...all.slice(64, 192), config);
    await cache.importRecords(1, records);
    await cache.append(1, ...all.slice(192, 200));
    await cache.append(2, ...all.slice(0, 3));
    const decoded = await kvarn.decode(records, config);
    const read = await cache.read(1);
    expect(read.k).toHaveLength(136 * width);
    expectSame(read.k.subarray(0, 128 * width), decoded.k);
    expectSame(read.v.subarray(0, 128 * width), decoded.v);
    expect(relativeError(read.v.subarray(128 * width), all.slice(192, 200)[1])).toBeLessThan(4e-4);
    expect((await cache.read(2)).k).toHaveLength(3 * width);
    expect((await cache.read(0)).v).toHaveLength(0);
    await expectError(() => cache.read(3), "invalid-argument", /layer/);
  });

  it("reads what there was when it was called, and changes nothing", async () => {
    const cache = await filledCache(kvarn, config, all.of(150));
    const before = await cache.serialize();
    const pending = cache.read(0);
    cache.truncate(10);
    expect((await pending).k).toHaveLength(150 * width);
    const whole = await kvarn.restoreCache(before);
    await whole.read(0);
    expectSame(await whole.serialize(), before);
    cache.dispose();
    await expectError(() => cache.read(0), "disposed");
  });

  it("refuses once a window has let tokens go", async () => {
    const windowed = { ...config, slidingWindow: 32 };
    const cache = await filledCache(kvarn, windowed, all.of(130));
    expect((await cache.read(0)).k).toHaveLength(130 * width);
    await cache.append(0, ...all.slice(130, 300));
    await cache.append(0, ...all.slice(300, 301));
    await expectRefused(cache, () => cache.read(0), "outside-window", /let go tokens before \d+/);
  });
});

describe("read of a head that is no power of two", () => {
  describeEngines("rotates in blocks", (kvarn) => {
    it("and back", async () => {
      const odd = { queryHeads: 1, kvHeads: 1, headDim: 80 };
      const tokens = makeTokens(odd, 100);
      const cache = await filledCache(kvarn, { ...config, ...odd }, tokens);
      const { k, v } = await cache.read(0);
      expect(relativeError(k, tokens.k)).toBeLessThan(4e-4);
      expect(relativeError(v, tokens.v)).toBeLessThan(4e-4);
    });
  });
});
