/** The parts that methods are made of, each on small cases computed by hand. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { relativeError } from "../../src/conformance/compare.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { cholesky, eigen } from "../../src/methods/linear.js";
import {
  affine,
  codebook,
  dualScale,
  halfPrecision,
  lloydMaxLevels,
  normalFloatLevels,
  OutlierPool,
  type Quantizer,
  queryAware,
  rotated,
} from "../../src/methods/index.js";
import { randomArray } from "../support/random.js";
import { runs } from "../support/tiles.js";

const rowsOf = (...values: number[]): Float32Array => Float32Array.from(values);
const half = (x: number): number => fromHalf(toHalf(x));

it("binary16 rounds to binary16 and takes 16 bits", () => {
  const { rows, bits } = halfPrecision()(rowsOf(1, 1 / 3, -70_000, 2049), 2);
  expect([...rows]).toEqual([1, half(1 / 3), -Infinity, 2048]);
  expect(bits).toBe(64);
});

describe("affine", () => {
  it("rounds channels of a token together, or tokens of a channel", () => {
    // Two tokens of four channels; two elements to a group, whose ends one bit keeps.
    const rows = rowsOf(0, 3, 10, 14, 8, 5, -2, -1);
    const byToken = affine({ bits: 1, axis: "token", group: 4 })(rows, 4);
    expect([...byToken.rows]).toEqual([0, 0, 14, 14, 8, 8, -2, -2]);
    expect(byToken.bits).toBe(8 + 2 * 32);
    const pairs = affine({ bits: 1, axis: "token", group: 2 })(rows, 4);
    expect(pairs).toEqual({ rows, bits: 8 + 4 * 32 });
    const byChannel = affine({ bits: 1, axis: "channel", group: 2 })(rows, 4);
    expect(byChannel).toEqual({ rows, bits: 8 + 4 * 32 });
  });

  it("takes tokens in groups along channels", () => {
    // One channel, two groups of three tokens: 0, 1, 3 and 4, 6, 10, with steps of 1 and 2.
    const { rows } = affine({ bits: 2, axis: "channel", group: 3 })(rowsOf(0, 1.4, 3, 4, 6.9, 10), 1);
    expect([...rows]).toEqual([0, 1, 3, 4, 6, 10]);
  });

  it("holds scales and zero points in binary16, or as they are", () => {
    const values = rowsOf(1 / 3, 1.5, 2, 3);
    const step = Math.fround((3 - Math.fround(1 / 3)) / 3);
    const halves = affine({ bits: 2, axis: "token", group: 4 })(values, 4);
    expect(halves.rows[0]).toBe(half(1 / 3));
    expect(halves.rows[3]).toBe(Math.fround(3 * half(step) + half(1 / 3)));
    const exact = affine({ bits: 2, axis: "token", group: 4, scaleBits: 32 })(values, 4);
    expect(exact.rows[0]).toBe(Math.fround(1 / 3));
    expect(exact.bits - halves.bits).toBe(32);
  });

  it("clips both ends by a factor", () => {
    const { rows } = affine({ bits: 2, axis: "token", group: 4, clip: 0.75 })(rowsOf(-8, -2.2, 3, 4), 4);
    // From -6 to 3 in steps of 3.
    expect([...rows]).toEqual([-6, -3, 3, 3]);
  });

  it("refuses groups that leave a rest", () => {
    expect(() => affine({ bits: 2, axis: "channel", group: 2 })(new Float32Array(12), 4)).toThrow(
      "groups of 2 do not divide 3 tokens",
    );
    expect(() => affine({ bits: 2, axis: "token", group: 3 })(new Float32Array(12), 4)).toThrow(
      "groups of 3 do not divide 4 channels",
    );
  });

  it("stores what fits in its codes", () => {
    const axis = fc.constantFrom("channel" as const, "token" as const);
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 4 }), axis, fc.nat(), (bits, side, seed) => {
        const rows = randomArray(32 * 16, seed);
        const stored = affine({ bits, axis: side, group: 16 })(rows, 16);
        for (let line = 0; line < 16; line++) {
          const group = stored.rows
            .slice(0, 256)
            .filter((_, i) => (side === "token" ? i >> 4 : i & 15) === line);
          expect(new Set(group).size).toBeLessThanOrEqual(2 ** bits);
        }
        const finer = affine({ bits: bits + 1, axis: side, group: 16 })(rows, 16);
        expect(relativeError(finer.rows, rows)).toBeLessThan(relativeError(stored.rows, rows));
        expect(finer.bits - stored.bits).toBe(rows.length);
      }),
      runs(20),
    );
  });
});

describe("codebook", () => {
  it("has the levels that were published", () => {
    // QLoRA, arXiv 2305.14314, appendix E; of the normal distribution, sqrt(2 / pi) and Max's table.
    expect(normalFloatLevels(4)).toHaveLength(16);
    const published = [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0];
    normalFloatLevels(4)
      .slice(0, 8)
      .forEach((level, i) => expect(level).toBeCloseTo(published[i], 6));
    expect(lloydMaxLevels(1)[1]).toBeCloseTo(Math.sqrt(2 / Math.PI), 6);
    const tabled = [-1.51, -0.4528, 0.4528, 1.51];
    lloydMaxLevels(2).forEach((level, i) => expect(level).toBeCloseTo(tabled[i], 3));
  });

  it.each([1, 2, 3, 4])("has levels of %i bits that are the means of what they stand for", (bits) => {
    // Lloyd's condition, by the density of the normal distribution: its integral of x is the difference of densities.
    const levels = lloydMaxLevels(bits);
    const density = (x: number) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
    const share = (from: number, to: number): number => {
      const steps = 20_000;
      let sum = 0;
      for (let i = 0; i < steps; i++) sum += density(from + ((i + 0.5) * (to - from)) / steps);
      return (sum * (to - from)) / steps;
    };
    levels.forEach((level, i) => {
      const from = i === 0 ? -9 : (levels[i - 1] + level) / 2;
      const to = i === levels.length - 1 ? 9 : (level + levels[i + 1]) / 2;
      expect((density(from) - density(to)) / share(from, to)).toBeCloseTo(level, 4);
    });
  });

  it("rounds to the nearest level, times the largest magnitude or the root mean square of a token", () => {
    const levels = [-1, -0.25, 0, 0.5, 1];
    const absmax = codebook({ levels, scale: "absmax" })(rowsOf(8, 2, -5, -4.9, 0, 0, 0, 0), 4);
    expect([...absmax.rows]).toEqual([8, 0, -8, -2, 0, 0, 0, 0]);
    expect(absmax.bits).toBe(8 * 3 + 2 * 16);
    const rms = codebook({ levels, scale: "rms" })(rowsOf(1, 7, -1, 7), 4);
    expect([...rms.rows]).toEqual([0, 5, -1.25, 5]);
  });
});

describe("rotated", () => {
  it("stores rows in the rotated frame", () => {
    const seen: Float32Array[] = [];
    const inner: Quantizer = (rows) => {
      seen.push(rows);
      return { rows: rows.map((x, i) => (i === 0 ? x : 0)), bits: 7 };
    };
    // The rotation of equal values is one value; of that alone all of them come back.
    const { rows, bits } = rotated(inner)(new Float32Array(16).fill(3), 16);
    expect([...seen[0]]).toEqual([12, ...new Array<number>(15).fill(0)]);
    expect([...rows]).toEqual(new Array<number>(16).fill(3));
    expect(bits).toBe(7);
  });
});

describe("dualScale", () => {
  it("balances a tile along both axes before it rounds", () => {
    // A product of a factor per token and one per channel times +-1: balanced, two values are left, and one bit does.
    const signs = [1, 1, -1, -1, 1, -1, 1, -1, -1, 1, -1, 1, -1, -1, 1, 1];
    const factors = [1, 4, 2, 16];
    const rows = Float32Array.from(signs, (sign, i) => sign * factors[i >> 2] * factors[3 - (i & 3)] * 8);
    for (const axis of ["channel", "token"] as const) {
      const balanced = dualScale({ bits: 1, axis, group: 4, iterations: 20 })(rows, 4);
      expect(relativeError(balanced.rows, rows)).toBeLessThan(1e-3);
      const plain = dualScale({ bits: 1, axis, group: 4, iterations: 0 })(rows, 4);
      expect(relativeError(plain.rows, rows)).toBeGreaterThan(0.05);
      expect(balanced.bits).toBe(16 + 3 * 4 * 16);
    }
  });

  it("refuses tiles that leave a rest", () => {
    const quantizer = dualScale({ bits: 2, axis: "token", group: 4, iterations: 1 });
    expect(() => quantizer(new Float32Array(24), 4)).toThrow("groups of 4 do not divide 6 tokens");
  });
});

describe("OutlierPool", () => {
  const hold = (pool: OutlierPool, k: Float32Array, group = 4) =>
    pool.hold(
      k,
      k.map((x) => 2 * x),
      2,
      group,
    );
  const options = { tokens: 1, displaced: 1, exemptLayers: 0 };

  it("replaces the tokens of smallest keys by the mean of the others, and puts them back", () => {
    const k = rowsOf(4, -4, 1, 1 / 3, 5, 7, 3, 3);
    const held = hold(new OutlierPool(options), k);
    expect([...held.k]).toEqual([4, -4, 4, 2, 5, 7, 3, 3]);
    expect([...held.v]).toEqual([8, -8, 8, 4, 10, 14, 6, 6]);
    // Two rows of two elements in binary16, and a position.
    expect(held.bits).toBe(2 * 2 * 16 + 32);
    held.restore(held.k, held.v);
    expect([...held.k]).toEqual([4, -4, 1, half(1 / 3), 5, 7, 3, 3]);
    expect([...held.v].slice(2, 4)).toEqual([2, half(2 / 3)]);
  });

  it("keeps what it displaces, as long as there is room, and then stops", () => {
    const pool = new OutlierPool(options);
    const group = (smallest: number) => rowsOf(9, 9, smallest, 0, 9, 9, 9, 9);
    const isHeld = (smallest: number) => hold(pool, group(smallest)).bits > 0;
    // 5 is the first; 6 and 5 are no smaller; 3 takes its place; for 3 itself there is no room left; nor is there later.
    expect([5, 6, 5, 3, 4, 1, 0].map(isHeld)).toEqual([true, false, false, true, false, false, false]);
  });

  it("traces through all groups of one call as through calls", () => {
    const k = randomArray(64 * 2, 5);
    const atOnce = hold(new OutlierPool({ ...options, displaced: 9 }), k);
    const pool = new OutlierPool({ ...options, displaced: 9 });
    const parts = [0, 1, 2, 3].map((i) => hold(pool, k.slice(i * 32, (i + 1) * 32)));
    expect(atOnce.bits).toBe(parts.reduce((sum, { bits }) => sum + bits, 0));
    expect([...atOnce.k]).toEqual(parts.flatMap((part) => [...part.k]));
    expect(atOnce.k).not.toEqual(k);
  });
});

describe("queryAware", () => {
  const toIntegers: Quantizer = (rows) => ({ rows: rows.map(Math.round), bits: rows.length });

  it("moves later channels against the error that queries see", () => {
    // H = [[2, 1], [1, 2]]: an error of -0.4 in the first channel moves the second by 0.4 * 1/2.
    const seen: number[][] = [];
    const inner: Quantizer = (rows) => {
      seen.push([...rows]);
      return { rows: rows.map(Math.round), bits: 3 };
    };
    const quantizer = queryAware(rowsOf(1, 1), { rank: 1, lambda: 1, channels: 1, inner });
    const { rows, bits } = quantizer(rowsOf(0.4, 0.4, 2, 0.25), 2);
    expect([...rows]).toEqual([0, 1, 2, 0]);
    expect(seen[0]).toEqual([...rowsOf(0.4, 2)]);
    expect(seen[1][0]).toBeCloseTo(0.6, 6);
    expect(seen[1][1]).toBe(0.25);
    expect(bits).toBe(6);
  });

  it("moves nothing within a block, and the next block by the least-squares step", () => {
    const queries = randomArray(5 * 4, 1);
    const rows = randomArray(4, 2);
    const seen: Float32Array[] = [];
    const inner: Quantizer = (block) => {
      seen.push(block);
      return toIntegers(block, 2);
    };
    const stored = queryAware(queries, { rank: 4, lambda: 0.5, channels: 2, inner })(rows, 4);
    expect(seen[0]).toEqual(rows.slice(0, 2));
    // H = I + Q^T Q / 2; the step is -H_rr^-1 H_rb e, by Cramer's rule.
    const h = (i: number, j: number): number => {
      let sum = i === j ? 1 : 0;
      for (let q = 0; q < 20; q += 4) sum += 0.5 * queries[q + i] * queries[q + j];
      return sum;
    };
    const e = [stored.rows[0] - rows[0], stored.rows[1] - rows[1]];
    const right = [2, 3].map((i) => -(h(i, 0) * e[0] + h(i, 1) * e[1]));
    const determinant = h(2, 2) * h(3, 3) - h(2, 3) ** 2;
    const step = [
      (right[0] * h(3, 3) - right[1] * h(2, 3)) / determinant,
      (right[1] * h(2, 2) - right[0] * h(2, 3)) / determinant,
    ];
    expect(seen[1][0]).toBeCloseTo(rows[2] + step[0], 5);
    expect(seen[1][1]).toBeCloseTo(rows[3] + step[1], 5);
  });

  it("counts only the main directions of the queries", () => {
    // The weaker direction is the second channel's alone and the third's; without it, nothing is moved.
    const queries = rowsOf(3, 0, 0, 0, 1, 1);
    const rows = rowsOf(0.4, 0.4, 0.4);
    const at = (rank: number) =>
      queryAware(queries, { rank, lambda: 1, channels: 1, inner: toIntegers })(rows, 3);
    expect([...at(1).rows]).toEqual([0, 0, 0]);
    expect([...at(2).rows]).toEqual([0, 0, 1]);
  });
});

describe("linear algebra", () => {
  it("finds eigenvectors", () => {
    const { values, vectors } = eigen(Float64Array.of(2, 1, 1, 2), 2);
    expect([...values].map((x) => Math.round(x * 1e9) / 1e9)).toEqual([3, 1]);
    expect(Math.abs(vectors[0])).toBeCloseTo(Math.SQRT1_2, 12);
    expect(vectors[0] / vectors[1]).toBeCloseTo(1, 12);
    expect(vectors[2] / vectors[3]).toBeCloseTo(-1, 12);
  });

  it("takes a Gram matrix apart and puts it together", () => {
    const n = 48;
    const x = randomArray(20 * n, 3);
    const gram = Float64Array.from({ length: n * n }, (_, i) => {
      let sum = 0;
      for (let row = 0; row < 20 * n; row += n) sum += x[row + Math.floor(i / n)] * x[row + (i % n)];
      return sum;
    });
    const { values, vectors } = eigen(gram, n);
    // Of 20 rows, 20 directions.
    expect(values[19]).toBeGreaterThan(1);
    expect(Math.abs(values[20])).toBeLessThan(1e-9);
    const rebuilt = gram.map((_, i) => {
      let sum = 0;
      for (let k = 0; k < n; k++)
        sum += values[k] * vectors[k * n + Math.floor(i / n)] * vectors[k * n + (i % n)];
      return sum;
    });
    expect(relativeError(rebuilt, gram)).toBeLessThan(1e-12);

    for (let i = 0; i < n; i++) gram[i * n + i] += 1;
    const lower = cholesky(gram, n);
    expect(lower[1]).toBe(0);
    const product = gram.map((_, i) => {
      let sum = 0;
      for (let k = 0; k < n; k++) sum += lower[Math.floor(i / n) * n + k] * lower[(i % n) * n + k];
      return sum;
    });
    expect(relativeError(product, gram)).toBeLessThan(1e-12);
  });
});
