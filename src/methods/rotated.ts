import { rotate } from "../reference/rotate.js";
import type { Quantizer } from "./method.js";

/** Rotates rows by the Hadamard matrix, and back what `inner` gives. Head sizes are multiples of 16 from 16 to 512. */
export function rotated(inner: Quantizer): Quantizer {
  return (rows, headDim) => {
    const stored = inner(rotate(rows, headDim), headDim);
    return { ...stored, rows: rotate(stored.rows, headDim) };
  };
}
