import { KvarnError, describe } from "../errors.js";
import { affine } from "./affine.js";
import { checkBits, compose, type Method, type MethodBits } from "./method.js";
import { rotated } from "./rotated.js";

/** Settings of QuaRot's cache. */
export interface QuarotOptions extends MethodBits {
  /** Factor on the lowest and highest value of a token, above 0 and at most 1. Default 1, as in its code. */
  clip?: number;
}

/**
 * The cache of QuaRot: keys and values rotated by the Hadamard matrix, each token of a head rounded with one scale and
 * zero point. 4 bits by default. Nothing is held exactly. (QuaRot folds the rotation of values into weights.)
 *
 * Source: arXiv 2404.00456 and its code (spcl/QuaRot).
 */
export function quarot(options: QuarotOptions = {}): Method {
  const { keyBits, valueBits } = checkBits("quarot", options, { keyBits: 4, valueBits: 4 }, 1, 8);
  const clip: unknown = options.clip ?? 1;
  if (typeof clip !== "number" || !(clip > 0 && clip <= 1)) {
    throw new KvarnError(
      "invalid-argument",
      `quarot: clip must be above 0 and at most 1, got ${describe(clip)}`,
    );
  }
  return compose({
    name: "quarot",
    source: "QuaRot, arXiv 2404.00456",
    keyBits,
    valueBits,
    needs: { headDim: 16 },
    keys: ({ headDim }) => rotated(affine({ bits: keyBits, axis: "token", group: headDim, clip })),
    values: ({ headDim }) => rotated(affine({ bits: valueBits, axis: "token", group: headDim, clip })),
  });
}
