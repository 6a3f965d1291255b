import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { type Normalized, openKvarn } from "../../src/index.js";
import { recordInput } from "../../src/conformance/checks/encode.js";
import { relativeError } from "../../src/conformance/compare.js";
import { expectSame, halves } from "../support/cache.js";
import { goldenCases } from "../support/golden.js";
import { randomArray } from "../support/random.js";
import {
  degenerateTiles,
  extremeTiles,
  imbalance,
  iterates,
  makeTile,
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

/** Heads by tokens, in both orientations, and what lies at the edges of what is allowed. */
const SHAPES = [
  ...[16, 48, 64, 80, 128, 256, 512].flatMap((headDim) => [64, 128].map((group) => [headDim, group])),
  ...[16, 96, 112, 128, 192, 512].flatMap((headDim) => [64, 128].map((group) => [group, headDim])),
  [16, 16],
  [16, 512],
  [512, 16],
  [240, 272],
] as const;

const tileCase = fc.record({
  seed: fc.nat(1e6),
  shape: fc.constantFrom(...SHAPES),
  iterations: fc.constantFrom(0, 1, 2, 8, 16, 64),
});

/** How far two vectors of scales are apart once one common factor is taken out. */
function distance(actual: Float32Array, expected: Float64Array): number {
  const ratios = Float64Array.from(actual, (x, i) => x / expected[i]).sort();
  const factor = ratios[ratios.length >> 1];
  return Math.max(ratios[ratios.length - 1] / factor - 1, 1 - ratios[0] / factor);
}

/** Largest error of an element of `balanced * rowScale * columnScale`, in relation to the tile's element. */
function productError(tile: Float32Array, { balanced, rowScale, columnScale }: Normalized): number {
  const columns = columnScale.length;
  let worst = 0;
  tile.forEach((x, i) => {
    const product = balanced[i] * rowScale[Math.floor(i / columns)] * columnScale[i % columns];
    if (x !== product) worst = Math.max(worst, Math.abs(product / x - 1));
  });
  return worst;
}

describe.each(Object.entries({ ...regularTiles, ...extremeTiles }))("normalize, %s", (_, recipe) => {
  it.each(engines)("keeps the most even iterate, on the %s backend", (_, kvarn) =>
    fc.assert(
      fc.asyncProperty(tileCase, async ({ seed, shape: [rows, columns], iterations }) => {
        const tile = makeTile(recipe, rows, columns, seed);
        const result = await kvarn.normalize(tile, { rows, columns, iterations });
        expect(productError(tile, result)).toBeLessThan(5e-7);

        const all = [...iterates(tile, rows, columns, iterations)];
        const imbalances = all.map((scales) => imbalance(tile, scales));
        const least = Math.min(...imbalances);
        expect(imbalance(tile, result)).toBeLessThan(least * (1 + 1e-4));
        // Of iterates that are equally even but for rounding, it may be any.
        const best = all.filter((_, i) => imbalances[i] < least * (1 + 1e-5));
        const distances = best.map(({ rowScale, columnScale }) =>
          Math.max(distance(result.rowScale, rowScale), distance(result.columnScale, columnScale)),
        );
        expect(Math.min(...distances)).toBeLessThan(1e-4);
      }),
      runs(6),
    ),
  );
});

describe.each(Object.entries(degenerateTiles))("normalize, %s", (_, recipe) => {
  it("keeps scales within their limits, and their product the tile, on any backend", () =>
    fc.assert(
      fc.asyncProperty(tileCase, async ({ seed, shape: [rows, columns], iterations }) => {
        const tile = makeTile(recipe, rows, columns, seed);
        for (const kvarn of [reference, wasm]) {
          const result = await kvarn.normalize(tile, { rows, columns, iterations });
          const scales = [...result.rowScale, ...result.columnScale];
          expect(Math.min(...scales)).toBeGreaterThan(Math.exp(-0.3) * (1 - 1e-6));
          expect(Math.max(...scales)).toBeLessThan(Math.exp(10) * (1 + 1e-6));
          expect(productError(tile, result)).toBeLessThan(5e-7);
        }
      }),
      runs(4),
    ));
});

describe.each(engines)("normalize on the %s backend", (_, kvarn) => {
  const square = { rows: 16, columns: 16 };
  /** `±size`, signs like a chessboard: rows and columns of mean 0 and deviation `size * DEVIATION`. */
  const chessboard = (size: number) =>
    Float32Array.from({ length: 256 }, (_, i) => ((i + (i >> 4)) % 2 === 0 ? size : -size));
  const DEVIATION = Math.sqrt(16 / 15);

  it.each([
    ["takes columns first", 4, 1, 4 * DEVIATION, 1],
    [
      "takes the later of equally even iterates, here at the least scales",
      1e-3,
      1,
      Math.exp(-0.3),
      Math.exp(-0.3),
    ],
    ["clips deviations to 1000", 1e4, 1, 1000, 10 * DEVIATION],
    ["clips deviations to 1000 at each step", 6e4, 2, 1000, 60 * DEVIATION],
    ["does not go beyond e^10", 1e10, 8, Math.exp(10), Math.exp(10)],
  ])("%s", async (_, size, iterations, column, row) => {
    const tile = chessboard(size);
    const result = await kvarn.normalize(tile, { ...square, iterations });
    expect(relativeError(result.columnScale, new Float32Array(16).fill(column))).toBeLessThan(1e-6);
    expect(relativeError(result.rowScale, new Float32Array(16).fill(row))).toBeLessThan(1e-6);
    expect(relativeError(result.balanced, chessboard(size / row / column))).toBeLessThan(1e-6);
  });

  it("leaves the tile alone without iterations", async () => {
    const tile = randomArray(16 * 64, 5);
    const result = await kvarn.normalize(tile, { rows: 16, columns: 64, iterations: 0 });
    expectSame(result.balanced, tile);
    expect(result.rowScale).toEqual(new Float32Array(16).fill(1));
    expect(result.columnScale).toEqual(new Float32Array(64).fill(1));
  });

  it("takes 8 iterations unless told", async () => {
    const tile = makeTile(regularTiles["uneven rows and columns"], 32, 32, 1);
    const shape = { rows: 32, columns: 32 };
    const result = await kvarn.normalize(tile, shape);
    expect(result).toEqual(await kvarn.normalize(tile, { ...shape, iterations: 8 }));
    expect(result).not.toEqual(await kvarn.normalize(tile, { ...shape, iterations: 7 }));
  });

  it("sees spreads 300 deviations from zero where columns are uneven, too", async () => {
    // A row's mean then moves far from the mean of its tile row times that of the factors.
    for (const seed of [1, 14, 19]) {
      const tile = makeTile(extremeTiles["few rows off by 300 deviations"], 64, 128, seed);
      const all = [...iterates(tile, 64, 128, 8)].map((scales) => imbalance(tile, scales));
      for (const iterations of [1, 8]) {
        const result = await kvarn.normalize(tile, { rows: 64, columns: 128, iterations });
        const least = Math.min(...all.slice(0, iterations + 1));
        expect(imbalance(tile, result), `seed ${seed}, ${iterations}`).toBeLessThan(least * 1.001);
      }
    }
  });

  it.each([1, 1.6, 1.7, 1.8, 7, 7.7, 8, 8.3, 9, 12])(
    "is as exact with rows, columns or both off by %f deviations, about where centres are needed",
    async (offset) => {
      const off = (u: number) => (u < 0.5 ? -offset : offset);
      const recipes = [
        { rowOffset: off },
        { columnOffset: off },
        { rowOffset: off, rowFactor: (u: number) => 4 ** u, columnFactor: (u: number) => 2 ** u },
        { rowOffset: () => offset, columnOffset: off },
      ];
      for (const [seed, recipe] of recipes.entries()) {
        for (const [rows, columns] of [
          [128, 128],
          [64, 256],
          [512, 64],
        ]) {
          // prettier-ignore
          const tile = makeTile({ rowFactor: () => 3, ...recipe }, rows, columns, seed);
          const result = await kvarn.normalize(tile, { rows, columns });
          const distances = [...iterates(tile, rows, columns, 8)].map(({ rowScale, columnScale }) =>
            Math.max(distance(result.rowScale, rowScale), distance(result.columnScale, columnScale)),
          );
          expect(Math.min(...distances), `recipe ${seed}, ${rows} x ${columns}`).toBeLessThan(3e-6);
        }
      }
    },
  );

  it("goes on while rows take steps, though columns have come to rest", async () => {
    // Columns without spread are at their least scale from the start; rows can take a factor of 1000 at a time.
    const tile = Float32Array.from({ length: 256 }, (_, i) => (i % 2 === 0 ? 1e6 : -1e6));
    for (const [iterations, scale] of [
      [1, 1e3],
      [2, Math.exp(10)],
      [3, Math.exp(10)],
    ]) {
      // prettier-ignore
      const { rowScale, columnScale } = await kvarn.normalize(tile, { ...square, iterations });
      expect(relativeError(rowScale, new Float32Array(16).fill(scale))).toBeLessThan(1e-6);
      expect(relativeError(columnScale, new Float32Array(16).fill(Math.exp(-0.3)))).toBeLessThan(1e-6);
    }
  });

  it("gives the same however many iterations follow one that changed nothing", async () => {
    const [rows, columns] = [64, 48];
    // The f64 reference goes on; on wasm scales soon are the same f32 again.
    const recipes = [
      regularTiles.noise,
      regularTiles["hot rows across hot columns"],
      ...["zeros", "all equal", "noise below the least scale"].map((name) => degenerateTiles[name]),
    ];
    for (const [seed, recipe] of recipes.entries()) {
      const tile = makeTile(recipe, rows, columns, seed);
      const all = [...iterates(tile, rows, columns, 64)].map((scales) => imbalance(tile, scales));
      const result = await kvarn.normalize(tile, { rows, columns, iterations: 64 });
      expect(imbalance(tile, result), `recipe ${seed}`).toBeLessThan(Math.min(...all) * (1 + 1e-5) + 1e-5);
    }
  });

  it("is never less even with more iterations", async () => {
    for (const name of ["hot rows across hot columns", "heavy tails", "mostly near zero"]) {
      const tile = makeTile(regularTiles[name], 64, 48, 3);
      let before = Infinity;
      for (let iterations = 0; iterations <= 12; iterations++) {
        const result = await kvarn.normalize(tile, { rows: 64, columns: 48, iterations });
        const now = imbalance(tile, result);
        expect(now, `${name}, ${iterations} iterations`).toBeLessThanOrEqual(before * (1 + 1e-5));
        before = now;
      }
    }
  });

  it("keeps the first iterate of hot keys, and not the last", async () => {
    for (const golden of goldenCases.filter(({ kind }) => kind === "hot")) {
      const { headDim, group, kvHeads, iterations } = golden;
      const { k } = recordInput(golden);
      const firstHead = k.filter((_, i) => Math.floor(i / headDim) % kvHeads === 0);
      const tile = transpose(await kvarn.rotate(firstHead, { headDim }), group, headDim);
      const { rowScale } = await kvarn.normalize(tile, { rows: headDim, columns: group, iterations });
      const all = [...iterates(tile, headDim, group, iterations)];
      expect(relativeError(rowScale, all[1].rowScale)).toBeLessThan(1e-5);
      expect(relativeError(rowScale, all[iterations].rowScale)).toBeGreaterThan(0.01);
    }
  });

  it("does with many tiles what it does with each, and the same again", async () => {
    const [rows, columns] = [48, 64];
    const size = rows * columns;
    const recipes = Object.values({ ...regularTiles, ...extremeTiles, ...degenerateTiles });
    const tiles = recipes.map((recipe, i) => makeTile(recipe, rows, columns, i));
    const all = Float32Array.from(tiles.flatMap((tile) => [...tile]));
    const result = await kvarn.normalize(all, { rows, columns });
    expect(await kvarn.normalize(all, { rows, columns })).toEqual(result);
    for (const [i, tile] of tiles.entries()) {
      const { balanced, rowScale, columnScale } = await kvarn.normalize(tile, { rows, columns });
      expectSame(result.balanced.subarray(i * size, (i + 1) * size), balanced);
      expectSame(result.rowScale.subarray(i * rows, (i + 1) * rows), rowScale);
      expectSame(result.columnScale.subarray(i * columns, (i + 1) * columns), columnScale);
    }
  });

  it("takes binary16", async () => {
    const tile = randomArray(2 * 512, 9);
    const shape = { rows: 16, columns: 32 };
    expect(await kvarn.normalize(halves(tile), shape)).toEqual(await kvarn.normalize(tile, shape));
  });

  it("writes to out, any part of it, and nothing beyond", async () => {
    const tile = makeTile(regularTiles["outlier rows"], 32, 16, 2);
    const before = tile.slice();
    const expected = await kvarn.normalize(tile, { rows: 32, columns: 16 });
    const large = new Float32Array(1000).fill(-7);
    const out = {
      balanced: large.subarray(101, 613),
      rowScale: large.subarray(700, 732),
      columnScale: large.subarray(801, 817),
    };
    const result = await kvarn.normalize(tile, { rows: 32, columns: 16, out });
    expect(Object.entries(result).every(([name, array]) => array === out[name as keyof Normalized])).toBe(
      true,
    );
    expect(result).toEqual(expected);
    expect(large.filter((x) => x === -7).length).toBe(1000 - 512 - 32 - 16);

    const rowScale = new Float32Array(32);
    const partial = await kvarn.normalize(tile, { rows: 32, columns: 16, out: { rowScale } });
    expect(partial.rowScale).toBe(rowScale);
    expect(partial).toEqual(expected);
    expectSame(tile, before);
  });

  it("takes no tiles at all", async () => {
    const { balanced, rowScale, columnScale } = await kvarn.normalize(new Float32Array(0), square);
    expect([balanced.length, rowScale.length, columnScale.length]).toEqual([0, 0, 0]);
  });
});
