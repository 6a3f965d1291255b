/** The kernels of the refined encoder by themselves. */
import { afterAll, describe, expect, it } from "vitest";
import { openKvarn } from "../../src/index.js";
import type { RecordLayout } from "../../src/format.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { refineRecord } from "../../src/reference/record.js";
import { addQuery } from "../../src/reference/refine.js";
import { rotate } from "../../src/reference/rotate.js";
import { encode } from "../../src/webgpu/encode.js";
import { Gpu } from "../../src/webgpu/gpu.js";
import type { GpuBlock } from "../../src/webgpu/pool.js";
import { addQueries, factorQueries } from "../../src/webgpu/queries.js";
import { relativeError } from "../../src/conformance/compare.js";
import { decodePlainly } from "../../src/conformance/record.js";
import { expectSame, halves } from "../support/cache.js";
import { hasGpu, sharedDevice } from "../support/engines.js";
import { bufferOf, exactBits, layoutFor, makeInput, runOn } from "../support/gpu.js";
import { randomArray } from "../support/random.js";
import { regularTiles } from "../support/tiles.js";

let gpu: Gpu;
if (hasGpu) gpu = new Gpu(sharedDevice());
afterAll(() => {
  if (hasGpu) gpu.dispose();
});

/** What moments have before queries are added; small, so that sums lose no digits. */
const BEFORE = 2 ** -12;

const ANY = { layout: layoutFor(64, 64, 4, 2), encoder: "refined", iterations: 8 } as const;

/** Moments as a block has them, behind 16 bytes of something else. */
function momentsIn(data: Float32Array): GpuBlock {
  const all = new Float32Array(data.length + 4).fill(7);
  all.set(data, 4);
  return { buffer: bufferOf(gpu, all), offset: 16 } as GpuBlock;
}

/** Of each KV head, the moments of some queries, as the reference has them. */
function momentsOf(q: Float32Array, heads: { kvHeads: number; queryHeads: number; headDim: number }) {
  const { kvHeads, queryHeads, headDim } = heads;
  const size = headDim * headDim;
  const moments = new Float32Array(kvHeads * size);
  const rows = rotate(q, headDim);
  for (let row = 0; row < q.length / headDim; row++) {
    const head = Math.floor((row % queryHeads) / (queryHeads / kvHeads));
    addQuery(
      moments.subarray(head * size, (head + 1) * size),
      rows.subarray(row * headDim).slice(0, headDim),
    );
  }
  return moments;
}

/** The upper triangles of square matrices. */
function upper(x: ArrayLike<number>, n: number): number[] {
  return Array.from(x).filter((_, i) => i % n >= Math.floor(i / n) % n);
}

/** L of `H = L diagonal(d) L^T`, below its diagonal. */
function factorPlainly(moment: Float32Array, n: number): Float64Array {
  let trace = 0;
  for (let i = 0; i < n; i++) trace += moment[i * n + i];
  const h = Float64Array.from(moment, (x, i) => (10 * n * x) / trace + Number(i % (n + 1) === 0));
  const [factor, d] = [new Float64Array(n * n), new Float64Array(n)];
  for (let later = 0; later < n; later++) {
    for (let i = 0; i <= later; i++) {
      let rest = h[i * n + later];
      for (let k = 0; k < i; k++) rest -= factor[later * n + k] * d[k] * factor[i * n + k];
      if (i === later) d[i] = rest;
      else factor[later * n + i] = rest / d[i];
    }
  }
  return factor;
}

async function factorOnGpu(moments: Float32Array, kvHeads: number, headDim: number): Promise<Float32Array> {
  const block = momentsIn(moments);
  const data = await runOn(gpu, () => {
    const { buffer } = factorQueries(gpu, { kvHeads, headDim, ...ANY }, block);
    return gpu.read(buffer, 0, moments.byteLength);
  });
  block.buffer.destroy();
  return new Float32Array(data.buffer);
}

interface Setting {
  readonly layout: RecordLayout;
  readonly kvHeads: number;
  readonly iterations: number;
  readonly moments?: Float32Array;
  readonly partBytes?: number;
}

/** Records of tiles, K and V `[tiles * group, kvHeads, headDim]`, rotated. */
async function refineTiles(k: Float32Array, v: Float32Array, setting: Setting): Promise<Uint8Array> {
  const { layout, kvHeads, iterations, moments, partBytes } = setting;
  const { headDim, group, bytes } = layout;
  const width = kvHeads * headDim;
  const count = k.length / (group * width);
  const exact = bufferOf(gpu, exactBits(k, v, width));
  const records = bufferOf(gpu, new Uint8Array(count * kvHeads * bytes).fill(0xa5));
  const block = moments && momentsIn(moments);
  const tiles = Array.from({ length: count }, (_, i) => {
    return { exact: i * group * width * 4, record: i * kvHeads * bytes };
  });
  const shape = { kvHeads, headDim, layout, iterations, encoder: "refined" } as const;
  const result = await runOn(gpu, () => {
    const factors = block && factorQueries(gpu, shape, block);
    encode(gpu, shape, exact, records, tiles, factors, partBytes);
    return gpu.read(records, 0, records.size);
  });
  [exact, records, block?.buffer].forEach((buffer) => buffer?.destroy());
  return result;
}

/** Errors of a record, `[group, headDim]` as K and V are. */
function errorsOf(record: Uint8Array, layout: RecordLayout, k: Float32Array, v: Float32Array) {
  const { headDim, group } = layout;
  const decoded = decodePlainly(record, layout);
  const [ofK, ofV] = [decoded.k.map((x, i) => x - k[i]), decoded.v.map((x, i) => x - v[i])];
  return {
    k: () => ofK,
    v: () => ofV,
    /** What queries of these moments see of K's. */
    scores: (moments = new Float32Array(headDim ** 2)) => {
      return Float64Array.from({ length: group }, (_, token) => {
        const e = ofK.subarray(token * headDim, (token + 1) * headDim);
        let sum = 0;
        for (let i = 0; i < headDim; i++) {
          for (let j = i; j < headDim; j++) sum += (i === j ? 1 : 2) * e[i] * moments[i * headDim + j] * e[j];
        }
        return Math.sqrt(Math.max(0, sum)) + Number.EPSILON;
      });
    },
    /** V's, added up over eight tokens. */
    sums: () => {
      return ofV.map((_, i) => {
        let sum = 0;
        for (let at = i; at > i - 8 * headDim && at >= 0; at -= headDim) sum += ofV[at];
        return sum;
      });
    },
    /** What is decoded of the rows that are rounded first: the last channels of K, the first tokens of V. */
    firstOfK: decoded.k.filter((_, i) => i % headDim >= headDim - 4),
    firstOfV: decoded.v.subarray(0, 4 * headDim),
  };
}

function lengthOf(x: Float64Array): number {
  return Math.sqrt(x.reduce((sum, y) => sum + y * y, 0));
}

/** Queries that lie near a few directions. */
function narrowQueries(rows: number, headDim: number): Float32Array {
  const [parts, directions] = [randomArray(3 * rows, 8), randomArray(3 * headDim, 9)];
  return Float32Array.from({ length: rows * headDim }, (_, i) => {
    const row = Math.floor(i / headDim);
    return [0, 1, 2].reduce(
      (sum, d) => sum + parts[3 * row + d] * directions[d * headDim + (i % headDim)],
      0,
    );
  });
}

describe.skipIf(!hasGpu)("queries on the GPU", () => {
  it.each([
    [16, 1, 1, 1],
    [80, 2, 6, 3],
    [128, 2, 8, 5],
    [512, 1, 2, 2],
    // More rows than one dispatch goes through.
    [16, 1, 3, 1500],
  ])(
    "are added as by the reference, D=%i, %i of %i heads, %i tokens",
    async (headDim, kvHeads, queryHeads, tokens) => {
      const q = randomArray(tokens * queryHeads * headDim, headDim);
      const expected = momentsOf(q, { kvHeads, queryHeads, headDim });
      // Large and small ones count alike; behind them, and before, lies something else.
      const scaled = q.map((x, i) => x * (Math.floor(i / headDim) % 2 === 0 ? 1e17 : 1e-30));
      for (const [data, tolerance] of [
        [q, 2e-6],
        [scaled, 1e-5],
        [halves(q), 1e-3],
      ] as const) {
        const half = data instanceof Uint16Array;
        const around = half
          ? Uint16Array.from([1, 1, ...data, 0x7e00, 0x7e00])
          : Float32Array.from([1, ...data, NaN]);
        const block = momentsIn(new Float32Array(expected.length).fill(BEFORE));
        const buffer = bufferOf(gpu, around);
        const found = await runOn(gpu, () => {
          const queries = { binding: { buffer }, word: 1, half, tokens, queryHeads };
          addQueries(gpu, { kvHeads, headDim, ...ANY }, queries, block);
          return gpu.read(block.buffer, 16, expected.byteLength);
        });
        const added = new Float32Array(found.buffer).map((x) => x - BEFORE);
        expect(relativeError(upper(added, headDim), upper(expected, headDim))).toBeLessThan(tolerance);
        [block.buffer, buffer].forEach((one) => one.destroy());
      }
    },
  );

  it("do not count where they are zeros, or not finite", async () => {
    const [headDim, queryHeads] = [64, 5];
    const q = randomArray(queryHeads * headDim, 3);
    const expected = momentsOf(q.slice(0, headDim), { kvHeads: 1, queryHeads: 1, headDim });
    q.fill(0, headDim, 2 * headDim);
    [q[130], q[200], q[300]] = [NaN, Infinity, -Infinity];
    const block = momentsIn(new Float32Array(headDim * headDim));
    const buffer = bufferOf(gpu, q as Float32Array<ArrayBuffer>);
    const found = await runOn(gpu, () => {
      const queries = { binding: { buffer }, word: 0, half: false, tokens: 1, queryHeads };
      addQueries(gpu, { kvHeads: 1, headDim, ...ANY }, queries, block);
      return gpu.read(block.buffer, 16, expected.byteLength);
    });
    expect(
      relativeError(upper(new Float32Array(found.buffer), headDim), upper(expected, headDim)),
    ).toBeLessThan(1e-6);
  });

  it.each([16, 48, 80, 128, 256, 512])("become factors, D=%i", async (headDim) => {
    const kvHeads = 2;
    const size = headDim * headDim;
    const heads = { kvHeads, queryHeads: 4, headDim };
    const moments = momentsOf(narrowQueries(4 * 40, headDim), heads);
    // The lower triangle is nobody's.
    const given = moments.map((x, i) => (i % headDim < Math.floor((i % size) / headDim) ? 1e9 : x));
    const found = await factorOnGpu(given, kvHeads, headDim);
    for (let head = 0; head < kvHeads; head++) {
      const part = [head * size, (head + 1) * size] as const;
      const expected = factorPlainly(moments.subarray(...part), headDim);
      expect(relativeError(found.subarray(...part), expected)).toBeLessThan(1e-4);
      expected.forEach((x, i) => {
        if (x === 0) expect(found[head * size + i]).toBe(0);
      });
    }
  });

  it("become zeros where they are of no queries", async () => {
    const headDim = 32;
    const heads = { kvHeads: 1, queryHeads: 4, headDim };
    const real = momentsOf(narrowQueries(40, headDim), heads);
    const negative = real.map((x, i) => (i === 5 * headDim + 5 ? -x : x));
    const huge = real.map((x, i) => (i === 5 * headDim + 9 ? 3e38 : x));
    const notNumbers = real.map((x, i) => (i === 7 * headDim + 7 ? NaN : x));
    const none = [new Float32Array(headDim * headDim), negative, huge, notNumbers];
    for (const moments of none) {
      expectSame(await factorOnGpu(moments, 1, headDim), new Float32Array(headDim * headDim));
    }
    expect((await factorOnGpu(real, 1, headDim)).some((x) => x !== 0)).toBe(true);
  });
});

it.skipIf(!hasGpu)("queries to encode by may be more than are uploaded at a time", async () => {
  const kvarn = await openKvarn({ device: sharedDevice() });
  const [headDim, length] = [16, 64 * 16];
  const [k, v, some] = [randomArray(length, 1), randomArray(length, 2), narrowQueries(40, headDim)];
  const encode = (queries: Float32Array) =>
    kvarn.encode(k, v, { preset: "k2v2_g64", kvHeads: 1, headDim, encoder: "refined", queries });
  // Zeros do not count, and fill the first upload.
  const many = new Float32Array((1 << 22) + some.length);
  many.set(some, 1 << 22);
  const expected = await encode(some);
  expectSame(await encode(many), expected);
  expect(Buffer.compare(await encode(new Float32Array(headDim)), expected)).not.toBe(0);
  kvarn.dispose();
});

describe.skipIf(!hasGpu)("refine on the GPU", () => {
  it.each([
    [16, 64, 2, 5],
    [48, 64, 3, 6],
    [64, 128, 2, 2],
    [80, 64, 8, 3],
    [112, 128, 4, 8],
    [128, 128, 4, 2],
    [256, 64, 5, 2],
    [512, 128, 2, 3],
  ])("rounds as the reference does, D=%i, G=%i, k%iv%i", async (headDim, group, keyBits, valueBits) => {
    const layout = layoutFor(headDim, group, keyBits, valueBits);
    const moments = momentsOf(narrowQueries(50, headDim), { kvHeads: 1, queryHeads: 1, headDim });
    const recipes = Object.entries(regularTiles).slice(0, headDim > 128 ? 2 : undefined);
    for (const [name, recipe] of recipes) {
      const [k, v] = makeInput(recipe, layout, headDim + group).map((x) => x.map((y) => fromHalf(toHalf(y))));
      for (const by of [undefined, moments]) {
        const setting = { layout, kvHeads: 1, iterations: 8, moments: by };
        const records = await refineTiles(k, v, setting);
        expectSame(await refineTiles(k, v, setting), records);
        const expected = refineRecord({ keys: k, values: v }, layout, 8, by);
        const [found, wanted] = [records, expected].map((one) => errorsOf(one, layout, k, v));
        // Once a code is rounded otherwise, so is what later rows make up for: sums of few numbers scatter.
        for (const [kind, tolerance] of [
          ["k", 0.02],
          ["v", 0.02],
          ["scores", 0.2],
          ["sums", 0.1],
        ] as const) {
          const ratio = lengthOf(found[kind](by)) / lengthOf(wanted[kind](by));
          expect(Math.abs(ratio - 1), `${name}, ${kind}`).toBeLessThan(tolerance);
        }
        // The first rows know little of that; with many bits several ranges are about as good.
        for (const [side, bits] of [
          ["firstOfK", keyBits],
          ["firstOfV", valueBits],
        ] as const) {
          if (bits > 4) continue;
          const usual = lengthOf(wanted[side]) / Math.sqrt(wanted[side].length);
          const limit = (x: number) => 1e-3 * (Math.abs(x) + usual);
          const same = found[side].filter((x, i) => Math.abs(x - wanted[side][i]) <= limit(x));
          expect(same.length / found[side].length, `${name}, ${side}`).toBeGreaterThan(0.85);
        }
      }
    }
  });

  it("takes tiles in parts, heads each by its own queries", async () => {
    const [layout, kvHeads] = [layoutFor(32, 64, 2, 3), 2];
    const length = 3 * 64 * kvHeads * 32;
    const [k, v] = [randomArray(length, 1), randomArray(length, 2)];
    const moments = momentsOf(narrowQueries(40, 32), { kvHeads, queryHeads: kvHeads, headDim: 32 });
    const setting = { layout, kvHeads, iterations: 4, moments };
    const once = await refineTiles(k, v, setting);
    // Of two tiles, and of one.
    for (const partBytes of [2 * kvHeads * 64 * 32 * 4, 1]) {
      expectSame(await refineTiles(k, v, { ...setting, partBytes }), once);
    }
    const swapped = Float32Array.from([...moments.slice(1024), ...moments.slice(0, 1024)]);
    const others = await refineTiles(k, v, { ...setting, moments: swapped });
    expect(Buffer.compare(others, once)).not.toBe(0);
  });
});
