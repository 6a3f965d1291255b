/** Records out of a cache and into another. */
import { describe, expect, it } from "vitest";
import { parsePreset, recordLayout } from "../../src/index.js";
import { relativeError } from "../../src/conformance/compare.js";
import {
  appendChunks,
  describeEngines,
  expectAgrees,
  expectRefused,
  expectSame,
  filledCache,
  halves,
  makeQueries,
  makeTokens,
  namedEngines,
  readStored,
  rotateDensely,
  tileKinds,
} from "../support/cache.js";

const shape = { queryHeads: 4, kvHeads: 2, headDim: 32 };
const config = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 2 };
const layout = recordLayout(parsePreset(config.preset), shape.headDim);
const tokens = makeTokens(shape, 400);

describeEngines("exportRecords and importRecords", (kvarn) => {
  it("carry all but sink and tail from one cache to another", async () => {
    const source = await filledCache(kvarn, config, tokens);
    await source.flush();
    const { start, end } = source.recordRange(0);
    expect([start, end]).toEqual([64, 384]);
    const records = await source.exportRecords(0);
    expect(records).toHaveLength(5 * 2 * layout.bytes);
    const target = await filledCache(kvarn, config, tokens.of(64));
    await target.importRecords(0, records.subarray(0, 2 * 2 * layout.bytes));
    await target.importRecords(0, records.subarray(2 * 2 * layout.bytes));
    expect(target.length(0)).toBe(384);
    await appendChunks(target, tokens, [16], { from: 384 });
    expectSame(await target.serialize(), await source.serialize());
    const q = makeQueries(shape, 20);
    expectSame(await target.attend(0, q), await source.attend(0, q));
    for (const cache of [source, target]) await appendChunks(cache, tokens, [100, 50]);
    expectSame(await target.serialize(), await source.serialize());
  });

  it.each([64, 192])(
    "put the first tile where the sink would be in an empty layer, %i tokens",
    async (length) => {
      const records = await kvarn.encode(...tokens.slice(0, length), shapeOf(config));
      const record = (count: number) => new Array(count).fill("record").join(" ");
      const cache = kvarn.createCache({ ...config, layers: 2 });
      await cache.importRecords(1, records);
      expect([cache.length(0), cache.length(1)]).toEqual([0, length]);
      expect(cache.recordRange(0)).toEqual({ start: 64, end: 64 });
      expect(cache.recordRange(1)).toEqual({ start: 0, end: length });
      expectSame(await cache.exportRecords(1), records);
      expect(await cache.exportRecords(0)).toHaveLength(0);
      expect(await tileKinds(cache, 1)).toBe(record(length / 64));
      const { sinkBytes, tailBytes, recordBytes } = cache.memory();
      expect({ sinkBytes, tailBytes, recordBytes }).toEqual({
        sinkBytes: 0,
        tailBytes: 0,
        recordBytes: records.length,
      });
      await expectAgrees(kvarn, cache, await readStored(cache, 1), makeQueries(shape, length), 1);
      await appendChunks(cache, tokens, [100, 60, 1], { layer: 1, from: length });
      expect(await tileKinds(cache, 1)).toBe(`${record(length / 64 + 2)} exact`);
      await expectAgrees(kvarn, cache, await readStored(cache, 1), makeQueries(shape, 5), 1);
    },
  );

  it("speak of what decode decodes and attend sees", async () => {
    const cache = await filledCache(kvarn, config, tokens, [300, 100]);
    const decoded = await kvarn.decode(await cache.exportRecords(0), shapeOf(config));
    const { start, end } = cache.recordRange(0);
    const stored = await readStored(cache);
    for (const [values, kept] of [[decoded.k, stored.k] as const, [decoded.v, stored.v] as const]) {
      const rotated = rotateDensely(values, shape.headDim);
      for (let head = 0; head < 2; head++) {
        const rows = Array.from({ length: end - start }, (_, i) =>
          rotated.subarray((2 * i + head) * 32, (2 * i + head + 1) * 32),
        );
        const all = Float64Array.from(rows.flatMap((row) => [...row]));
        expect(relativeError(all, kept[head].subarray(start * 32, end * 32))).toBeLessThan(1e-6);
      }
    }
  });

  it.each([
    [256, "k4v2_g128", 26_880, 32_768],
    [512, "k4v2_g128", 52_992, 65_536],
    [256, "k8v8_g64", 34_688, 65_536],
    [128, "k4v2_g128", 13_824, 13_824],
    [240, "k2v2_g64", 9_504, 9_504],
  ] as const)("space records as vLLM does, D=%i %s", async (headDim, preset, bytes, padded) => {
    const wide = { queryHeads: 2, kvHeads: 2, headDim, preset, iterations: 0 };
    const { group } = parsePreset(preset);
    const layout = recordLayout(parsePreset(preset), headDim);
    expect([layout.bytes, layout.paddedBytes]).toEqual([bytes, padded]);
    const some = makeTokens(wide, 3 * group + 5, headDim);
    const cache = await filledCache(kvarn, { ...wide, layers: 1 }, some);
    await cache.flush();
    const plain = await cache.exportRecords(0);
    expectSame(await cache.exportRecords(0, { padding: "none" }), plain);
    const spaced = await cache.exportRecords(0, { padding: "vllm" });
    expect(plain).toHaveLength(4 * layout.bytes);
    expect(spaced).toHaveLength(4 * layout.paddedBytes);
    for (let i = 0; i < 4; i++) {
      const at = i * layout.paddedBytes;
      expectSame(
        spaced.subarray(at, at + layout.bytes),
        plain.subarray(i * layout.bytes, (i + 1) * layout.bytes),
      );
      expect(spaced.subarray(at + layout.bytes, at + layout.paddedBytes).every((x) => x === 0)).toBe(true);
    }
    // What lies between records is nobody's.
    for (let i = 0; i < 4; i++)
      spaced.fill(0xff, i * layout.paddedBytes + layout.bytes, (i + 1) * layout.paddedBytes);
    const target = await filledCache(kvarn, { ...wide, layers: 1 }, some.of(group));
    await target.importRecords(0, spaced, { padding: "vllm" });
    await appendChunks(target, some, [5], { from: 3 * group });
    expectSame(await target.serialize(), await cache.serialize());
  });

  it("go into a sliding window, which lets go as it would have", async () => {
    const config = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 2, slidingWindow: 100 };
    const records = await kvarn.encode(...tokens.slice(64, 384), shapeOf(config));
    const cache = await filledCache(kvarn, config, tokens.of(64));
    await cache.importRecords(0, records);
    const other = await filledCache(kvarn, config, tokens.of(384));
    await other.flush();
    expectSame(await cache.serialize(), await other.serialize());
    expect(cache.recordRange(0)).toEqual({ start: 256, end: 384 });
    expectSame(await cache.exportRecords(0), records.subarray(3 * 2 * layout.bytes));
  });

  it("copy: later changes on either side do not matter", async () => {
    const records = await kvarn.encode(...tokens.slice(0, 128), shapeOf(config));
    const [kept, changed] = [records.slice(), records.slice()];
    const cache = kvarn.createCache(config);
    const pending = cache.importRecords(0, changed);
    changed.fill(0);
    await pending;
    const exported = cache.exportRecords(0);
    cache.clear();
    expectSame(await exported, kept);
  });

  it.each([
    ["a part of the sink", [10]],
    ["a tail", [64, 1]],
    ["records and a tail", [200, 3]],
    ["full tiles that are not encoded yet", [192]],
  ])("are refused behind %s", async (_, sizes) => {
    const cache = await filledCache(kvarn, config, tokens, sizes);
    const records = await kvarn.encode(...tokens.slice(0, 64), shapeOf(config));
    await expectRefused(
      cache,
      () => cache.importRecords(0, records),
      "unsupported-length",
      /^records can follow/,
    );
    const length = Math.floor(cache.length(0) / 64) * 64;
    cache.truncate(length);
    await cache.flush();
    await cache.importRecords(0, records);
    expect(cache.length(0)).toBe(length + 64);
  });

  it("are refused in other sizes, types and paddings", async () => {
    const cache = await filledCache(kvarn, config, tokens.of(64));
    const records = await kvarn.encode(...tokens.slice(0, 64), shapeOf(config));
    const sizes = [0, 1, layout.bytes, 3 * layout.bytes, records.length - 1];
    for (const size of sizes) {
      const action = () => cache.importRecords(0, new Uint8Array(size));
      await expectRefused(cache, action, "invalid-shape", /whole tiles of 2 records of \d+ bytes/);
    }
    for (const value of [
      undefined,
      null,
      [...records],
      records.buffer,
      new Int8Array(records.buffer),
      "abc",
    ]) {
      await expectRefused(
        cache,
        () => cache.importRecords(0, value as unknown as Uint8Array),
        "invalid-argument",
        /Uint8Array/,
      );
    }
    for (const padding of ["vLLM", "", null, 2] as unknown as "vllm"[]) {
      await expectRefused(
        cache,
        () => cache.importRecords(0, records, { padding }),
        "invalid-argument",
        /padding/,
      );
      await expectRefused(cache, () => cache.exportRecords(0, { padding }), "invalid-argument", /padding/);
    }
    for (const layer of [-1, 1, 0.5, NaN, "0" as unknown as number]) {
      await expectRefused(cache, () => cache.importRecords(layer, records), "invalid-argument", /layer/);
      await expectRefused(cache, () => cache.exportRecords(layer), "invalid-argument", /layer/);
    }
  });

  it("are refused with scales that are not finite, wherever they are", async () => {
    const cache = await filledCache(kvarn, config, tokens.of(64));
    const records = await kvarn.encode(...tokens.slice(0, 192), shapeOf(config));
    const { kScale, kZero, kToken, vCodes, vScale, vToken, vZero, bytes } = layout;
    for (const [i, field] of [
      kScale,
      kZero,
      kToken,
      vCodes - 2,
      vScale,
      vToken,
      vZero,
      bytes - 2,
    ].entries()) {
      for (const record of [0, 3, 5]) {
        const bad = records.slice();
        const [value] = halves([[NaN, Infinity, -Infinity][i % 3]]);
        bad.set([value & 255, value >> 8], record * bytes + field);
        await expectRefused(
          cache,
          () => cache.importRecords(0, bad),
          "corrupt-data",
          new RegExp(`^record ${record} .* at byte ${field} `),
        );
      }
    }
    await cache.importRecords(0, records);
  });

  it("may hold anything finite: attention stays finite too", async () => {
    const cache = kvarn.createCache(config);
    const records = new Uint8Array(2 * layout.bytes).map((_, i) => (i * 37) & 255);
    const extremes = halves([65504, -65504, 2 ** -24, 0]);
    for (const record of [0, 1]) {
      for (const [from, to] of [
        [layout.kScale, layout.vCodes],
        [layout.vScale, layout.bytes],
      ]) {
        for (let at = from, i = record; at < to; at += 2, i++) {
          const value = extremes[(i * i + (i >> 3)) % 4];
          records.set([value & 255, value >> 8], record * layout.bytes + at);
        }
      }
    }
    await cache.importRecords(0, records);
    for (const scale of [1e-6, 1, 100, 1e6, 1e25, 2e29]) {
      const q = makeQueries(shape, 3, 1, scale);
      const out = await cache.attend(0, q).catch((error: unknown) => error);
      if (out instanceof Float32Array) expect(out.every(Number.isFinite)).toBe(true);
      // Queries so long that no score of f32 could hold them may be refused.
      else expect({ out, scale: scale > 1e20 }).toMatchObject({ out: { code: "non-finite" }, scale: true });
    }
  });
});

describe.each(namedEngines)("records of %s", (_, source) => {
  it.each(namedEngines)("go on in a cache of %s", async (_, target) => {
    const made = await filledCache(source, config, tokens.of(256));
    await made.flush();
    const cache = await filledCache(target, config, tokens.of(64));
    await cache.importRecords(0, await made.exportRecords(0));
    expectSame(await cache.exportRecords(0), await made.exportRecords(0));
    await expectAgrees(target, cache, await readStored(cache), makeQueries(shape, 7));
  });
});

function shapeOf({ preset, iterations }: { preset: string; iterations: number }) {
  return { preset, kvHeads: shape.kvHeads, headDim: shape.headDim, iterations };
}
