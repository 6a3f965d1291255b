import { describe, expect, it } from "vitest";
import { openPlainPass, openUncompressed } from "../src/cli/uncompressed.js";
import { relativeError } from "../src/conformance/compare.js";
import { drawFrom } from "../src/conformance/input.js";

function random(seed: number, length: number, scale = 1): Float32Array {
  const draw = drawFrom(seed);
  return Float32Array.from({ length }, () => scale * draw());
}

/** Attention of one token in f64. */
function attention(
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
  { queryHeads, kvHeads, headDim }: { queryHeads: number; kvHeads: number; headDim: number },
): Float64Array {
  const tokens = k.length / (kvHeads * headDim);
  const out = new Float64Array(queryHeads * headDim);
  for (let head = 0; head < queryHeads; head++) {
    const kvHead = Math.floor(head / (queryHeads / kvHeads));
    const rowOf = (data: Float32Array, token: number) =>
      data.subarray((token * kvHeads + kvHead) * headDim, (token * kvHeads + kvHead + 1) * headDim);
    const query = q.subarray(head * headDim, (head + 1) * headDim);
    const scores = Array.from({ length: tokens }, (_, token) => {
      return rowOf(k, token).reduce((sum, x, i) => sum + x * query[i], 0) / Math.sqrt(headDim);
    });
    const top = Math.max(...scores);
    const weights = scores.map((score) => Math.exp(score - top));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    weights.forEach((weight, token) => {
      rowOf(v, token).forEach((x, i) => (out[head * headDim + i] += (weight / total) * x));
    });
  }
  return out;
}

describe("the uncompressed cache", () => {
  const shapes = [64, 80, 128, 512].flatMap((headDim) =>
    [1, 2, 3, 4, 5, 8].map((group) => ({ headDim, group, kvHeads: group === 3 ? 3 : 2 })),
  );

  it.each(shapes)("is attention: headDim $headDim, group $group", async ({ headDim, group, kvHeads }) => {
    const shape = { queryHeads: kvHeads * group, kvHeads, headDim };
    const width = kvHeads * headDim;
    const q = random(1, shape.queryHeads * headDim);
    // Ends of a panel, of a block, and neither; by one append and by many.
    const lengths = [1, 7, 8, 31, 32, 33, 201];
    const k = random(2, 201 * width);
    const v = random(3, 201 * width);
    const cache = await openUncompressed({ ...shape, capacity: 201 });
    for (const length of lengths) {
      const from = cache.length * width;
      cache.append(k.subarray(from, length * width), v.subarray(from, length * width));
      expect(cache.length).toBe(length);
      const expected = attention(q, k.subarray(0, length * width), v.subarray(0, length * width), shape);
      expect(relativeError(cache.attend(q), expected)).toBeLessThan(1e-5);
    }
  });

  it("brings earlier sums to a maximum that grows", async () => {
    const shape = { queryHeads: 4, kvHeads: 1, headDim: 64 };
    const tokens = 500;
    const q = random(4, 4 * 64);
    const k = random(5, tokens * 64).map((x, i) => (x * Math.floor(i / 64)) / 50);
    const v = random(6, tokens * 64);
    const cache = await openUncompressed({ ...shape, capacity: tokens });
    cache.append(k, v);
    const out = new Float32Array(4 * 64);
    expect(cache.attend(q, out)).toBe(out);
    expect(relativeError(out, attention(q, k, v, shape))).toBeLessThan(1e-5);
  });

  it.each(shapes)("prefills: headDim $headDim, group $group", async ({ headDim, group, kvHeads }) => {
    const shape = { queryHeads: kvHeads * group, kvHeads, headDim };
    const width = kvHeads * headDim;
    const perToken = shape.queryHeads * headDim;
    const tokens = 301;
    // Keys that grow: maxima do, too.
    const k = random(20, tokens * width).map((x, i) => (x * Math.floor(i / width)) / 50);
    const v = random(21, tokens * width);
    const cache = await openUncompressed({ ...shape, capacity: tokens });
    // Ends of a tile and neither; one token, a few, as many as there are, and fewer again.
    for (const [length, queryTokens] of [
      [1, 1],
      [127, 1],
      [128, 128],
      [129, 5],
      [301, 40],
    ]) {
      cache.append(
        k.subarray(cache.length * width, length * width),
        v.subarray(cache.length * width, length * width),
      );
      const q = random(22 + queryTokens, queryTokens * perToken);
      const out = new Float32Array(q.length);
      expect(cache.prefill(q, out)).toBe(out);
      for (let i = 0; i < queryTokens; i += i < 9 || i > queryTokens - 4 ? 1 : 13) {
        const end = (length - queryTokens + i + 1) * width;
        const at = [i * perToken, (i + 1) * perToken] as const;
        const expected = attention(q.subarray(...at), k.subarray(0, end), v.subarray(0, end), shape);
        expect(relativeError(out.subarray(...at), expected)).toBeLessThan(1e-5);
      }
    }
  });

  it("takes long appends in parts", async () => {
    const shape = { queryHeads: 8, kvHeads: 8, headDim: 128 };
    const tokens = 300;
    const q = random(7, 8 * 128);
    const k = random(8, tokens * 8 * 128);
    const v = random(9, tokens * 8 * 128);
    const cache = await openUncompressed({ ...shape, capacity: tokens });
    cache.append(k, v);
    expect(relativeError(cache.attend(q), attention(q, k, v, shape))).toBeLessThan(1e-5);
  });

  it("forgets", async () => {
    const shape = { queryHeads: 2, kvHeads: 1, headDim: 32 };
    const cache = await openUncompressed({ ...shape, capacity: 64 });
    cache.append(random(12, 64 * 32, 100), random(13, 64 * 32, 100));
    cache.clear();
    expect(cache.length).toBe(0);
    const [q, k, v] = [random(14, 2 * 32), random(15, 3 * 32), random(16, 3 * 32)];
    cache.append(k, v);
    expect(relativeError(cache.attend(q), attention(q, k, v, shape))).toBeLessThan(1e-5);
  });

  it("refuses what does not fit", async () => {
    const cache = await openUncompressed({ queryHeads: 2, kvHeads: 1, headDim: 16, capacity: 32 });
    expect(() => cache.attend(new Float32Array(32))).toThrow(RangeError);
    expect(() => cache.prefill(new Float32Array(32))).toThrow(RangeError);
    cache.append(new Float32Array(32), new Float32Array(32));
    expect(() => cache.prefill(new Float32Array(0))).toThrow(RangeError);
    expect(() => cache.prefill(new Float32Array(33))).toThrow(RangeError);
    expect(() => cache.prefill(new Float32Array(96))).toThrow(RangeError);
    expect(() => cache.prefill(new Float32Array(64), new Float32Array(32))).toThrow(RangeError);
    expect(() => cache.append(new Float32Array(33 * 16), new Float32Array(33 * 16))).toThrow(RangeError);
    expect(() => cache.append(new Float32Array(16), new Float32Array(32))).toThrow(RangeError);
    expect(() => cache.append(new Float32Array(15), new Float32Array(15))).toThrow(RangeError);
    await expect(
      openUncompressed({ queryHeads: 32, kvHeads: 32, headDim: 512, capacity: 2 ** 20 }),
    ).rejects.toMatchObject({ code: "out-of-memory" });
  });
});

describe("the plain pass", () => {
  it("sums scaled rows and their squares", async () => {
    const rows = 12;
    const columns = 20;
    const size = rows * columns;
    const tiles = random(10, 3 * size);
    const columnScale = random(11, columns);
    const plain = await openPlainPass({ rows, columns, tiles, columnScale });
    for (const tile of [2, 0]) {
      plain.run(tile);
      const { sum, sumOfSquares } = plain.read();
      const expected = Array.from({ length: rows }, (_, row) =>
        Array.from(columnScale, (scale, column) => tiles[tile * size + row * columns + column] * scale),
      );
      const sums = expected.map((row) => row.reduce((total, x) => total + x, 0));
      const squares = expected.map((row) => row.reduce((total, x) => total + x * x, 0));
      expect(relativeError(sum, sums)).toBeLessThan(1e-6);
      expect(relativeError(sumOfSquares, squares)).toBeLessThan(1e-6);
    }
  });
});
