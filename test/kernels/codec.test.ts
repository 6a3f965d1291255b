import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import {
  type Float16ArrayLike,
  type Kvarn,
  openKvarn,
  parsePreset,
  type RecordLayout,
  recordLayout,
} from "../../src/index.js";
import { BIT_WIDTHS, findBadScale, GROUPS } from "../../src/format.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { rotate } from "../../src/reference/index.js";
import { compareRecords, expectConforms, relativeError } from "../../src/conformance/compare.js";
import { decodePlainly } from "../../src/conformance/record.js";
import { expectSame, halves } from "../support/cache.js";
import { randomArray, randomIntegers } from "../support/random.js";
import {
  degenerateTiles,
  extremeTiles,
  makeTile,
  type Recipe,
  regularTiles,
  runs,
  transpose,
} from "../support/tiles.js";

const reference = await openKvarn({ backend: "reference" });
const wasm = await openKvarn({ backend: "wasm", variant: "strict" });
afterAll(() => [reference, wasm].forEach((engine) => engine.dispose()));
const engines = [
  ["reference", reference],
  ["wasm", wasm],
] as const;

const HEAD_DIMS = [16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 512];

const shapeCase = fc.record({
  seed: fc.nat(1e6),
  headDim: fc.constantFrom(...HEAD_DIMS),
  group: fc.constantFrom(...GROUPS),
  keyBits: fc.constantFrom(...BIT_WIDTHS),
  valueBits: fc.constantFrom(...BIT_WIDTHS),
  iterations: fc.constantFrom<number>(1, 8, 16),
});
type ShapeCase = typeof shapeCase extends fc.Arbitrary<infer T> ? T : never;

/** One tile of K and V which, rotated, are tiles of a recipe, and how to encode them. */
function makeInput(recipe: Recipe, { seed, headDim, group, keyBits, valueBits, iterations }: ShapeCase) {
  const keys = transpose(makeTile(recipe, headDim, group, seed), headDim, group);
  const values = makeTile(recipe, group, headDim, seed + 1);
  const preset = `k${keyBits}v${valueBits}_g${group}`;
  return {
    k: rotate(keys, headDim),
    v: rotate(values, headDim),
    options: { preset, kvHeads: 1, headDim, iterations },
    layout: recordLayout(parsePreset(preset), headDim),
  };
}

/** Binary16 scales of a record, signs of zeros dropped. */
function scalesOf(record: Uint8Array, layout: RecordLayout): number[] {
  const view = new DataView(record.buffer, record.byteOffset);
  const read = (from: number, to: number) =>
    Array.from({ length: (to - from) / 2 }, (_, i) => fromHalf(view.getUint16(from + 2 * i, true)) + 0);
  return [...read(layout.kScale, layout.vCodes), ...read(layout.vScale, layout.bytes)];
}

describe.each(Object.entries(regularTiles))("encode, %s", (_, recipe) => {
  it("conforms to the reference on wasm, and gives the same bytes again", () =>
    fc.assert(
      fc.asyncProperty(shapeCase, async (shape) => {
        const { k, v, options, layout } = makeInput(recipe, shape);
        const records = await wasm.encode(k, v, options);
        expectConforms(records, await reference.encode(k, v, options), layout, "wasm");
        expectSame(await wasm.encode(k, v, options), records);
      }),
      runs(6),
    ));
});

describe.each(Object.entries(extremeTiles))("encode, %s", (_, recipe) => {
  it("finds the scales of the reference on wasm, and codes next to its codes", () =>
    fc.assert(
      fc.asyncProperty(shapeCase, async (shape) => {
        const { k, v, options, layout } = makeInput(recipe, shape);
        const records = await wasm.encode(k, v, options);
        const difference = compareRecords(records, await reference.encode(k, v, options), layout);
        expect(difference.worstScaleError).toBeLessThanOrEqual(1);
        expect(difference.maxCodeDifference).toBeLessThanOrEqual(1);
        expect(difference.codesDiffering / difference.codes).toBeLessThan(0.02);
      }),
      runs(6),
    ));
});

/**
 * Error that three scales may add by their rounding to binary16. Below it, of two choices of scales either may be the
 * better one.
 */
const SCALE_ROUNDING = 3 * 2 ** -11;

describe.each(Object.entries(degenerateTiles))("encode, %s", (_, recipe) => {
  it("loses as little on wasm as on the reference", () =>
    fc.assert(
      fc.asyncProperty(shapeCase, async (shape) => {
        const { k, v, options, layout } = makeInput(recipe, shape);
        const errors = async (kvarn: Kvarn) => {
          const records = await kvarn.encode(k, v, options);
          expect(findBadScale(records, layout)).toBe(-1);
          const decoded = await kvarn.decode(records, options);
          return [relativeError(decoded.k, k), relativeError(decoded.v, v)];
        };
        const expected = await errors(reference);
        (await errors(wasm)).forEach((error, i) => {
          expect(error).toBeLessThanOrEqual(Math.max(1.05 * expected[i], SCALE_ROUNDING));
        });
      }),
      runs(12),
    ));
});

describe("encode without iterations, wasm as reference", () => {
  it("makes the same records: nothing but f32 operations that the method fixes", () =>
    fc.assert(
      fc.asyncProperty(
        shapeCase,
        fc.constantFrom(...Object.values({ ...regularTiles, ...extremeTiles, ...degenerateTiles })),
        async (shape, recipe) => {
          const { k, v, options, layout } = makeInput(recipe, { ...shape, iterations: 0 });
          const actual = await wasm.encode(k, v, options);
          const expected = await reference.encode(k, v, options);
          expect(compareRecords(actual, expected, layout).codesDiffering).toBe(0);
          expectSame(scalesOf(actual, layout), scalesOf(expected, layout));
        },
      ),
      runs(60),
    ));
});

describe("encode on wasm, of f32 and of tokens that were binary16 before", () => {
  it("makes the same bytes, zeros of either sign, subnormals and all", () =>
    fc.assert(
      fc.asyncProperty(
        shapeCase,
        fc.constantFrom(...Object.values({ ...regularTiles, ...extremeTiles, ...degenerateTiles })),
        fc.constantFrom(1, -1, 1e-4, 1e-6),
        async (shape, recipe, factor) => {
          const input = makeInput(recipe, shape);
          const { options } = input;
          const most = 65504 / Math.sqrt(options.headDim);
          const [k, v] = [input.k, input.v].map((x) =>
            x.map((value) => Math.min(Math.max(value * factor, -most), most)),
          );
          const [keys, values] = [k, v].map((x) => x.map((value) => fromHalf(toHalf(value))));
          const records = await wasm.encode(keys, values, options);
          expectSame(await wasm.encode(halves(keys), halves(values), options), records);
          // What is not binary16 goes the same way, with one side of binary16 and without.
          const half = await wasm.encode(k, halves(values), options);
          expectSame(await wasm.encode(k, values, options), half);
        },
      ),
      runs(40),
    ));
});

describe("decode, wasm as reference", () => {
  it("reads any record alike", () =>
    fc.assert(
      fc.asyncProperty(shapeCase, async ({ seed, headDim, group, keyBits, valueBits }) => {
        const preset = `k${keyBits}v${valueBits}_g${group}`;
        const layout = recordLayout(parsePreset(preset), headDim);
        const pick = randomIntegers(seed);
        const records = Uint8Array.from({ length: 2 * layout.bytes }, () => pick(0, 255));
        // Scales of any sign and size, none so large that few elements make up the whole norm.
        for (let record = 0; record < 2; record++) {
          const view = new DataView(records.buffer, record * layout.bytes);
          for (const [from, to] of [
            [layout.kScale, layout.vCodes],
            [layout.vScale, layout.bytes],
          ]) {
            for (let at = from; at < to; at += 2) {
              view.setUint16(at, toHalf((pick(-1, 1) || 1) * 2 ** (pick(-280, 40) / 20)), true);
            }
          }
        }
        const options = { preset, kvHeads: 2, headDim };
        const actual = await wasm.decode(records, options);
        const expected = await reference.decode(records, options);
        expect(relativeError(actual.k, expected.k)).toBeLessThan(1e-6);
        expect(relativeError(actual.v, expected.v)).toBeLessThan(1e-6);
        expect(await wasm.decode(records, options)).toEqual(actual);

        // And as the format says, in f64, rotated.
        for (let head = 0; head < 2; head++) {
          const direct = decodePlainly(
            records.subarray(head * layout.bytes, (head + 1) * layout.bytes),
            layout,
          );
          const ofHead = (x: Float32Array) =>
            rotate(
              x.filter((_, i) => Math.floor(i / headDim) % 2 === head),
              headDim,
            );
          expect(relativeError(ofHead(actual.k), direct.k)).toBeLessThan(2e-6);
          expect(relativeError(ofHead(actual.v), direct.v)).toBeLessThan(2e-6);
        }
      }),
      runs(8),
    ));
});

describe.each(engines)("the codec on the %s backend", (_, kvarn) => {
  it.each([
    ["k4v2_g128", 256, 26_880, 32_768],
    ["k4v4_g128", 256, 35_072, 65_536],
    ["k4v2_g128", 512, 52_992, 65_536],
    ["k4v2_g128", 128, 13_824, 13_824],
    ["k4v2_g64", 256, 14_208, 16_384],
  ])("pads as vLLM does: %s, D=%i", async (preset, headDim, bytes, paddedBytes) => {
    const group = parsePreset(preset).group;
    const kvHeads = 2;
    const options = { preset, kvHeads, headDim, iterations: 1 };
    const k = randomArray(group * kvHeads * headDim, 1);
    const v = randomArray(group * kvHeads * headDim, 2);
    const plain = await kvarn.encode(k, v, options);
    const padded = await kvarn.encode(k, v, { ...options, padding: "vllm" });
    expect([plain.length, padded.length]).toEqual([kvHeads * bytes, kvHeads * paddedBytes]);
    for (let head = 0; head < kvHeads; head++) {
      const record = padded.subarray(head * paddedBytes, (head + 1) * paddedBytes);
      expectSame(record.subarray(0, bytes), plain.subarray(head * bytes, (head + 1) * bytes));
      expect(record.subarray(bytes).every((x) => x === 0)).toBe(true);
      // What lies there on the way back is nobody's business.
      record.fill(0xff, bytes);
    }
    const expected = await kvarn.decode(plain, options);
    const decoded = await kvarn.decode(padded, { ...options, padding: "vllm" });
    expectSame(decoded.k, expected.k);
    expectSame(decoded.v, expected.v);
  });

  it("puts the records of a tile's heads after one another, tiles in token order", async () => {
    const [kvHeads, headDim, tiles] = [3, 32, 2];
    const one = { preset: "k3v5_g64", kvHeads: 1, headDim, iterations: 2 };
    const { bytes } = recordLayout(parsePreset(one.preset), headDim);
    const length = tiles * 64 * kvHeads * headDim;
    const [k, v] = [randomArray(length, 1), randomArray(length, 2)];
    const records = await kvarn.encode(k, v, { ...one, kvHeads });
    const decoded = await kvarn.decode(records, { ...one, kvHeads });
    expect(records.length).toBe(tiles * kvHeads * bytes);
    for (let tile = 0; tile < tiles; tile++) {
      for (let head = 0; head < kvHeads; head++) {
        const isOwn = (_: number, i: number) => {
          const row = Math.floor(i / headDim);
          return row % kvHeads === head && Math.floor(row / kvHeads / 64) === tile;
        };
        const record = await kvarn.encode(k.filter(isOwn), v.filter(isOwn), one);
        const at = (tile * kvHeads + head) * bytes;
        expectSame(records.subarray(at, at + bytes), record);
        const alone = await kvarn.decode(record, one);
        expectSame(decoded.k.filter(isOwn), alone.k);
        expectSame(decoded.v.filter(isOwn), alone.v);
      }
    }
  });

  it("makes the same records of binary16, in any of its forms", async () => {
    const options = { preset: "k4v2_g64", kvHeads: 2, headDim: 48, iterations: 8 };
    const [k, v] = [randomArray(64 * 96, 3), randomArray(64 * 96, 4)];
    const records = await kvarn.encode(k, v, options);
    expectSame(await kvarn.encode(halves(k), halves(v), options), records);
    expectSame(await kvarn.encode(k, halves(v), options), records);
    expectSame(await kvarn.encode(float16Array(k), float16Array(v), options), records);
  });

  it("leaves its input alone, and writes to out and nothing beyond", async () => {
    const options = { preset: "k6v3_g64", kvHeads: 1, headDim: 16, iterations: 2 };
    const [k, v] = [randomArray(128 * 16, 5), randomArray(128 * 16, 6)];
    const before = [k.slice(), v.slice()];
    const expected = await kvarn.encode(k, v, options);
    const large = new Uint8Array(expected.length + 500).fill(0xa5);
    const out = large.subarray(251, 251 + expected.length);
    expect(await kvarn.encode(k, v, { ...options, out })).toBe(out);
    expectSame(out, expected);
    expect([...large.subarray(0, 251), ...large.subarray(251 + out.length)].every((x) => x === 0xa5)).toBe(
      true,
    );
    expectSame(k, before[0]);
    expectSame(v, before[1]);

    const decoded = await kvarn.decode(out, options);
    const floats = new Float32Array(5000).fill(-7);
    const target = { k: floats.subarray(100, 100 + k.length), v: floats.subarray(2500, 2500 + v.length) };
    const returned = await kvarn.decode(out, { ...options, out: target });
    expect([returned.k, returned.v]).toEqual([decoded.k, decoded.v]);
    expect(returned.k.buffer).toBe(floats.buffer);
    expect(returned.v.buffer).toBe(floats.buffer);
    expect(floats.filter((x) => x === -7).length).toBe(5000 - k.length - v.length);
    expectSame(out, expected);
  });

  it("does calls at once as one after another", async () => {
    const inputs = [1, 2, 3, 4].map((seed) => {
      const headDim = 16 * seed;
      const length = 2 * 64 * headDim;
      const options = { preset: `k${seed === 1 ? 8 : seed}v2_g64`, kvHeads: 1, headDim, iterations: seed };
      return [randomArray(length, seed), randomArray(length, seed + 10), options] as const;
    });
    const expected: Uint8Array[] = [];
    for (const [k, v, options] of inputs) expected.push(await kvarn.encode(k, v, options));
    const together = await Promise.all(inputs.map(([k, v, options]) => kvarn.encode(k, v, options)));
    expect(together).toEqual(expected);
    const decodings = inputs.map(([, , options], i) => kvarn.decode(expected[i], options));
    const decoded = await Promise.all(decodings);
    for (const [i, [, , options]] of inputs.entries()) {
      expect(decoded[i]).toEqual(await kvarn.decode(expected[i], options));
    }
  });

  it("takes the default preset and 8 iterations", async () => {
    const shape = { kvHeads: 1, headDim: 16 };
    const [k, v] = [randomArray(128 * 16, 7), randomArray(128 * 16, 8)];
    const records = await kvarn.encode(k, v, shape);
    expectSame(records, await kvarn.encode(k, v, { ...shape, preset: "k4v2_g128", iterations: 8 }));
    expect(await kvarn.decode(records, shape)).toEqual(
      await kvarn.decode(records, { ...shape, preset: "k4v2_g128" }),
    );
  });

  it.each([16, 64, 80, 128, 512])(
    "stores the largest tokens there are with finite scales, D=%i",
    async (headDim) => {
      // Rotated, the first channel of each block spreads evenly over it: a token of the largest binary16 in all
      // channels. It has no spread, so its scale is the least there is, and a zero point over it is beyond binary16.
      const options = { preset: "k4v2_g64", kvHeads: 1, headDim, iterations: 8 };
      const layout = recordLayout(parsePreset(options.preset), headDim);
      const largest = 65504 * (headDim === 80 ? 4 : Math.sqrt(headDim));
      const block = headDim & -headDim;
      for (const value of [largest, -largest]) {
        // In the first token only, and in all of them.
        for (const tokens of [1, 64]) {
          const x = randomArray(64 * headDim, headDim);
          x.forEach((_, i) => {
            if (i < tokens * headDim) x[i] = i % block === 0 ? value : 0;
          });
          const records = await kvarn.encode(x, x, options);
          expect(findBadScale(records, layout)).toBe(-1);
          const { k, v } = await kvarn.decode(records, options);
          expect([...k, ...v].every(Number.isFinite)).toBe(true);
        }
      }
    },
  );

  it("moves a factor to the tokens' scales where zero points exceed binary16", async () => {
    // Token 0 is -65504 in all rotated channels: no spread, least scale. So the zero point of each channel of K would be
    // -65504 / e^-0.3; halved, it fits.
    const headDim = 64;
    const options = { preset: "k4v2_g64", kvHeads: 1, headDim, iterations: 8 };
    const layout = recordLayout(parsePreset(options.preset), headDim);
    const k = randomArray(64 * headDim, 1, 100);
    k.fill(0, 0, headDim);
    k[0] = -65504 * 8;
    const records = await kvarn.encode(k, randomArray(64 * headDim, 2), options);
    const view = new DataView(records.buffer);
    const zeros = Array.from({ length: headDim }, (_, i) =>
      fromHalf(view.getUint16(layout.kZero + 2 * i, true)),
    );
    const tokenScale = fromHalf(view.getUint16(layout.kToken, true));
    expect(tokenScale).toBeCloseTo(2 * Math.exp(-0.3), 3);
    for (const zero of zeros) expect(Math.abs((zero * tokenScale) / -65504 - 1)).toBeLessThan(2 ** -9);
  });
});

/** A `Float16Array`, or where there is none, a view that passes for one: its elements are not read by index. */
function float16Array(values: Float32Array): Float16ArrayLike {
  const { buffer } = halves(values);
  const { Float16Array: Native } = globalThis as {
    Float16Array?: new (buffer: ArrayBufferLike) => Float16ArrayLike;
  };
  if (Native) return new Native(buffer);
  return Object.defineProperties(new DataView(buffer as ArrayBuffer), {
    length: { value: values.length },
    [Symbol.toStringTag]: { value: "Float16Array" },
  }) as unknown as Float16ArrayLike;
}
