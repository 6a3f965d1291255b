/** Saved caches: the same cache again on any backend, and nothing but errors from bytes that are not one. */
import { describe, expect, it } from "vitest";
import { type CacheConfig, type Kvarn, KvarnError } from "../../src/index.js";
import { KvarnCache } from "../../src/cache/cache.js";
import { relativeError } from "../../src/conformance/compare.js";
import {
  appendChunks,
  describeEngines,
  expectAgrees,
  expectError,
  expectSame,
  halves,
  makeQueries,
  makeTokens,
  namedEngines,
  readSaved,
  readStored,
  type SavedHeader,
  tileKinds,
  watchedEngines,
  withChecksum,
  writeSaved,
} from "../support/cache.js";
import { randomIntegers } from "../support/random.js";

const LAYERS = [
  { queryHeads: 4, kvHeads: 2, headDim: 16, softCap: 20, sinkLogits: [0.5, -1, 2, 0.1] },
  { queryHeads: 1, kvHeads: 1, headDim: 48, slidingWindow: 90, softmaxScale: 0.2 },
];
const config: CacheConfig = { preset: "k3v2_g64", layers: LAYERS, iterations: 3, exactWindow: 4 };
const tokens = LAYERS.map((shape, layer) => makeTokens(shape, 400, layer));

/** A cache with a sink, records and a tail in one layer, and tiles let go in the other. */
async function sample(kvarn: Kvarn): Promise<KvarnCache> {
  const cache = kvarn.createCache(config);
  for (const layer of [0, 1]) await appendChunks(cache, tokens[layer], [270, 7], { layer });
  return cache;
}

async function outputs(cache: KvarnCache): Promise<Float32Array[]> {
  return Promise.all(LAYERS.map((shape, layer) => cache.attend(layer, makeQueries(shape, 3, layer))));
}

async function expectEqualCaches(a: KvarnCache, b: KvarnCache): Promise<void> {
  expectSame(await a.serialize(), await b.serialize());
  const [ours, theirs] = [await outputs(a), await outputs(b)];
  ours.forEach((out, layer) => expectSame(out, theirs[layer]));
}

describeEngines("a saved cache", (kvarn) => {
  it("comes back as it was, and goes on as it would have", async () => {
    const cache = await sample(kvarn);
    const restored = await kvarn.restoreCache(await cache.serialize());
    expect(restored.layers).toBe(2);
    expect({ ...restored.memory(), reservedBytes: 0 }).toEqual({ ...cache.memory(), reservedBytes: 0 });
    await expectEqualCaches(restored, cache);
    for (const each of [restored, cache]) {
      for (const layer of [0, 1]) await appendChunks(each, tokens[layer], [100, 1], { layer, from: 277 });
      each.truncate(375);
    }
    await expectEqualCaches(restored, cache);
  });

  it("may be empty, a part of a sink, or all records", async () => {
    const one = { ...config, ...LAYERS[0], layers: 1 };
    for (const length of [0, 1, 64, 65, 128, 192]) {
      const cache = kvarn.createCache(one);
      if (length > 0) await appendChunks(cache, tokens[0], [length]);
      await cache.flush();
      const bytes = await cache.serialize();
      expect(readSaved(bytes).header.layers[0].length).toBe(length);
      const restored = await kvarn.restoreCache(bytes);
      expect(restored.length(0)).toBe(length);
      expectSame(await restored.serialize(), bytes);
    }
    const imported = kvarn.createCache(one);
    const { k, v } = tokens[0].of(192);
    await imported.importRecords(0, await kvarn.encode(k, v, { ...one, preset: "k3v2_g64" }));
    const restored = await kvarn.restoreCache(await imported.serialize());
    expect(await tileKinds(restored)).toBe("record record record");
    expect(restored.recordRange(0)).toEqual({ start: 0, end: 192 });
    expectSame(await restored.serialize(), await imported.serialize());
  });

  it("has a header that says what it holds", async () => {
    const { header } = readSaved(await (await sample(kvarn)).serialize());
    expect(header).toMatchObject({ preset: "k3v2_g64", iterations: 3, exactWindow: 4 });
    expect(header.layers[0]).toEqual({
      ...LAYERS[0],
      sinkLogits: [...Float32Array.from(LAYERS[0].sinkLogits!)],
      ...{ softmaxScale: 0.25, length: 277, firstKept: 1, firstTail: 4, sink: "exact" },
    });
    expect(header.layers[1]).toEqual({
      ...LAYERS[1],
      ...{ length: 277, firstKept: 2, firstTail: 4, sink: "exact" },
    });
  });

  it("is read from a view into a larger buffer, left as it is, and not looked at again", async () => {
    const cache = await sample(kvarn);
    const bytes = await cache.serialize();
    const buffer = new Uint8Array(bytes.length + 9).fill(0xee);
    buffer.set(bytes, 3);
    const view = buffer.subarray(3, 3 + bytes.length);
    const pending = kvarn.restoreCache(view);
    expectSame(view, bytes);
    buffer.fill(0);
    await expectEqualCaches(await pending, cache);
  });

  it("is read from Node's Buffer, which is a Uint8Array whose slices are views", async () => {
    const cache = await sample(kvarn);
    const bytes = await cache.serialize();
    const restored = await kvarn.restoreCache(Buffer.from(bytes));
    await expectEqualCaches(restored, cache);
    const odd = Buffer.concat([Buffer.from("x"), bytes]).subarray(1);
    await expectEqualCaches(await kvarn.restoreCache(odd), cache);
    const records = Buffer.from(await cache.exportRecords(0));
    const target = kvarn.createCache(config);
    await target.importRecords(0, records);
    records.fill(0);
    expectSame(await target.exportRecords(0), await cache.exportRecords(0));
  });

  it("does not change with the cache it came from", async () => {
    const cache = await sample(kvarn);
    const pending = cache.serialize();
    cache.clear();
    await appendChunks(cache, tokens[0], [300]);
    expectSame(await pending, await (await sample(kvarn)).serialize());
  });
});

describe.each(namedEngines)("a cache saved on %s", (_, source) => {
  it.each(namedEngines)("comes back on %s", async (_, target) => {
    const cache = await sample(source);
    const bytes = await cache.serialize();
    const restored = await target.restoreCache(bytes);
    expectSame(await restored.serialize(), bytes);
    for (const [layer, shape] of LAYERS.entries()) {
      expectSame(await restored.exportRecords(layer), await cache.exportRecords(layer));
      const q = makeQueries(shape, 3, layer);
      expect(relativeError(await restored.attend(layer, q), await cache.attend(layer, q))).toBeLessThan(2e-3);
      await expectAgrees(target, restored, await readStored(cache, layer), q, layer);
    }
    // And there and back again, with tokens that both wrote.
    for (const layer of [0, 1]) await appendChunks(restored, tokens[layer], [60], { layer, from: 277 });
    const back = await source.restoreCache(await restored.serialize());
    expectSame(await back.serialize(), await restored.serialize());
    for (const [layer, shape] of LAYERS.entries()) {
      await expectAgrees(source, back, await readStored(restored, layer), makeQueries(shape, 5), layer);
    }
  });
});

describe.each(watchedEngines)("bytes that are no saved cache, %s", (_, open) => {
  const ready = (async () => {
    const engine = await open();
    const cache = await sample(engine.kvarn);
    const bytes = await cache.serialize();
    cache.dispose();
    return { ...engine, bytes, held: engine.heldBytes() };
  })();

  /** Expects every one of `files` to be refused, and the engine to be as good as new. */
  async function expectAllRefused(
    files: readonly Uint8Array[],
    code: "corrupt-data" | "unsupported-version",
  ) {
    const { kvarn, bytes, heldBytes, held } = await ready;
    const accepted: string[] = [];
    for (const file of files) {
      const restored = await kvarn.restoreCache(file).catch((error: unknown) => error);
      if (restored instanceof KvarnCache) {
        accepted.push(JSON.stringify(readSaved(await restored.serialize()).header));
        restored.dispose();
      } else {
        expect(restored).toBeInstanceOf(KvarnError);
        expect(restored).toHaveProperty("code", code);
      }
    }
    expect(accepted).toEqual([]);
    expect(heldBytes()).toBe(held);
    const restored = await kvarn.restoreCache(bytes);
    expectSame(await restored.serialize(), bytes);
    restored.dispose();
  }

  it("with any one byte changed", async () => {
    const { bytes } = await ready;
    const start = readSaved(bytes).payloadStart;
    const pick = randomIntegers(1);
    const flip = (at: number) => {
      const damaged = bytes.slice();
      damaged[at] ^= pick(1, 255);
      return damaged;
    };
    const offsets = Array.from(bytes, (_, at) => at);
    const isVersion = (at: number) => at >= 8 && at < 12;
    await expectAllRefused(offsets.filter(isVersion).map(flip), "unsupported-version");
    const sampled = (at: number) => at < start + 50 || at >= bytes.length - 50 || at % 31 === 0;
    await expectAllRefused(offsets.filter((at) => !isVersion(at) && sampled(at)).map(flip), "corrupt-data");
  });

  it("cut short or with something behind", async () => {
    const { bytes } = await ready;
    const start = readSaved(bytes).payloadStart;
    const lengths = Array.from(bytes, (_, length) => length);
    const sampled = lengths.filter(
      (n) => n < 40 || Math.abs(n - start) < 8 || n > bytes.length - 8 || n % 97 === 0,
    );
    await expectAllRefused(
      sampled.map((length) => bytes.slice(0, length)),
      "corrupt-data",
    );
    await expectAllRefused(
      [1, 2, 4, 64].flatMap((more) => {
        const longer = new Uint8Array(bytes.length + more);
        longer.set(bytes);
        return [longer, withChecksum(longer.slice())];
      }),
      "corrupt-data",
    );
  });

  it("of another kind, or of a version to come", async () => {
    const { bytes } = await ready;
    const changed = (at: number, ...values: number[]) => {
      const file = bytes.slice();
      file.set(values, at);
      return withChecksum(file);
    };
    await expectAllRefused(
      [
        new Uint8Array(0),
        new Uint8Array(1000),
        new TextEncoder().encode('{"metadata":{}}'.padEnd(100)),
        changed(0, 0x6b),
        changed(5, 1),
        changed(7, 1),
        // The versions of caches with outlier tokens, and of refined ones.
        changed(8, 2),
        changed(8, 3),
        bytes.slice(1),
      ],
      "corrupt-data",
    );
    await expectAllRefused(
      [changed(8, 0), changed(8, 4), changed(8, 1, 1), changed(8, 2, 1), changed(11, 128)],
      "unsupported-version",
    );
  });

  it("that are not bytes", async () => {
    const { kvarn, bytes } = await ready;
    for (const value of [
      undefined,
      null,
      "KVARN",
      [...bytes],
      bytes.buffer,
      new Uint16Array(bytes.buffer.slice(0, 64)),
    ]) {
      await expectError(
        () => kvarn.restoreCache(value as unknown as Uint8Array),
        "invalid-argument",
        /Uint8Array/,
      );
    }
  });

  /** The sample with another header; the checksum is right. */
  async function lies(edits: readonly ((header: SavedHeader) => unknown)[]): Promise<Uint8Array[]> {
    const { bytes } = await ready;
    const { header, payloadStart } = readSaved(bytes);
    const payload = bytes.slice(payloadStart, -4);
    return edits.map((edit) => {
      const copy = structuredClone(header);
      return writeSaved((edit(copy) as object | string | undefined) ?? copy, payload);
    });
  }

  /** Sets a field of the first layer's header. */
  const layer0 = (fields: Record<string, unknown>) => (header: SavedHeader) => {
    Object.assign(header.layers[0], fields);
  };
  const layer1 = (fields: Record<string, unknown>) => (header: SavedHeader) => {
    Object.assign(header.layers[1], fields);
  };
  const all = (fields: Record<string, unknown>) => (header: SavedHeader) => {
    Object.assign(header, fields);
  };

  it("with lengths that do not add up", async () => {
    const edits = [
      ...[0, 1, 213, 276, 278, 341, 5000, 2 ** 31 - 1].map((length) => layer0({ length })),
      ...[1, 2, 3, 5].map((firstTail) => layer0({ firstTail })),
      ...[2, 3, 4].map((firstKept) => layer0({ firstKept })),
      ...[1, 3, 4].map((firstKept) => layer1({ firstKept })),
      layer0({ kvHeads: 1 }),
      layer0({ kvHeads: 4 }),
      layer0({ headDim: 32 }),
      layer0({ sink: "record" }),
      all({ preset: "k4v2_g64" }),
      all({ preset: "k3v2_g128" }),
      (header: SavedHeader) => void header.layers.pop(),
      (header: SavedHeader) => void header.layers.push(header.layers[0]),
      (header: SavedHeader) => void header.layers.reverse(),
    ];
    await expectAllRefused(await lies(edits), "corrupt-data");
  });

  it("with values that mean nothing", async () => {
    const noInteger = [-1, 0.5, 1e300, null, "3", [3], {}, true];
    const edits = [
      ...["length", "firstKept", "firstTail", "kvHeads", "queryHeads", "headDim"].flatMap((field) =>
        noInteger.map((value) => layer0({ [field]: value })),
      ),
      ...[0, ...noInteger].map((slidingWindow) => layer1({ slidingWindow })),
      ...["softCap", "softmaxScale"].flatMap((field) =>
        [0, -1, null, "1", {}].map((value) => layer0({ [field]: value })),
      ),
      ...[[1], [1, 2, 3, null], [1, 2, 3, 1e39], null, "abcd", {}].map((sinkLogits) =>
        layer0({ sinkLogits }),
      ),
      ...[undefined, null, "tail", 1].map((sink) => layer0({ sink })),
      ...[0, 24, 528].map((headDim) => layer0({ headDim })),
      layer0({ kvHeads: 0 }),
      layer0({ kvHeads: 1e9, queryHeads: 1e9 }),
      layer0({ queryHeads: 3 }),
      layer0({ firstTail: 0 }),
      layer0({ firstKept: 0 }),
      layer0({ length: undefined }),
      ...[65, ...noInteger].map((iterations) => all({ iterations })),
      ...noInteger.filter((value) => value !== null).map((exactWindow) => all({ exactWindow })),
      ...["k1v2_g64", "k3v2", 5, {}].map((preset) => all({ preset })),
      ...[[], 2, null, "2", {}, [1, 2], [null, null], undefined].map((layers) => all({ layers })),
    ];
    await expectAllRefused(await lies(edits), "corrupt-data");
  });

  it("with a header that is none", async () => {
    const { bytes } = await ready;
    const { header, payloadStart } = readSaved(bytes);
    const payload = bytes.slice(payloadStart, -4);
    const text = JSON.stringify(header);
    const invalidUtf8 = writeSaved(text, payload);
    invalidUtf8[20] = 0xff;
    await expectAllRefused(
      [
        ...["", "{", "null", "[]", "5", '"KVARN"', "[".repeat(20000), text.slice(0, -1), `${text} x`].map(
          (header) => writeSaved(header, payload),
        ),
        withChecksum(invalidUtf8),
        ...[0, 1, text.length - 1, text.length + 1, 2 ** 31, 2 ** 32 - 1].map((headerLength) =>
          writeSaved(text, payload, { headerLength }),
        ),
        writeSaved(text, payload.subarray(0, -2)),
        writeSaved(text, new Uint8Array(0)),
      ],
      "corrupt-data",
    );
  });

  it("with tokens or scales that are not finite", async () => {
    const { bytes } = await ready;
    const { layers } = readSaved(bytes);
    const places = layers.flatMap(({ layout, tiles, config }) =>
      tiles.flatMap(({ kind, offset, data }) => {
        if (kind === "gone") return [];
        if (kind === "exact") return [offset, offset + data.length - 2];
        const last = offset + (config.kvHeads - 1) * layout.bytes;
        return [
          layout.kScale,
          layout.kZero,
          layout.kToken,
          layout.vScale,
          layout.vToken,
          layout.vZero,
          layout.bytes - 2,
        ].map((field) => last + field);
      }),
    );
    expect(places.length).toBeGreaterThan(40);
    await expectAllRefused(
      places.flatMap((at, i) => {
        const [value] = halves([[NaN, Infinity, -Infinity][i % 3]]);
        const file = bytes.slice();
        file.set([value & 255, value >> 8], at);
        return [withChecksum(file)];
      }),
      "corrupt-data",
    );
  });

  it("that say a window let go of what it has not passed", async () => {
    const { bytes } = await ready;
    const { header, layers, payloadStart } = readSaved(bytes);
    // Tiles are left out as the header says, so that all sizes are right.
    const without = (layer: number, first: number, end: number, firstKept: number) => {
      const gone = layers[layer].tiles.slice(first, end);
      const from = gone[0].offset;
      const to = from + gone.reduce((sum, { data }) => sum + data.length, 0);
      const copy = structuredClone(header);
      copy.layers[layer].firstKept = firstKept;
      const payload = new Uint8Array([...bytes.slice(payloadStart, from), ...bytes.slice(to, -4)]);
      return writeSaved(copy, payload);
    };
    // The first layer has no window. In the other one, the query at 276 sees tokens from 187 on.
    await expectAllRefused([without(0, 1, 2, 2), without(0, 1, 4, 4), without(1, 2, 4, 4)], "corrupt-data");
    // Nor is there room for so many tiles in any list, gone or not.
    const absurd = structuredClone(header);
    Object.assign(absurd.layers[0], {
      length: 2 ** 31 - 64 + 21,
      firstKept: 2 ** 25 - 1,
      firstTail: 2 ** 25 - 1,
    });
    const { tiles } = layers[0];
    const [firstRecord, tail] = [tiles[1].offset, tiles[4].offset];
    const rest = new Uint8Array([...bytes.slice(payloadStart, firstRecord), ...bytes.slice(tail, -4)]);
    await expectAllRefused([writeSaved(absurd, rest)], "corrupt-data");
  });

  it("that want more memory than they hold tokens for", async () => {
    const { kvarn, held, heldBytes, bytes } = await ready;
    const [file] = await lies([all({ capacity: 200_000 })]);
    const restored = await kvarn.restoreCache(file).catch((error: unknown) => {
      expect(error).toMatchObject({ code: "corrupt-data" });
    });
    if (restored) {
      const { reservedBytes, totalBytes } = restored.memory();
      expect(reservedBytes).toBeLessThanOrEqual(1.25 * totalBytes);
      expectSame(await restored.serialize(), bytes);
      restored.dispose();
    }
    expect(heldBytes()).toBe(held);
  });
});
