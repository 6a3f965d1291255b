/** Tiles that are hard on the method, and the method's measure of them. For tests of any backend. */
import { drawFrom, xorshift32 } from "../../src/conformance/input.js";

/** Settings of a property test. A failure prints the seed; `KVARN_TEST_SEED` tries another. */
export function runs(numRuns: number): { numRuns: number; seed: number; endOnFailure: boolean } {
  return { numRuns, seed: Number(process.env.KVARN_TEST_SEED ?? 2606), endOnFailure: true };
}

/**
 * How a tile is made: `(noise * rowNoise * columnNoise + rowOffset + columnOffset) * rowFactor * columnFactor`, then
 * `element` of that. Each of the six is drawn once for a row or column. `u`: uniform from 0 to before 1.
 */
export interface Recipe {
  rowNoise?: (u: number) => number;
  columnNoise?: (u: number) => number;
  rowOffset?: (u: number) => number;
  columnOffset?: (u: number) => number;
  rowFactor?: (u: number) => number;
  columnFactor?: (u: number) => number;
  element?: (x: number, u: number) => number;
}

const always = (value: number) => () => value;
const either = (share: number, value: number, otherwise: number) => (u: number) =>
  u < share ? value : otherwise;
/** From `1 / most` to `most`. */
const uneven = (most: number) => (u: number) => most ** (2 * u - 1);
const between = (least: number, most: number) => (u: number) => least + (most - least) * u;

/** Tiles of which any two backends make the same records. */
export const regularTiles: Readonly<Record<string, Recipe>> = {
  noise: { rowFactor: always(3) },
  "outlier rows": { rowFactor: either(0.05, 32, 1) },
  "outlier columns": { columnFactor: (u) => (u < 0.05 ? 16 : u > 0.8 ? 0.125 : 1) },
  "hot rows across hot columns": {
    rowFactor: either(0.04, 32, 1),
    columnFactor: (u) => (u < 0.04 ? 8 : u > 0.85 ? 0.125 : 1),
  },
  "uneven rows and columns": { rowFactor: uneven(20), columnFactor: uneven(8) },
  "rows off by up to 30 deviations": { rowOffset: between(-30, 30), columnFactor: uneven(2) },
  "heavy tails": { element: (x) => x ** 5 },
  "mostly near zero": { element: (x, u) => x * (u < 0.05 ? 10 : 0.01) },
};

/**
 * Tiles of which any two backends find the same scales, but at the limits of f32: rounding moves more of the codes than
 * elsewhere, as elements are large against the spread, or few values of binary16.
 */
export const extremeTiles: Readonly<Record<string, Recipe>> = {
  "rows off by up to 300 deviations": { rowOffset: between(-300, 300), columnFactor: uneven(2) },
  "columns off by up to 300 deviations": { columnOffset: between(-300, 300), rowFactor: uneven(3) },
  // With these, the spreads themselves become scales, not their limits.
  "columns uneven, all off by 300 deviations": {
    rowOffset: always(300),
    columnFactor: (u) => 10 * uneven(4)(u),
  },
  "few rows off by 300 deviations": { rowOffset: either(0.05, 300, 0), columnFactor: uneven(8) },
  "few columns off by 300 deviations": { columnOffset: either(0.05, -300, 0), rowFactor: uneven(8) },
  "uneven rows, some off by 300 deviations": {
    rowOffset: either(0.2, 300, 0),
    rowFactor: uneven(8),
    columnFactor: uneven(2),
  },
  "rows and columns off": { rowOffset: between(-300, 300), columnOffset: between(-300, 300) },
  "about as large as binary16 goes": { rowFactor: uneven(2), element: (x) => 6e4 * Math.tanh(x) },
};

/**
 * Tiles on which rounding noise chooses the scales: rows or columns without spread, all scales at their least, scales
 * that binary16 hardly holds, offsets that leave few bits to the spread.
 */
export const degenerateTiles: Readonly<Record<string, Recipe>> = {
  zeros: { element: always(0) },
  "all equal": { element: always(7.25) },
  "all equal and huge": { element: always(6e4) },
  "constant rows": { rowNoise: either(0.2, 0, 1), rowOffset: between(-9, 9), columnFactor: always(3) },
  "constant columns": { columnNoise: either(0.2, 0, 1), columnOffset: between(-9, 9), rowFactor: always(3) },
  "rows of zeros": { rowFactor: either(0.1, 0, 2) },
  "columns of zeros": { columnFactor: either(0.1, 0, 2) },
  "every row constant": { rowNoise: always(0), rowOffset: between(-9, 9) },
  "every column constant": { columnNoise: always(0), columnOffset: between(-9, 9) },
  "noise below the least scale": { rowFactor: always(1 / 64) },
  tiny: { rowFactor: always(1e-6) },
  spikes: { element: (_, u) => (u < 0.001 ? 6e4 : 0) },
  "two values": { element: (x) => (x < 0 ? -1 : 1) },
  "few values": { element: (x) => Math.round(x) },
  "rows off by 2000 deviations": { rowOffset: either(0.5, 2000, 0), columnFactor: uneven(2) },
  "columns off by 2000 deviations": { columnOffset: either(0.5, -2000, 0), rowFactor: uneven(2) },
};

/** A tile `[rows, columns]`. */
export function makeTile(recipe: Recipe, rows: number, columns: number, seed: number): Float32Array {
  const state = Math.imul(seed + 1, 0x9e3779b1) | 1;
  const draw = drawFrom(state);
  const next = xorshift32(state ^ 0x5bd1e994);
  const uniform = () => next() / 2 ** 32;
  const vector = (length: number, make: ((u: number) => number) | undefined, otherwise: number) =>
    Float64Array.from({ length }, () => make?.(uniform()) ?? otherwise);
  const rowNoise = vector(rows, recipe.rowNoise, 1);
  const columnNoise = vector(columns, recipe.columnNoise, 1);
  const rowOffset = vector(rows, recipe.rowOffset, 0);
  const columnOffset = vector(columns, recipe.columnOffset, 0);
  const rowFactor = vector(rows, recipe.rowFactor, 1);
  const columnFactor = vector(columns, recipe.columnFactor, 1);
  return Float32Array.from({ length: rows * columns }, (_, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const noise = draw() * rowNoise[row] * columnNoise[column];
    const x = (noise + rowOffset[row] + columnOffset[column]) * rowFactor[row] * columnFactor[column];
    return recipe.element?.(x, uniform()) ?? x;
  });
}

/** `[rows, columns]` to `[columns, rows]`. */
export function transpose(tile: Float32Array, rows: number, columns: number): Float32Array {
  return tile.map((_, i) => tile[(i % rows) * columns + Math.floor(i / rows)]);
}

/** Two vectors by which the rows and columns of a tile are divided. */
export interface Scales {
  readonly rowScale: ArrayLike<number>;
  readonly columnScale: ArrayLike<number>;
}

/** Unbiased standard deviations of the rows and of the columns of `tile / rowScale / columnScale`, in f64. */
function deviations(
  tile: Float32Array,
  { rowScale, columnScale }: Scales,
): { rows: Float64Array; columns: Float64Array } {
  const [height, width] = [rowScale.length, columnScale.length];
  const balanced = new Float64Array(tile.length);
  const sums = { rows: new Float64Array(height), columns: new Float64Array(width) };
  const squares = { rows: new Float64Array(height), columns: new Float64Array(width) };
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i++) {
      balanced[i] = tile[i] / rowScale[row] / columnScale[column];
      sums.rows[row] += balanced[i];
      sums.columns[column] += balanced[i];
    }
  }
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i++) {
      squares.rows[row] += (balanced[i] - sums.rows[row] / width) ** 2;
      squares.columns[column] += (balanced[i] - sums.columns[column] / height) ** 2;
    }
  }
  return {
    rows: squares.rows.map((sum) => Math.sqrt(sum / (width - 1))),
    columns: squares.columns.map((sum) => Math.sqrt(sum / (height - 1))),
  };
}

/** Largest over smallest standard deviation of the rows, plus that of the columns, in f64. */
export function imbalance(tile: Float32Array, scales: Scales): number {
  const ratio = (std: Float64Array) => Math.max(...std) / Math.max(Math.min(...std), 1e-8);
  const { rows, columns } = deviations(tile, scales);
  return ratio(rows) + ratio(columns);
}

/** The scales after 0, 1, 2, … iterations of the normalization, in f64; the method keeps the most even. */
export function* iterates(
  tile: Float32Array,
  rows: number,
  columns: number,
  iterations: number,
): Generator<{ rowScale: Float64Array; columnScale: Float64Array }> {
  const rowScale = new Float64Array(rows).fill(1);
  const columnScale = new Float64Array(columns).fill(1);
  const clip = (x: number, least: number, most: number) => Math.min(Math.max(x, least), most);
  const update = (scale: Float64Array, std: Float64Array) =>
    std.forEach((x, i) => (scale[i] = clip(scale[i] * clip(x, 1e-3, 1e3), Math.exp(-0.3), Math.exp(10))));
  yield { rowScale: rowScale.slice(), columnScale: columnScale.slice() };
  for (let i = 0; i < iterations; i++) {
    update(columnScale, deviations(tile, { rowScale, columnScale }).columns);
    update(rowScale, deviations(tile, { rowScale, columnScale }).rows);
    yield { rowScale: rowScale.slice(), columnScale: columnScale.slice() };
  }
}
