import { normalize } from "../reference/normalize.js";
import { quantize } from "../reference/pack.js";
import { absorb } from "../reference/record.js";
import { checkGroups } from "./groups.js";
import { roundToHalf } from "./half-precision.js";
import type { Quantizer } from "./method.js";

/** How tiles are balanced and rounded. */
export interface DualScaleOptions {
  /** Bits of one code, 1 to 8. */
  readonly bits: number;
  /** What has a scale and a zero point of rounding: channels, as of K, or tokens, as of V. */
  readonly axis: "channel" | "token";
  /** Tokens of a tile; at least 2, divides the tokens. */
  readonly group: number;
  /** Steps of the normalization; 0 leaves tiles as they are. */
  readonly iterations: number;
}

/**
 * Rounds rows to binary16, divides each tile by a scale per row and one per column that make both axes even, and rounds
 * its channels or tokens to evenly spaced values. Stored are codes, and in binary16 two scales and a zero point: the
 * half of a record of KVarN that is K's, or V's.
 *
 * Source: KVarN, arXiv 2606.03458.
 */
export function dualScale({ bits, axis, group, iterations }: DualScaleOptions): Quantizer {
  return (rows, headDim) => {
    checkGroups(group, rows.length / headDim, "tokens");
    const result = new Float32Array(rows.length);
    const size = group * headDim;
    const [height, width] = axis === "channel" ? [headDim, group] : [group, headDim];
    for (let first = 0; first < rows.length; first += size) {
      const tile = roundToHalf(rows.subarray(first, first + size));
      const oriented = axis === "channel" ? transpose(tile, group, headDim) : tile;
      const decoded = roundTile(oriented, height, width, bits, iterations);
      result.set(axis === "channel" ? transpose(decoded, headDim, group) : decoded, first);
    }
    const tiles = rows.length / size;
    return { rows: result, bits: rows.length * bits + tiles * 16 * (2 * height + width) };
  };
}

/** Encodes and decodes one tile `[height, width]`. */
function roundTile(
  tile: Float32Array,
  height: number,
  width: number,
  bits: number,
  iterations: number,
): Float32Array {
  const normalized = normalize(tile, height, width, iterations);
  const quantized = quantize(normalized.balanced, height, width, bits);
  const scales = absorb(normalized, quantized);
  const rowScale = roundToHalf(scales.rowScale);
  const rowZero = roundToHalf(scales.rowZero);
  const columnScale = roundToHalf(scales.columnScale);
  const decoded = new Float32Array(tile.length);
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i++) {
      decoded[i] = (quantized.codes[i] * rowScale[row] + rowZero[row]) * columnScale[column];
    }
  }
  return decoded;
}

/** `[rows, columns]` to `[columns, rows]` */
function transpose(matrix: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(matrix.length);
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, i++) result[column * rows + row] = matrix[i];
  }
  return result;
}
