import { fromHalf, HALF_MAX, roundHalfEven, toHalf } from "../half.js";
import { normalize } from "./normalize.js";

/** A tile as a record holds it: `(code * rowScale + rowZero) * columnScale`. */
export interface RefinedTile {
  /** `[rows, columns]`, one byte each */
  readonly codes: Uint8Array;
  /** `[rows]`, as are all scales what binary16 holds */
  readonly rowScale: Float64Array;
  /** `[rows]` */
  readonly rowZero: Float64Array;
  /** `[columns]` */
  readonly columnScale: Float64Array;
}

/** What a row is to be rounded to so that it makes up for the errors of those before it. */
export interface Feedback {
  /** Rows in the order in which they are rounded. */
  readonly order: readonly number[];
  /** Changes a row's values, `[columns]`, to what is to be rounded. */
  correct(row: number, values: Float64Array): void;
  /** Takes note of the row's errors, `[columns]`: what decodes less what was to be encoded. */
  note(row: number, errors: Float64Array): void;
}

/** Ranges of codes that are tried for a row: each narrower than the one before by this share of it, divided by `2^bits`. */
const NARROWER = 0.4;
const RANGES = 4;
/**
 * Keys of more bits keep their whole range: there is less to gain, and what is clipped are the largest keys, to which attention may
 * be drawn.
 */
const MOST_NARROWED_KEY_BITS = 2;

/** How many ranges are tried for rows of K. */
export function keyRanges(bits: number): number {
  return bits > MOST_NARROWED_KEY_BITS ? 1 : RANGES;
}

/** Of the largest scale of a column: with the powers of two of the method, it stays finite. */
const MOST_COLUMN_EXPONENT = 14;

/** How much errors that queries see count against those that none does. */
const QUERY_WEIGHT = 10;

/**
 * How the errors of a channel of V decay from token to token, and how much of them a token makes up for: about what is best
 * where attention weighs neighbours half alike, and half as much of that 22 tokens further.
 */
const TOKEN_DECAY = Math.exp(-1 / 32);
const TOKEN_SHARE = 0.15;

/**
 * Rounds a tile with scales of its own choosing, for the same decoder. Columns have the scales of the dual-scale
 * normalization. Of each row, in order:
 *
 * 1. `feedback` changes what is to be rounded;
 * 2. for the row's whole range and for some that are a little narrower, values beyond clipped, codes are found, and for these
 *    the scale and zero point with which errors do not depend on values: those of least squares would be smaller, but
 *    shrink every row towards its mean, and so all scores and outputs;
 * 3. the range with the smallest squared error wins, its scale and zero point are rounded to binary16, and codes are chosen
 *    anew, the nearest there.
 *
 * @param tile `[rows, columns]`: finite binary16; rows are channels for K and tokens for V
 * @param bits 2 to 8
 * @param iterations of {@link normalize}
 * @param ranges how many are tried: see {@link keyRanges}
 */
export function refine(
  tile: Float32Array,
  rows: number,
  columns: number,
  bits: number,
  iterations: number,
  feedback: Feedback | undefined,
  ranges = RANGES,
): RefinedTile {
  const columnScale = columnScales(tile, rows, columns, iterations);
  const codes = new Uint8Array(rows * columns);
  const rowScale = new Float64Array(rows);
  const rowZero = new Float64Array(rows);
  const order = feedback?.order ?? Array.from({ length: rows }, (_, row) => row);
  for (const row of order) {
    const exact = Float64Array.from(tile.subarray(row * columns, (row + 1) * columns));
    const values = exact.slice();
    feedback?.correct(row, values);
    const balanced = values.map((value, column) => value / columnScale[column]);
    const { scale, zero } = fitRow(balanced, bits, ranges);
    [rowScale[row], rowZero[row]] = [scale, zero];
    const line = codes.subarray(row * columns, (row + 1) * columns);
    balanced.forEach((value, column) => {
      line[column] = nearestCode(value, scale, zero, bits);
    });
    feedback?.note(
      row,
      exact.map((value, column) => (line[column] * scale + zero) * columnScale[column] - value),
    );
  }
  return { codes, rowScale, rowZero, columnScale };
}

/** Scales of the columns as binary16 holds them, times a power of two so that those of the rows are in its range, too. */
function columnScales(tile: Float32Array, rows: number, columns: number, iterations: number): Float64Array {
  const scales = Float64Array.from(normalize(tile, rows, columns, iterations).columnScale);
  const largest = tile.reduce((most, value, i) => Math.max(most, Math.abs(value) / scales[i % columns]), 0);
  if (largest === 0) return scales.map(toHalfRange);
  // Half of the powers of two for either side, as far as the columns have room.
  const room = MOST_COLUMN_EXPONENT - exponentOf(Math.max(...scales));
  const share = Math.min(Math.floor(exponentOf(largest) / 2), room);
  return scales.map((scale) => toHalfRange(scale * 2 ** share));
}

function exponentOf(x: number): number {
  return Math.floor(Math.log2(x));
}

/** The scale and zero point of one row; see {@link refine}. */
function fitRow(values: Float64Array, bits: number, ranges: number): { scale: number; zero: number } {
  const lowest = Math.min(...values);
  const range = Math.max(...values) - lowest;
  const mean = average(values);
  const variance = average(values.map((value) => (value - mean) ** 2));
  let best = { scale: 0, zero: lowest, error: Infinity };
  for (let i = 0; i < ranges; i++) {
    const narrower = (i * NARROWER) / 2 ** bits;
    const step = (range * (1 - narrower)) / (2 ** bits - 1);
    const low = lowest + (range * narrower) / 2;
    const codes = values.map((value) => nearestCode(value, step, low, bits));
    const meanCode = average(codes);
    const spread = average(codes.map((code) => (code - meanCode) ** 2));
    const common = average(codes.map((code, i) => (code - meanCode) * (values[i] - mean)));
    if (!(common > 0)) continue;
    const scale = variance / common;
    const error = scale * scale * spread - variance;
    if (error < best.error) best = { scale, zero: mean - scale * meanCode, error };
  }
  const scale = toHalfRange(best.scale);
  // A scale too small for binary16 leaves all codes the same value.
  return { scale, zero: toHalfRange(scale === 0 ? mean : best.zero) };
}

function average(values: Float64Array): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function nearestCode(value: number, scale: number, zero: number, bits: number): number {
  if (scale === 0) return 0;
  return Math.min(Math.max(roundHalfEven((value - zero) / scale), 0), 2 ** bits - 1);
}

/** The nearest finite binary16. */
function toHalfRange(x: number): number {
  return fromHalf(toHalf(Math.min(Math.max(x, -HALF_MAX), HALF_MAX)));
}

/**
 * For V: errors of tokens near one another are to cancel in each channel, as attention adds up tokens, and often weighs
 * neighbours alike. What a token makes up for is a share of the errors before it, the older the less: as well as one
 * can without knowing those to come. Never more than half of `2^-bits` of the token's own length,
 * about a third of its own error: attention may be on a short token alone.
 * @param tokens rows of the tile
 * @param channels its columns
 * @param bits of a code
 */
export function tokenFeedback(tokens: number, channels: number, bits: number): Feedback {
  const owed = new Float64Array(channels);
  return {
    order: Array.from({ length: tokens }, (_, token) => token),
    correct(_, values) {
      const most = lengthOf(owed);
      if (most === 0) return;
      const share = Math.min(TOKEN_SHARE, lengthOf(values) / (most * 2 ** (bits + 1)));
      owed.forEach((error, channel) => (values[channel] -= share * error));
    },
    note(_, errors) {
      errors.forEach((error, channel) => (owed[channel] = TOKEN_DECAY * owed[channel] + error));
    },
  };
}

function lengthOf(vector: Float64Array): number {
  return Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));
}

/**
 * For K, where queries are known: channels make up for the errors of those before them as far as queries see both. With H
 * the moment of the queries, of trace 1, times ten and the channels, and one more on its diagonal,
 * `e^T H e` is what the errors e of a token do to its scores, and a little more so that errors stay small where no query
 * has looked yet. `H = U^T U`, and each channel, from the last on, takes what makes its own of these squares the smallest.
 *
 * Source of the idea: SQuat, arXiv 2503.24358, and GPTQ, arXiv 2210.17323; in the form of Babai's nearest plane.
 * @param moment `[headDim, headDim]`: see {@link addQuery}; its upper triangle is looked at
 * @param tokens columns of the tile
 * @returns undefined where no query was added, or where no queries add up to it
 */
export function queryFeedback(
  moment: ArrayLike<number>,
  headDim: number,
  tokens: number,
): Feedback | undefined {
  const factor = factorOf(moment, headDim);
  if (!factor) return undefined;
  const errors = new Float64Array(headDim * tokens);
  return {
    order: Array.from({ length: headDim }, (_, i) => headDim - 1 - i),
    correct(channel, values) {
      const own = factor[channel * headDim + channel];
      for (let later = channel + 1; later < headDim; later++) {
        const share = factor[channel * headDim + later] / own;
        const line = errors.subarray(later * tokens, (later + 1) * tokens);
        line.forEach((error, token) => (values[token] -= share * error));
      }
    },
    note(channel, line) {
      errors.set(line, channel * tokens);
    },
  };
}

/**
 * Adds a query to the moment of its KV head.
 * @param moment `[headDim, headDim]`
 * @param query rotated; it counts as if it were of length 1, and not at all where it is zero
 */
export function addQuery(moment: Float32Array, query: Float32Array): void {
  const largest = query.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  if (largest === 0) return;
  // Squares of the largest queries would be infinite in f32, the engines' sums.
  const unit = Float64Array.from(query, (x) => x / largest);
  const length = lengthOf(unit);
  unit.forEach((x, i) => unit.forEach((y, j) => (moment[i * unit.length + j] += (x * y) / length ** 2)));
}

/** U, upper triangular, of {@link queryFeedback}. */
function factorOf(moment: ArrayLike<number>, n: number): Float64Array | undefined {
  let trace = 0;
  for (let i = 0; i < n; i++) trace += moment[i * n + i];
  if (!(trace > 0)) return undefined;
  const factor = Float64Array.from(moment, (x) => (x * QUERY_WEIGHT * n) / trace);
  for (let i = 0; i < n; i++) factor[i * n + i] += 1;
  for (let i = 0; i < n; i++) {
    // At least 1, short of rounding; but a saved cache may hold what no queries add up to.
    if (!(factor[i * n + i] >= 0.5)) return undefined;
    const root = Math.sqrt(factor[i * n + i]);
    for (let j = 0; j < n; j++) factor[i * n + j] = j < i ? 0 : factor[i * n + j] / root;
    for (let row = i + 1; row < n; row++) {
      const share = factor[i * n + row];
      for (let j = row; j < n; j++) factor[row * n + j] -= share * factor[i * n + j];
    }
  }
  return factor;
}
