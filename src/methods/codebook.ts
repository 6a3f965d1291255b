import { roundToHalf } from "./half-precision.js";
import type { Quantizer } from "./method.js";

/**
 * Levels of least mean squared error for the normal distribution (Lloyd-Max), by bits; the positive half, ascending.
 *
 * Source: S. Lloyd and J. Max; as TurboQuant, arXiv 2504.19874, uses them.
 */
const LLOYD_MAX: Readonly<Record<number, readonly number[]>> = {
  1: [0.797885],
  2: [0.452778, 1.510435],
  3: [0.245117, 0.756087, 1.344005, 2.152026],
  4: [0.128286, 0.38778, 0.656368, 0.941869, 1.255725, 1.617537, 2.068532, 2.732169],
};

/**
 * NormalFloat: quantiles of the normal distribution, scaled to -1 to 1, with an exact zero.
 *
 * Source: QLoRA, arXiv 2305.14314; 3 bits as in KVQuant, arXiv 2401.18079.
 */
const NORMAL_FLOAT: Readonly<Record<number, readonly number[]>> = {
  3: [-1, -0.53502, -0.24693, 0, 0.18334, 0.38199, 0.62299, 1],
  4: [
    -1, -0.696193, -0.525073, -0.394917, -0.284441, -0.184773, -0.09105, 0, 0.07958, 0.16093, 0.246112,
    0.337915, 0.44071, 0.562617, 0.722957, 1,
  ],
};

/** Levels of least squared error for normal numbers of standard deviation 1, ascending; 1 to 4 bits. */
export function lloydMaxLevels(bits: number): readonly number[] {
  const positive = LLOYD_MAX[bits];
  return [...positive.map((level) => -level).reverse(), ...positive];
}

/** The levels of NormalFloat, from -1 to 1, ascending; 3 or 4 bits. */
export function normalFloatLevels(bits: number): readonly number[] {
  return NORMAL_FLOAT[bits];
}

/** How a codebook quantizer scales and rounds. */
export interface CodebookOptions {
  /** Ascending. How many there are says how many bits a code has. */
  readonly levels: readonly number[];
  /** What the elements of a token are divided by first: their largest magnitude, or their root mean square. */
  readonly scale: "absmax" | "rms";
}

/**
 * Divides each token by one scale, held in binary16, and rounds its elements to the nearest level, the lower one of two
 * as near. What the levels themselves take is not counted: they are constants of the method.
 */
export function codebook({ levels, scale }: CodebookOptions): Quantizer {
  const bits = Math.ceil(Math.log2(levels.length));
  const borders = Float64Array.from(levels.slice(1), (level, i) => (level + levels[i]) / 2);
  const measure = scale === "absmax" ? largestMagnitude : rootMeanSquare;
  return (rows, headDim) => {
    const tokens = rows.length / headDim;
    const lines = Array.from({ length: tokens }, (_, i) => rows.subarray(i * headDim, (i + 1) * headDim));
    const scales = roundToHalf(Float32Array.from(lines, measure));
    const result = new Float32Array(rows.length);
    for (let i = 0; i < rows.length; i++) {
      const by = scales[Math.floor(i / headDim)];
      // Of a token of zeros, and of one too small for binary16, zeros come back.
      if (by === 0) continue;
      const x = rows[i] / by;
      let code = 0;
      while (code < borders.length && x > borders[code]) code++;
      result[i] = by * levels[code];
    }
    return { rows: result, bits: rows.length * bits + tokens * 16 };
  };
}

function largestMagnitude(line: Float32Array): number {
  return line.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

function rootMeanSquare(line: Float32Array): number {
  return Math.sqrt(line.reduce((sum, value) => sum + value * value, 0) / line.length);
}
