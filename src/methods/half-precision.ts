import { fromHalf, toHalf } from "../half.js";
import type { Quantizer } from "./method.js";

/** Values rounded to binary16, as a cache holds what it does not compress. */
export function roundToHalf(values: Float32Array): Float32Array {
  return values.map((value) => fromHalf(toHalf(value)));
}

/** Holds rows in binary16. */
export function halfPrecision(): Quantizer {
  return (rows) => ({ rows: roundToHalf(rows), bits: 16 * rows.length });
}
