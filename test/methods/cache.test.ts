/** The simulated cache: what it compresses when, what attention over it gives, and what it says it takes. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openKvarn } from "../../src/index.js";
import { relativeError } from "../../src/conformance/compare.js";
import {
  compose,
  createMethod,
  f16,
  halfPrecision,
  kivi,
  kvarn,
  kvarnOtt,
  type Method,
  METHOD_NAMES,
  MethodCache,
  type MethodCacheConfig,
  ott,
  type Quantizer,
  squat,
} from "../../src/methods/index.js";
import { randomArray, randomIntegers } from "../support/random.js";
import { runs } from "../support/tiles.js";

const D = 32;
const SHAPE: MethodCacheConfig = { layers: 1, queryHeads: 4, kvHeads: 2, headDim: D };
const WIDTH = 2 * D;

/** What a decoder wants of attention. */
interface Attention {
  append(layer: number, k: Float32Array, v: Float32Array, tokens: number): void | Promise<void>;
  attend(layer: number, q: Float32Array, tokens: number): Float32Array | Promise<Float32Array>;
}

const keys = randomArray(700 * WIDTH, 1);
const values = randomArray(700 * WIDTH, 2);
const queries = randomArray(700 * 4 * D, 3);
const rows = (data: Float32Array, from: number, to: number, width = WIDTH): Float32Array =>
  data.subarray(from * width, to * width);

/** Appends tokens from a position on, and attends from them. */
function feed(cache: MethodCache, from: number, to: number, layer = 0): Float32Array {
  cache.append(layer, rows(keys, from, to), rows(values, from, to), to - from);
  return cache.attend(layer, rows(queries, from, to, 4 * D), to - from);
}

function fedWith(method: Method, ...lengths: number[]): MethodCache {
  const cache = new MethodCache(method, SHAPE);
  let from = 0;
  for (const length of lengths) {
    feed(cache, from, from + length);
    from += length;
  }
  return cache;
}

/** Rounds everything to zero, in one bit a token: what attention sees of it is plain. */
const toZero: Quantizer = (data, headDim) => ({ rows: data.map(() => 0), bits: data.length / headDim });
const zeros = (window: Method["window"], tokens = window.block): Method =>
  compose({
    name: "zeros",
    source: "test",
    keyBits: 1,
    valueBits: 1,
    needs: { tokens },
    window,
    keys: () => toZero,
    values: () => toZero,
  });
/** Positions of tokens that are not zero, of K and of V. */
function exact(cache: MethodCache): [number[], number[]] {
  const { k, v } = cache.read(0);
  const positions = (data: Float32Array): number[] =>
    Array.from({ length: data.length / WIDTH }, (_, token) => token).filter((token) =>
      rows(data, token, token + 1).some((x) => x !== 0),
    );
  return [positions(k), positions(v)];
}
const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);

it("is what a decoder attends with", async () => {
  const attention: Attention = new MethodCache(f16(), SHAPE);
  await attention.append(0, rows(keys, 0, 2), rows(values, 0, 2), 2);
  expect(await attention.attend(0, rows(queries, 0, 2, 4 * D), 2)).toHaveLength(2 * 4 * D);
});

describe("the window", () => {
  it("keeps the sink, the newest, and what fills no block", () => {
    const cache = new MethodCache(zeros({ sink: 3, recent: 2, block: 4, recentValues: 0 }), SHAPE);
    const seen: number[][] = [];
    for (let token = 0; token < 14; token++) {
      feed(cache, token, token + 1);
      const [k, v] = exact(cache);
      expect(v).toEqual(k);
      seen.push(k);
    }
    // An append that finds 3 + 4 + 2 tokens compresses 3 to 6, one that finds 13 compresses 7 to 10.
    expect(seen[8]).toEqual(range(0, 9));
    expect(seen[9]).toEqual([0, 1, 2, 7, 8, 9]);
    expect(seen[12]).toEqual([0, 1, 2, 7, 8, 9, 10, 11, 12]);
    expect(seen[13]).toEqual([0, 1, 2, 11, 12, 13]);
    expect(cache.compressedRange(0)).toEqual({ start: 3, keyEnd: 11, valueEnd: 11 });
  });

  it("lets values leave later than keys, one by one, as KIVI does", () => {
    const cache = new MethodCache(zeros({ sink: 0, recent: 0, block: 4, recentValues: 4 }, 2), SHAPE);
    for (let token = 0; token < 11; token++) {
      feed(cache, token, token + 1);
      // Before it was appended, keys filled so many blocks, and four values were kept.
      const [k, v] = exact(cache);
      expect(k).toEqual(range(token - (token % 4), token + 1));
      expect(v).toEqual(range(Math.max(0, token - 4), token + 1));
    }
    expect(cache.compressedRange(0)).toEqual({ start: 0, keyEnd: 8, valueEnd: 6 });
  });

  it("attends the tokens of one append exactly, however many, until flush", () => {
    const cache = new MethodCache(zeros({ sink: 0, recent: 0, block: 4, recentValues: 0 }), SHAPE);
    feed(cache, 0, 22);
    expect(exact(cache)).toEqual([range(0, 22), range(0, 22)]);
    cache.flush();
    expect(exact(cache)).toEqual([
      [20, 21],
      [20, 21],
    ]);
    cache.flush();
    expect(cache.compressedRange(0)).toEqual({ start: 0, keyEnd: 20, valueEnd: 20 });
  });

  it("has no range in a layer that is shorter than the sink", () => {
    expect(fedWith(kvarn(), 5).compressedRange(0)).toEqual({ start: 5, keyEnd: 5, valueEnd: 5 });
    expect(new MethodCache(kvarn(), SHAPE).length(0)).toBe(0);
  });
});

describe.each(METHOD_NAMES.map((name) => [name] as const))("%s", (name) => {
  it("gives the same of tokens one by one as of many at once", () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        const pick = randomIntegers(seed);
        // SQuat sees the queries that came until then: the first 40 come at once.
        const lengths = [40];
        for (let left = 400 - 40; left > 0; left -= lengths.at(-1)!) {
          lengths.push(Math.min(left, pick(0, 2) === 0 ? 1 : pick(2, 150)));
        }
        const [parts, whole] = [
          fedWith(createMethod(name), ...lengths, 1),
          fedWith(createMethod(name), 40, 360, 1),
        ];
        expect(Buffer.from(parts.read(0).k.buffer).equals(Buffer.from(whole.read(0).k.buffer))).toBe(true);
        expect(Buffer.from(parts.read(0).v.buffer).equals(Buffer.from(whole.read(0).v.buffer))).toBe(true);
        expect(parts.memory()).toEqual(whole.memory());
      }),
      runs(2),
    );
  });

  it("changes nothing but what it compresses, and that by what a head's compressor gives", () => {
    const cache = fedWith(createMethod(name), 400, 1);
    const { start, keyEnd, valueEnd } = cache.compressedRange(0);
    const { k, v } = cache.read(0);
    for (const [stored, original, end] of [[k, keys, keyEnd] as const, [v, values, valueEnd] as const]) {
      expect(rows(stored, 0, start)).toEqual(rows(original, 0, start));
      expect(rows(stored, end, 401)).toEqual(rows(original, end, 401));
    }
    const head = (data: Float32Array, from: number, to: number, which: number): Float32Array =>
      rows(data, from, to).filter((_, i) => Math.floor(i / D) % 2 === which);
    for (const which of [0, 1]) {
      // Two query heads for each KV head.
      const seen = rows(queries, 0, 400, 4 * D).filter((_, i) => Math.floor(i / D / 2) % 2 === which);
      const compressed = cache.method
        .open({ headDim: D, layer: 0, queries: seen })
        .compress(head(keys, start, keyEnd, which), head(values, start, keyEnd, which));
      expect(relativeError(head(k, start, keyEnd, which), compressed.k)).toBe(0);
      const last = (valueEnd - start) * D;
      expect(relativeError(head(v, start, valueEnd, which), compressed.v.subarray(0, last))).toBe(0);
    }
  });
});

describe("attend", () => {
  it("is causal attention in f64 over what read gives, GQA and all", () => {
    const cache = fedWith(kivi({ residual: 32 }), 89, 7);
    const out = cache.attend(0, rows(queries, 89, 96, 4 * D), 7);
    const { k, v } = cache.read(0);
    const expected = new Float64Array(out.length);
    for (let token = 0; token < 7; token++) {
      for (let head = 0; head < 4; head++) {
        const [q, kv] = [((89 + token) * 4 + head) * D, Math.floor(head / 2) * D];
        const weights = Array.from({ length: 90 + token }, (_, seen) => {
          let score = 0;
          for (let i = 0; i < D; i++) score += queries[q + i] * k[seen * WIDTH + kv + i];
          return Math.exp(score / Math.sqrt(D));
        });
        const sum = weights.reduce((a, b) => a + b, 0);
        weights.forEach((weight, seen) => {
          for (let i = 0; i < D; i++) {
            expected[(token * 4 + head) * D + i] += (weight / sum) * v[seen * WIDTH + kv + i];
          }
        });
      }
    }
    expect(relativeError(out, expected)).toBeLessThan(1e-6);
  });

  it("holds with one to five query heads for a KV head, large scores, and another scale", () => {
    for (const queryHeads of [1, 2, 3, 4, 5]) {
      const cache = new MethodCache(f16(), {
        layers: 1,
        queryHeads,
        kvHeads: 1,
        headDim: 2,
        softmaxScale: 2,
      });
      cache.append(0, Float32Array.of(0, 0, 100, 0), Float32Array.of(1, 2, 3, 4), 2);
      const q = new Float32Array(queryHeads * 2);
      // The last head alone sees the difference, of 0.5 * 2 * 100.
      q[2 * queryHeads - 2] = 0.5;
      const out = cache.attend(0, q, 1);
      for (let head = 0; head < queryHeads; head++) {
        const expected = head === queryHeads - 1 ? [3, 4] : [2, 3];
        expect([...out.subarray(2 * head, 2 * head + 2)]).toEqual(expected);
      }
    }
  });

  it("gives the values of a single token, and the means of what is equal", () => {
    const cache = new MethodCache(f16(), { layers: 1, queryHeads: 1, kvHeads: 1, headDim: 2 });
    const means = [2, 4, 9].map((value) => {
      cache.append(0, Float32Array.of(1, 1), Float32Array.of(value, -value), 1);
      return [...cache.attend(0, Float32Array.of(5, 5), 1)];
    });
    expect(means).toEqual([
      [2, -2],
      [3, -3],
      [5, -5],
    ]);
  });

  it("agrees with the cache of the reference backend", async () => {
    const engine = await openKvarn({ backend: "reference" });
    const reference = engine.createCache({ ...SHAPE, preset: "k4v2_g64" });
    const cache = new MethodCache(kvarn({ group: 64 }), SHAPE);
    for (const [from, to] of [
      [0, 200],
      [200, 203],
    ]) {
      await reference.append(0, rows(keys, from, to), rows(values, from, to));
      const q = rows(queries, from, to, 4 * D);
      cache.append(0, rows(keys, from, to), rows(values, from, to), to - from);
      // The reference holds sink and tail in binary16.
      expect(relativeError(cache.attend(0, q, to - from), await reference.attend(0, q))).toBeLessThan(1e-3);
    }
    const { k, v } = await reference.read(0);
    const [mine, { start, keyEnd }] = [cache.read(0), cache.compressedRange(0)];
    expect([start, keyEnd]).toEqual([64, 192]);
    expect(rows(mine.k, start, keyEnd)).toEqual(rows(k, start, keyEnd));
    expect(rows(mine.v, start, keyEnd)).toEqual(rows(v, start, keyEnd));
    const { totalBytes, ratio } = reference.memory();
    expect(cache.memory()).toMatchObject({ totalBytes, ratio });
    engine.dispose();
  });
});

describe("memory", () => {
  it("counts what is stored, by hand", () => {
    // 100 tokens, then one: keys up to 96 compressed, values up to 68, at 2 + 1 bits.
    const cache = fedWith(kivi({ residual: 32 }), 100, 1);
    const compressed = (96 + 68) * WIDTH;
    expect(cache.memory()).toEqual({
      values: 2 * 101 * WIDTH,
      compressedValues: compressed,
      exactBytes: 2 * (5 + 33) * WIDTH,
      compressedBytes: (compressed * 3) / 8,
      poolBytes: 0,
      totalBytes: 2 * 38 * WIDTH + (compressed * 3) / 8,
      f16Bytes: 4 * 101 * WIDTH,
      ratio: (4 * 101) / (2 * 38 + (164 * 3) / 8),
    });
    expect(cache.bitsPerValue()).toBeCloseTo((38 * 16 + 164 * 3) / 202, 12);
  });

  it("is that of binary16 while nothing is compressed, and empty", () => {
    expect(new MethodCache(ott(), SHAPE).bitsPerValue()).toBe(16);
    expect(new MethodCache(ott(), SHAPE).memory()).toMatchObject({ values: 0, totalBytes: 0, ratio: 1 });
    expect(fedWith(ott(), 50).bitsPerValue()).toBe(16);
    expect(fedWith(f16(), 50, 1).bitsPerValue()).toBe(16);
  });

  it("counts the pool of each layer but the first two", () => {
    const cache = new MethodCache(ott(), { ...SHAPE, layers: 3 });
    for (const layer of [0, 1, 2]) feed(cache, 0, 200, layer);
    cache.flush();
    // Three tokens of each head, in one of three layers.
    expect(cache.memory().poolBytes).toBe((3 * 2 * (2 * 16 * D + 32)) / 8);
    const [first, last] = [cache.read(0), cache.read(2)];
    expect(relativeError(last.k, rows(keys, 0, 200))).toBeLessThan(
      relativeError(first.k, rows(keys, 0, 200)),
    );
  });

  it("comes near to a method's bits in a long context", () => {
    const cache = fedWith(createMethod("turboquant", { keyBits: 3, valueBits: 3 }), 600, 1);
    expect(cache.bitsPerValue()).toBeCloseTo((600 * (3 + 16 / D) + 16) / 601, 10);
    expect(fedWith(kvarnOtt(), 600, 1).bitsPerValue()).toBe(fedWith(kvarn(), 600, 1).bitsPerValue());
  });
});

describe("queries", () => {
  it("are those of the attention before the first tokens leave the window", () => {
    const seen: (number | undefined)[] = [];
    const method = compose({
      name: "watch",
      source: "test",
      keyBits: 16,
      valueBits: 16,
      needs: { queries: true },
      window: { recent: 20 },
      keys: (head) => {
        seen.push(head.queries?.length);
        return halfPrecision();
      },
      values: halfPrecision,
    });
    fedWith(method, 10, 7, 3, 9, 4);
    // 20 tokens until the append that finds more: of two heads each, to each of two KV heads.
    expect(seen).toEqual([29 * 2 * D, 29 * 2 * D]);
  });

  it("must be there in time", () => {
    const cache = new MethodCache(squat(), SHAPE);
    cache.append(0, rows(keys, 0, 40), rows(values, 0, 40), 40);
    expect(() => cache.flush()).toThrow(
      expect.objectContaining({
        code: "invalid-argument",
        message: "squat: queries must be given: attend before the first tokens leave the window, in layer 0",
      }),
    );
    expect(() => cache.append(0, rows(keys, 40, 41), rows(values, 40, 41), 1)).toThrow("squat: queries must");
    expect(cache.length(0)).toBe(40);
    cache.attend(0, rows(queries, 0, 40, 4 * D), 40);
    cache.flush();
    expect(cache.compressedRange(0).keyEnd).toBe(32);
  });
});

describe("errors", () => {
  it("name what is wrong with the shape", () => {
    const open = (shape: Partial<MethodCacheConfig>, method = f16()) =>
      new MethodCache(method, { ...SHAPE, ...shape });
    expect(() => open({ queryHeads: 3 })).toThrow("queryHeads must be a multiple of kvHeads (2), got 3");
    expect(() => open({ layers: 0 })).toThrow("layers must be an integer from 1 to 4096, got 0");
    expect(() => open({ kvHeads: 0.5 })).toThrow("kvHeads must be an integer");
    expect(() => open({ headDim: 0 })).toThrow("headDim must be an integer");
    expect(() => open({ softmaxScale: NaN })).toThrow("softmaxScale must be a number, got NaN");
    expect(() => open({ headDim: 48 }, kivi())).toThrow("kivi: headDim must be a multiple of 32, got 48");
  });

  it("name what is wrong with tensors", () => {
    const cache = new MethodCache(f16(), SHAPE);
    const [k, v] = [rows(keys, 0, 2), rows(values, 0, 2)];
    expect(() => cache.attend(0, rows(queries, 0, 1, 4 * D), 1)).toThrow(
      "layer 0 has no tokens to attend to",
    );
    expect(() => cache.append(1, k, v, 2)).toThrow("layer must be an integer from 0 to 0, got 1");
    expect(() => cache.append(0, k, v, 3)).toThrow("k must hold 192 elements, got 128");
    expect(() => cache.append(0, k, v.subarray(1), 2)).toThrow("v must hold 128 elements, got 127");
    expect(() => cache.append(0, k, Array.from(v) as never, 2)).toThrow("v must be a Float32Array");
    expect(() => cache.append(0, k, v, 0)).toThrow("tokens must be an integer from 1");
    const bad = v.slice();
    bad[77] = Infinity;
    expect(() => cache.append(0, k, bad, 2)).toThrow("v is Infinity at element 77");
    cache.append(0, k, v, 2);
    expect(() => cache.attend(0, rows(queries, 0, 3, 4 * D), 3)).toThrow(
      "tokens must be an integer from 1 to 2, got 3",
    );
    expect(() => cache.attend(0, rows(queries, 0, 2, 4 * D), 1)).toThrow("q must hold 128 elements, got 256");
    expect(cache.length(0)).toBe(2);
  });
});
