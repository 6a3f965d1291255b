import { codebook, normalFloatLevels } from "./codebook.js";
import { checkBits, compose, type Method, type MethodBits } from "./method.js";

/**
 * NQKV: each token of a head divided by its largest magnitude and rounded to the levels of NormalFloat, NF4 by default;
 * 3 bits (NF3) are ours. Nothing is held exactly.
 *
 * Source: arXiv 2505.16210, by its description, with one head for a block where it has 256 elements.
 */
export function nqkv(options: MethodBits = {}): Method {
  const { keyBits, valueBits } = checkBits("nqkv", options, { keyBits: 4, valueBits: 4 }, 3, 4);
  return compose({
    name: "nqkv",
    source: "NQKV, arXiv 2505.16210",
    keyBits,
    valueBits,
    keys: () => codebook({ levels: normalFloatLevels(keyBits), scale: "absmax" }),
    values: () => codebook({ levels: normalFloatLevels(valueBits), scale: "absmax" }),
  });
}
