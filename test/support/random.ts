/** Random numbers that are the same in every run. */
import { drawFrom, xorshift32 } from "../../src/conformance/input.js";

/** Spreads small seeds, 0 too, over the states of a generator. */
function state(seed: number): number {
  return (Math.imul(seed + 1, 0x9e3779b9) ^ 0x5bd1e995) | 1;
}

/**
 * About normal numbers of standard deviation 1.15 times `scale`. With a power of two for a scale they are exact in
 * binary16, unless they get too small for it.
 */
export function randomArray(length: number, seed: number, scale = 1): Float32Array {
  const draw = drawFrom(state(seed));
  return Float32Array.from({ length }, () => draw() * scale);
}

/** A function that picks integers from `least` to `most`, both included. */
export function randomIntegers(seed: number): (least: number, most: number) => number {
  const next = xorshift32(state(seed));
  return (least, most) => least + (next() % (most - least + 1));
}
