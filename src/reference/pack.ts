import { roundHalfEven } from "../half.js";

/** Least scale of a row, so that a constant one divides by something. */
const LEAST_SCALE = 1e-10;

/** Rows rounded to `code * scale + zero`. */
export interface Quantized {
  /** `[rows, columns]`, one byte each */
  readonly codes: Uint8Array;
  /** `[rows]` */
  readonly scale: Float32Array;
  /** `[rows]`: the smallest value of the row */
  readonly zero: Float32Array;
}

/**
 * Rounds each row to `2^bits` evenly spaced values between its smallest and its largest (asymmetric round-to-nearest),
 * ties to the even code. Every operation in f32, as vLLM's KVarN does it.
 * @param values `[rows, columns]`
 * @param bits 1 to 8
 */
export function quantize(values: Float32Array, rows: number, columns: number, bits: number): Quantized {
  const largestCode = 2 ** bits - 1;
  const codes = new Uint8Array(rows * columns);
  const scale = new Float32Array(rows);
  const zero = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    const line = values.subarray(row * columns, (row + 1) * columns);
    const lowest = Math.min(...line);
    const range = Math.fround(Math.max(...line) - lowest);
    scale[row] = Math.max(range / largestCode, LEAST_SCALE);
    zero[row] = lowest;
    for (let column = 0; column < columns; column++) {
      const steps = Math.fround(Math.fround(line[column] - lowest) / scale[row]);
      codes[row * columns + column] = Math.min(Math.max(roundHalfEven(steps), 0), largestCode);
    }
  }
  return { codes, scale, zero };
}

/**
 * `code * scale + zero`, rounded once to f32.
 * @param quantized codes as one byte each
 * @returns `[rows, columns]`
 */
export function dequantize({ codes, scale, zero }: Quantized): Float32Array {
  const columns = codes.length / scale.length;
  const values = new Float32Array(codes.length);
  for (let row = 0, i = 0; row < scale.length; row++) {
    for (let column = 0; column < columns; column++, i++) values[i] = codes[i] * scale[row] + zero[row];
  }
  return values;
}

/**
 * Writes codes as a little-endian bit stream, the first in the lowest bits. Rows of a tile fill whole bytes, so this
 * packs one row or many. For 2, 4 and 8 bits it is what vLLM's KVarN packs.
 * @param codes one byte each, below `2^bits`; `codes.length * bits` is a multiple of 8
 * @param bits 1 to 8
 */
export function packCodes(codes: Uint8Array, bits: number): Uint8Array {
  const packed = new Uint8Array((codes.length * bits) / 8);
  let at = 0;
  let pending = 0;
  let pendingBits = 0;
  for (const code of codes) {
    pending |= code << pendingBits;
    pendingBits += bits;
    if (pendingBits >= 8) {
      packed[at++] = pending & 0xff;
      pending >>= 8;
      pendingBits -= 8;
    }
  }
  return packed;
}

/**
 * Undoes {@link packCodes}.
 * @param packed whole rows
 * @param bits 1 to 8
 * @returns codes, one byte each
 */
export function unpackCodes(packed: Uint8Array, bits: number): Uint8Array {
  const codes = new Uint8Array((packed.length * 8) / bits);
  let at = 0;
  let pending = 0;
  let pendingBits = 0;
  for (let i = 0; i < codes.length; i++) {
    if (pendingBits < bits) {
      pending |= packed[at++] << pendingBits;
      pendingBits += 8;
    }
    codes[i] = pending & (2 ** bits - 1);
    pending >>= bits;
    pendingBits -= bits;
  }
  return codes;
}
