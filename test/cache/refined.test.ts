/** `encoder: "refined"`: the same on every engine that has it, by the queries seen, in the records that all engines read. */
import { describe, expect, it } from "vitest";
import { bytesFor, type CacheConfig, type KvarnCache, openKvarn } from "../../src/index.js";
import { relativeError } from "../../src/conformance/compare.js";
import { rotate } from "../../src/reference/index.js";
import {
  appendChunks,
  evenChunks,
  expectAgrees,
  expectError,
  expectRefused,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
  namedEngines,
  randomChunks,
  readSaved,
  readStored,
  tileKinds,
  type Tokens,
  watchedEngines,
  writeSaved,
} from "../support/cache.js";
import { randomArray } from "../support/random.js";
import { degenerateTiles, extremeTiles, makeTile, regularTiles, transpose } from "../support/tiles.js";

// Variants differ in attention alone.
const engines = namedEngines.filter(
  ([, { backend }]) => backend.kind === "webgpu" || !backend.variant.endsWith("f32"),
);
const reference = await openKvarn({ backend: "reference" });
const others = engines.filter(([, { backend }]) => backend.kind !== "reference");

const shape = { queryHeads: 4, kvHeads: 2, headDim: 32 };
const config = { preset: "k2v2_g64", layers: 1, encoder: "refined", ...shape } satisfies CacheConfig;
const GROUP = 64;

/** Queries that lie near three directions, other ones by seed. */
function narrowQueries(tokens: number, seed: number): Float32Array {
  const { queryHeads, headDim } = shape;
  const directions = randomArray(3 * headDim, 77);
  const parts = randomArray(tokens * queryHeads * 3, seed);
  const q = randomArray(tokens * queryHeads * headDim, seed + 1, 0.1);
  return q.map((x, i) => {
    const row = Math.floor(i / headDim);
    return [0, 1, 2].reduce(
      (sum, d) => sum + parts[3 * row + d] * directions[d * headDim + (i % headDim)],
      x,
    );
  });
}

/** Relative error of what queries find of keys. */
function scoreError(q: Float32Array, actual: Float32Array, exact: Float32Array): number {
  const { queryHeads, kvHeads, headDim } = shape;
  const scores = (keys: Float32Array): Float64Array => {
    const tokens = keys.length / (kvHeads * headDim);
    return Float64Array.from({ length: (q.length / headDim) * tokens }, (_, i) => {
      const row = Math.floor(i / tokens);
      const head = Math.floor((row % queryHeads) / (queryHeads / kvHeads));
      const key = ((i % tokens) * kvHeads + head) * headDim;
      let sum = 0;
      for (let d = 0; d < headDim; d++) sum += q[row * headDim + d] * keys[key + d];
      return sum;
    });
  };
  return relativeError(scores(actual), scores(exact));
}

/** Attends with some queries after every chunk that is appended. */
async function decodeSteps(cache: KvarnCache, tokens: Tokens, from: number, chunk: number): Promise<void> {
  for (let at = from; at < tokens.count; at += chunk) {
    const end = Math.min(at + chunk, tokens.count);
    await cache.append(0, ...tokens.slice(at, end));
    await cache.attend(0, narrowQueries(end - at, 10 + at));
  }
}

async function savedOf(cache: KvarnCache) {
  return readSaved(await cache.serialize()).layers[0];
}

describe.each(others)("refined records of %s and the reference", (_, kvarn) => {
  it.each([
    [16, "k2v2_g64"],
    [64, "k4v2_g128"],
    [80, "k3v5_g64"],
    [128, "k2v2_g128"],
    [256, "k8v6_g64"],
  ])("hold the same to within rounding, D=%i, %s", async (headDim, preset) => {
    const heads = { kvHeads: 2, headDim };
    const { k, v } = makeTokens(heads, 256, headDim);
    const queries = randomArray(12 * 4 * headDim, 5);
    for (const options of [{}, { queries, queryHeads: 4 }, { iterations: 0 }]) {
      const decoded = await Promise.all(
        [reference, kvarn].map(async (kvarn) => {
          const records = await kvarn.encode(k, v, { preset, ...heads, encoder: "refined", ...options });
          return reference.decode(records, { preset, ...heads });
        }),
      );
      for (const side of ["k", "v"] as const) {
        const errors = decoded.map((rows) => relativeError(rows[side], side === "k" ? k : v));
        expect(Math.abs(errors[1] / errors[0] - 1)).toBeLessThan(0.01);
      }
    }
  });

  it("hold the same of short tokens among long ones, each by itself", async () => {
    const [headDim, preset] = [64, "k4v4_g128"];
    const v = makeTile({ rowFactor: (u) => (u < 0.3 ? 1 / 64 : 1) }, 128, headDim, 3);
    const options = { preset, kvHeads: 1, headDim };
    const [first, second] = await Promise.all(
      [reference, kvarn].map(async (kvarn) => {
        const records = await kvarn.encode(v, v, { ...options, encoder: "refined" });
        const decoded = (await reference.decode(records, options)).v;
        return Array.from({ length: 128 }, (_, token) => {
          const row = (rows: Float32Array) => rows.subarray(token * headDim, (token + 1) * headDim);
          return relativeError(row(decoded), row(v));
        });
      }),
    );
    // No token pays for others with more than a part of the error that it has in any case.
    expect(Math.max(...first)).toBeLessThan(0.2);
    const sum = (errors: number[]) => errors.reduce((total, error) => total + error, 0);
    expect(Math.abs(sum(second) / sum(first) - 1)).toBeLessThan(0.01);
  });

  const recipes = Object.entries({ ...regularTiles, ...extremeTiles, ...degenerateTiles });
  it.each(recipes)("hold the same of a tile of %s", async (_, recipe) => {
    const [headDim, preset] = [64, "k3v3_g64"];
    const k = rotate(transpose(makeTile(recipe, headDim, GROUP, 1), headDim, GROUP), headDim);
    const v = rotate(makeTile(recipe, GROUP, headDim, 2), headDim);
    const options = { preset, kvHeads: 1, headDim };
    const errors = await Promise.all(
      [reference, kvarn].map(async (kvarn) => {
        const records = await kvarn.encode(k, v, { ...options, encoder: "refined", queries: v });
        const decoded = await reference.decode(records, options);
        expect([...decoded.k, ...decoded.v].every(Number.isFinite)).toBe(true);
        return [relativeError(decoded.k, k), relativeError(decoded.v, v)];
      }),
    );
    for (const side of [0, 1]) {
      expect(errors[1][side]).toBeLessThanOrEqual(1.05 * errors[0][side] + 1e-6);
      expect(errors[0][side]).toBeLessThanOrEqual(1.05 * errors[1][side] + 1e-6);
    }
  });
});

describe.each(engines)("encoder: refined, %s", (_, kvarn) => {
  it("gives the same bytes again, at once and token by token", async () => {
    const tokens = makeTokens(shape, 300);
    const { preset, kvHeads, headDim } = config;
    const once = await filledCache(kvarn, config, tokens);
    const often = await filledCache(kvarn, config, tokens, randomChunks(300, 50, 3));
    await Promise.all([once.flush(), often.flush()]);
    const records = await once.exportRecords(0);
    expectSame(await often.exportRecords(0), records);
    const encode = () =>
      kvarn.encode(...tokens.slice(GROUP, 4 * GROUP), { preset, kvHeads, headDim, encoder: "refined" });
    expectSame(await encode(), records);
    expectSame(await encode(), records);
    const strict = await kvarn.encode(...tokens.slice(GROUP, 4 * GROUP), { preset, kvHeads, headDim });
    expect(Buffer.compare(strict, records)).not.toBe(0);
  });

  it("encodes by the queries of attend, so that such queries find keys several times as exactly", async () => {
    const tokens = makeTokens(shape, 10 * GROUP);
    const error = async (options: Partial<CacheConfig>, attends: boolean) => {
      const cache = kvarn.createCache({ ...config, ...options });
      if (attends) await decodeSteps(cache, tokens, 0, GROUP);
      else await appendChunks(cache, tokens, evenChunks(tokens.count, GROUP));
      await cache.flush();
      const { k } = await cache.read(0);
      return scoreError(narrowQueries(8, 5000), k, tokens.k);
    };
    const strict = await error({ encoder: "strict" }, true);
    expect(await error({}, false)).toBeLessThan(0.9 * strict);
    expect(await error({}, true)).toBeLessThan(0.5 * strict);
  });

  it("encodes by queries given, as a cache does that has seen them", async () => {
    const tokens = makeTokens(shape, 2 * GROUP);
    const q = narrowQueries(2 * GROUP, 1);
    const cache = await filledCache(kvarn, config, tokens);
    await cache.attend(0, q);
    await cache.flush();
    const { preset, kvHeads, headDim } = config;
    const options = { preset, kvHeads, headDim, encoder: "refined", queries: q, queryHeads: 4 } as const;
    expectSame(await kvarn.encode(...tokens.slice(GROUP, 2 * GROUP), options), await cache.exportRecords(0));
    const inHalf = { ...options, queries: new Uint16Array(q.length).fill(0x3c00) };
    await kvarn.encode(...tokens.slice(GROUP, 2 * GROUP), inHalf);
  });

  it("attends to what its records hold, outlier tokens among them", async () => {
    // No GPU keeps them.
    const outlierTokens = kvarn.backend.kind === "webgpu" ? 0 : 2;
    const cache = kvarn.createCache({ ...config, layers: 3, outlierTokens });
    const tokens = makeTokens(shape, 5 * GROUP);
    await appendChunks(cache, tokens, evenChunks(tokens.count, GROUP), { layer: 2 });
    await cache.attend(2, makeQueries(shape, 3));
    await cache.flush();
    if (outlierTokens > 0) expect(cache.memory().outlierBytes).toBeGreaterThan(0);
    await expectAgrees(kvarn, cache, await readStored(cache, 2), makeQueries(shape, 4), 2);
  });

  it("keeps what it knows of queries through cuts, forks and saving, and counts it", async () => {
    const tokens = makeTokens(shape, 8 * GROUP);
    const cache = kvarn.createCache(config);
    expect(cache.memory().queryBytes).toBe(0);
    expect((await savedOf(cache)).moments).toHaveLength(0);
    await decodeSteps(cache, tokens.of(4 * GROUP), 0, 32);
    const bytes = 2 * 32 * 32 * 4;
    expect(cache.memory().queryBytes).toBe(bytes);
    expect(bytesFor(config, 4 * GROUP).queryBytes).toBe(bytes);
    expect(bytesFor({ ...config, encoder: "strict" }, 4 * GROUP).queryBytes).toBe(0);

    const { moments } = await savedOf(cache);
    // Queries count as of length 1: of each KV head the diagonal adds up to how many there were.
    const diagonal = Array.from({ length: 32 }, (_, i) => moments[i * 32 - (i * (i - 1)) / 2]);
    expect(diagonal.reduce((sum, x) => sum + x, 0)).toBeCloseTo(4 * GROUP * 2, 0);

    const fork = cache.fork();
    const restored = await kvarn.restoreCache(await cache.serialize());
    await fork.attend(0, makeQueries(shape, 1));
    expect(
      Buffer.compare(Buffer.from((await savedOf(fork)).moments.buffer), Buffer.from(moments.buffer)),
    ).not.toBe(0);
    expectSame((await savedOf(cache)).moments, moments);

    await Promise.all([cache, restored].map((one) => decodeSteps(one, tokens, 4 * GROUP, 32)));
    await Promise.all([cache.flush(), restored.flush()]);
    expectSame(await restored.exportRecords(0), await cache.exportRecords(0));

    const before = (await savedOf(cache)).moments;
    cache.truncate(3 * GROUP);
    expectSame((await savedOf(cache)).moments, before);
    cache.clear();
    expectSame((await savedOf(cache)).moments, before);
    expect(cache.memory()).toMatchObject({ totalBytes: bytes, queryBytes: bytes });
  });

  it("moves to another engine that refines, and goes on there", async () => {
    const tokens = makeTokens(shape, 6 * GROUP);
    for (const [, other] of engines) {
      const cache = kvarn.createCache(config);
      await decodeSteps(cache, tokens.of(3 * GROUP), 0, GROUP);
      const { moments } = await savedOf(cache);
      const moved = await kvarn.migrate(cache, other);
      expectSame((await savedOf(moved)).moments, moments);
      await decodeSteps(moved, tokens, 3 * GROUP, GROUP);
      expect(await tileKinds(moved)).toBe("exact record record record record exact");
      moved.dispose();
    }
  });

  it("takes in queries that their answer overwrites, and very small ones", async () => {
    const tokens = makeTokens(shape, 2 * GROUP);
    const q = makeQueries(shape, 5);
    // GPUs may take numbers below 2^-126 for zeros. Two of the rows are zeros.
    const smallest = kvarn.backend.kind === "webgpu" ? 1e-35 : 1e-44;
    const tiny = new Float32Array(4 * 32);
    tiny[3] = smallest;
    tiny.fill(-smallest, 32, 64);
    const caches = await Promise.all([1, 2].map(() => filledCache(kvarn, config, tokens)));
    const inPlace = q.slice();
    await caches[0].attend(0, q);
    await caches[1].attend(0, inPlace, { out: inPlace });
    expectSame((await savedOf(caches[1])).moments, (await savedOf(caches[0])).moments);
    for (const cache of caches) {
      await cache.attend(0, tiny);
      const restored = await kvarn.restoreCache(await cache.serialize());
      const { moments } = await savedOf(restored);
      const diagonal = Array.from({ length: 32 }, (_, i) => moments[i * 32 - (i * (i - 1)) / 2]);
      expect(diagonal.reduce((sum, x) => sum + x, 0)).toBeCloseTo(5 * 2 + 2, 3);
    }
  });

  it("refuses what it cannot take, and stays as it was", async () => {
    const cache = kvarn.createCache(config);
    await decodeSteps(cache, makeTokens(shape, 2 * GROUP), 0, GROUP);
    const bad = makeQueries(shape, 1);
    bad[5] = NaN;
    await expectRefused(cache, () => cache.attend(0, bad), "non-finite");
    const encoder = "best" as "refined";
    await expectError(() => kvarn.createCache({ ...config, encoder }), "invalid-argument", /encoder must be/);

    const tokens = makeTokens(shape, GROUP);
    const options = { preset: "k2v2_g64", kvHeads: 2, headDim: 32, encoder: "refined" } as const;
    const encode = (more: object) => kvarn.encode(tokens.k, tokens.v, { ...options, ...more });
    await expectError(() => encode({ encoder }), "invalid-argument", /encoder must be/);
    await expectError(() => encode({ encoder: "strict", queries: bad }), "invalid-argument", /refined/);
    await expectError(
      () => encode({ queries: bad, queryHeads: 3 }),
      "invalid-argument",
      /multiple of kvHeads/,
    );
    await expectError(
      () => encode({ queries: new Float32Array(96) }),
      "invalid-shape",
      /whole tokens of 2 heads/,
    );
    await expectError(
      () => encode({ queries: bad, queryHeads: 4 }),
      "non-finite",
      /token 0, head 0, channel 5/,
    );
    const large = new Float32Array(128).fill(1e30);
    await expectError(() => encode({ queries: large, queryHeads: 4 }), "non-finite", /queries is 1.*up to 1/);
  });

  it("refuses saved bytes whose moments cannot be", async () => {
    const cache = kvarn.createCache(config);
    await decodeSteps(cache, makeTokens(shape, 2 * GROUP), 0, GROUP);
    const bytes = await cache.serialize();
    const { header, payloadStart } = readSaved(bytes);
    const payload = bytes.slice(payloadStart, -4);
    const restore = (changed: object, data = payload, version = 3) =>
      kvarn.restoreCache(writeSaved({ ...header, ...changed }, data, { version }));
    await restore({});
    const strict = { ...header, encoder: undefined };
    await expectError(() => restore(strict, payload, 1), "corrupt-data", /moments is true/);
    await expectError(() => restore({}, payload, 1), "corrupt-data", /version 1, encoder "refined"/);
    await expectError(() => restore({}, payload.slice(0, -4)), "corrupt-data", /fewer bytes/);
    const infinite = payload.slice();
    infinite.fill(0xff, -4);
    await expectError(() => restore({}, infinite), "corrupt-data", /NaN or infinite moments/);
  });

  it("takes moments that no queries add up to for none", async () => {
    const cache = kvarn.createCache(config);
    const tokens = makeTokens(shape, 2 * GROUP);
    await decodeSteps(cache, tokens.of(GROUP), 0, GROUP);
    const bytes = await cache.serialize();
    const { header, payloadStart } = readSaved(bytes);
    const payload = bytes.slice(payloadStart, -4);
    for (const least of [1, 1e-42]) {
      const triangle = new Float32Array(32 * 33).fill(-3);
      for (let head = 0; head < 2; head++) {
        for (let i = 0; i < 32; i++) triangle[head * 16 * 33 + i * 32 - (i * (i - 1)) / 2] = least;
      }
      const forged = payload.slice();
      forged.set(new Uint8Array(triangle.buffer), payload.length - triangle.byteLength);
      const restored = await kvarn.restoreCache(writeSaved(header, forged, { version: 3 }));
      await restored.append(0, ...tokens.slice(GROUP, 2 * GROUP));
      await restored.flush();
      const { preset, kvHeads, headDim, encoder } = config;
      const options = { preset, kvHeads, headDim, encoder } as const;
      expectSame(
        await restored.exportRecords(0),
        await kvarn.encode(...tokens.slice(GROUP, 2 * GROUP), options),
      );
    }
  });
});

it.each(watchedEngines)("%s frees what it knew of queries", async (_, open) => {
  const { kvarn, heldBytes } = await open();
  const work = async () => {
    const cache = kvarn.createCache(config);
    await decodeSteps(cache, makeTokens(shape, 3 * GROUP), 0, GROUP);
    const fork = cache.fork();
    await fork.attend(0, makeQueries(shape, 1));
    cache.dispose();
    fork.dispose();
  };
  await work();
  const held = heldBytes();
  for (let i = 0; i < 20; i++) await work();
  expect(heldBytes()).toBe(held);
  kvarn.dispose();
});
