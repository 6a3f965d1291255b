/** The refined encoder's parts in the reference backend, by cases worked out by hand and by what they are for. */
import { describe, expect, it } from "vitest";
import {
  addQuery,
  decodeRecord,
  queryFeedback,
  refine,
  refineRecord,
  encodeRecord,
  tokenFeedback,
} from "../src/reference/index.js";
import { parsePreset, recordLayout } from "../src/format.js";
import { fromHalf, toHalf } from "../src/half.js";
import { relativeError } from "../src/conformance/compare.js";
import { randomArray } from "./support/random.js";

const half = (values: Float32Array): Float32Array => values.map((x) => fromHalf(toHalf(x)));

describe("refine", () => {
  it("takes as it is a tile that codes can say exactly", () => {
    // 0 to 3 in each row, times what columns are worth once their spreads are out.
    const tile = Float32Array.from({ length: 16 * 16 }, (_, i) => (5 * Math.floor(i / 16) + (i % 16)) % 4);
    const { codes, rowScale, rowZero, columnScale } = refine(tile, 16, 16, 2, 0, undefined);
    expect([...codes]).toEqual([...tile]);
    tile.forEach((value, i) => {
      const row = Math.floor(i / 16);
      expect((codes[i] * rowScale[row] + rowZero[row]) * columnScale[i % 16]).toBeCloseTo(value, 3);
    });
  });

  it("leaves errors that do not depend on values, where plain rounding's do once it clips", () => {
    const [rows, columns] = [16, 512];
    const tile = half(randomArray(rows * columns, 3));
    const { codes, rowScale, rowZero, columnScale } = refine(tile, rows, columns, 2, 0, undefined);
    const decoded = tile.map((_, i) => {
      const row = Math.floor(i / columns);
      return (codes[i] * rowScale[row] + rowZero[row]) * columnScale[i % columns];
    });
    const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, value, i) => sum + value * y[i], 0);
    // What decodes goes with the values as much as they do with themselves; least squares would lose a tenth.
    expect(dot(decoded, tile) / dot(tile, tile)).toBeGreaterThan(0.97);
    expect(dot(decoded, tile) / dot(tile, tile)).toBeLessThan(1.03);
  });

  it.each([0, 1.25, -65504])("decodes a tile of one value, %d, to it", (value) => {
    const tile = new Float32Array(64 * 64).fill(value);
    const { codes, rowScale, rowZero, columnScale } = refine(tile, 64, 64, 4, 8, undefined);
    const decoded = tile.map((_, i) => (codes[i] * rowScale[i >> 6] + rowZero[i >> 6]) * columnScale[i & 63]);
    expect(decoded.every((x) => Math.abs(x - value) <= Math.abs(value) / 1000)).toBe(true);
  });

  it.each([2 ** -24, 65504])("keeps scales finite and not all zero for values up to %d", (largest) => {
    const tile = half(randomArray(64 * 64, 5));
    const most = tile.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    const scaled = half(tile.map((x) => (x / most) * largest * (largest < 1 ? 64 : 1)));
    const { codes, rowScale, rowZero, columnScale } = refine(scaled, 64, 64, 8, 8, undefined);
    for (const scales of [rowScale, rowZero, columnScale]) expect(scales.every(Number.isFinite)).toBe(true);
    const decoded = scaled.map(
      (_, i) => (codes[i] * rowScale[i >> 6] + rowZero[i >> 6]) * columnScale[i & 63],
    );
    expect(relativeError(decoded, scaled)).toBeLessThan(0.02);
  });
});

describe("the feedback of tokens", () => {
  it("makes up for errors before, the older the less, and never for more than a part of a token", () => {
    const feedback = tokenFeedback(3, 2, 2);
    const first = Float64Array.of(1, 1);
    feedback.correct(0, first);
    expect([...first]).toEqual([1, 1]);
    feedback.note(0, Float64Array.of(0.4, 0));
    feedback.note(1, Float64Array.of(0, -0.2));
    const third = Float64Array.of(5, 5);
    feedback.correct(2, third);
    expect(third[0]).toBeCloseTo(5 - 0.15 * 0.4 * Math.exp(-1 / 32), 12);
    expect(third[1]).toBeCloseTo(5 + 0.15 * 0.2, 12);
    const short = Float64Array.of(0.01, 0);
    feedback.correct(2, short);
    expect(Math.hypot(short[0] - 0.01, short[1])).toBeCloseTo(0.125 * 0.01, 12);
  });
});

describe("the feedback of queries", () => {
  it("is none where there was no query", () => {
    const moment = new Float32Array(4);
    addQuery(moment, Float32Array.of(0, 0));
    expect(queryFeedback(moment, 2, 1)).toBeUndefined();
  });

  it("hides an error from the one query there was", () => {
    // H = I + 10 * 2 q q^T with q = (0.6, 0.8): of U, U01 / U00 is H01 / H00.
    const moment = new Float32Array(4);
    addQuery(moment, Float32Array.of(3e30, 4e30));
    expect(moment[1]).toBeCloseTo(0.48, 6);
    const feedback = queryFeedback(moment, 2, 1)!;
    expect(feedback.order).toEqual([1, 0]);
    feedback.note(1, Float64Array.of(0.5));
    const values = Float64Array.of(7);
    feedback.correct(0, values);
    expect(values[0]).toBeCloseTo(7 - (0.5 * 20 * 0.48) / (1 + 20 * 0.36), 6);
  });

  it("makes scores of such queries several times as exact", () => {
    const [headDim, group] = [64, 64];
    const layout = recordLayout(parsePreset("k2v2_g64"), headDim);
    const keys = half(randomArray(group * headDim, 7));
    const tokens = { keys, values: half(randomArray(group * headDim, 8)) };
    // Queries of four directions and some noise: other ones to see than to judge by.
    const directions = randomArray(4 * headDim, 9);
    const query = (seed: number) => {
      const [parts, noise] = [randomArray(4, seed), randomArray(headDim, 1000 + seed)];
      return noise.map(
        (x, i) => 0.1 * x + parts.reduce((sum, part, d) => sum + part * directions[d * headDim + i], 0),
      );
    };
    const moment = new Float32Array(headDim ** 2);
    for (let i = 0; i < 50; i++) addQuery(moment, query(100 + i));
    const scoreError = (record: Uint8Array): number => {
      const decoded = decodeRecord(record, layout).keys;
      const scores = (rows: ArrayLike<number>) =>
        Float64Array.from({ length: 20 * group }, (_, i) => {
          const q = query(500 + Math.floor(i / group));
          return q.reduce((sum, x, d) => sum + x * rows[(i % group) * headDim + d], 0);
        });
      return relativeError(scores(decoded), scores(keys));
    };
    const strict = scoreError(encodeRecord(tokens, layout, 8));
    const unseen = scoreError(refineRecord(tokens, layout, 8));
    const seen = scoreError(refineRecord(tokens, layout, 8, moment));
    expect(unseen).toBeLessThan(0.9 * strict);
    expect(seen).toBeLessThan(0.4 * strict);
  });
});
