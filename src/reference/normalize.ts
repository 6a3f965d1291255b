/** Standard deviations are clipped to this range before they change a scale. */
const STD_RANGE = [1e-3, 1e3] as const;
/** Logarithms of the accumulated scales are kept in this range. */
const LOG_SCALE_RANGE = [-0.3, 10] as const;
/** Least divisor of a spread; keeps the imbalance of a tile with a constant row or column finite. */
const LEAST_STD = 1e-8;
/**
 * Iterates whose imbalances differ by less than this factor tie, and of equals the later one is kept. Those of tiles at
 * the limits of the scales differ by rounding only, but their records do not; with it, they do not hang on f32 or f64.
 */
const TIE = 1 + 2e-6;

/** A tile divided by its two scale vectors: `tile = balanced * rowScale * columnScale`. */
export interface NormalizedTile {
  /** `[rows, columns]` */
  readonly balanced: Float32Array;
  /** `[rows]` */
  readonly rowScale: Float32Array;
  /** `[columns]` */
  readonly columnScale: Float32Array;
}

/**
 * Dual-scale variance normalization (Sinkhorn-like): divides columns and rows by their standard deviations in turn
 * until both are even, and keeps the most even of all iterates, the input included. The last iterate need not be it:
 * on tiles with hot channels that cross hot tokens the first can be the best.
 *
 * Inside f64, with means taken first, so a channel far from zero keeps its spread; results are rounded to f32.
 *
 * Source: arXiv 2606.03458, algorithm 1, as vLLM's KVarN does it: standard deviations (n - 1) where the paper has
 * variances, scales accumulated and clipped as logarithms.
 * @param tile `[rows, columns]`, at least 2 x 2; rows are channels for K and tokens for V
 * @param iterations 0 leaves all scales 1
 */
export function normalize(
  tile: Float32Array,
  rows: number,
  columns: number,
  iterations: number,
): NormalizedTile {
  const logColumn = new Float64Array(columns);
  const logRow = new Float64Array(rows);
  let balanced = Float64Array.from(tile);
  let columnStd = columnDeviations(balanced, rows, columns);

  let best = { columnScale: new Float32Array(columns).fill(1), rowScale: new Float32Array(rows).fill(1) };
  let bestImbalance = spread(columnStd) + spread(rowDeviations(balanced, rows, columns));

  for (let iteration = 0; iteration < iterations; iteration++) {
    accumulate(logColumn, columnStd);
    balanced = divide(tile, logColumn.map(Math.exp), logRow.map(Math.exp));
    accumulate(logRow, rowDeviations(balanced, rows, columns));
    balanced = divide(tile, logColumn.map(Math.exp), logRow.map(Math.exp));

    columnStd = columnDeviations(balanced, rows, columns);
    const imbalance = spread(columnStd) + spread(rowDeviations(balanced, rows, columns));
    // Of equals the later, as in vLLM, which compares with <=.
    if (imbalance <= bestImbalance * TIE) {
      bestImbalance = imbalance;
      best = {
        columnScale: Float32Array.from(logColumn, Math.exp),
        rowScale: Float32Array.from(logRow, Math.exp),
      };
    }
  }
  return { ...best, balanced: Float32Array.from(divide(tile, best.columnScale, best.rowScale)) };
}

/** `tile / columnScale / rowScale` */
function divide(
  tile: Float32Array,
  columnScale: ArrayLike<number>,
  rowScale: ArrayLike<number>,
): Float64Array<ArrayBuffer> {
  const columns = columnScale.length;
  const result = new Float64Array(tile.length);
  for (let row = 0; row < rowScale.length; row++) {
    for (let column = 0; column < columns; column++) {
      const i = row * columns + column;
      result[i] = tile[i] / columnScale[column] / rowScale[row];
    }
  }
  return result;
}

/** Multiplies scales by standard deviations, as logarithms and within their limits. */
function accumulate(logScale: Float64Array, std: Float64Array): void {
  for (let i = 0; i < logScale.length; i++) {
    logScale[i] = clip(logScale[i] + Math.log(clip(std[i], STD_RANGE)), LOG_SCALE_RANGE);
  }
}

function clip(x: number, [least, most]: readonly [number, number]): number {
  return Math.min(Math.max(x, least), most);
}

/** Largest over smallest standard deviation of one axis; the imbalance of a tile is the sum over both axes. */
function spread(std: Float64Array): number {
  return Math.max(...std) / Math.max(Math.min(...std), LEAST_STD);
}

/** Standard deviation of each column. */
export function columnDeviations(tile: Float64Array, rows: number, columns: number): Float64Array {
  return Float64Array.from({ length: columns }, (_, column) => deviation(tile, column, columns, rows));
}

/** Standard deviation of each row. */
export function rowDeviations(tile: Float64Array, rows: number, columns: number): Float64Array {
  return Float64Array.from({ length: rows }, (_, row) => deviation(tile, row * columns, 1, columns));
}

/**
 * Unbiased standard deviation of `count` elements, `stride` apart. Taken around the first of them, so that it is exactly
 * zero where all are equal, and iterates of such a tile tie.
 */
function deviation(tile: Float64Array, start: number, stride: number, count: number): number {
  const end = start + count * stride;
  let sum = 0;
  for (let i = start; i < end; i += stride) sum += tile[i] - tile[start];
  const mean = tile[start] + sum / count;
  let squares = 0;
  for (let i = start; i < end; i += stride) squares += (tile[i] - mean) ** 2;
  return Math.sqrt(squares / (count - 1));
}
