import { codebook, lloydMaxLevels } from "./codebook.js";
import { checkBits, compose, type Method, type MethodBits } from "./method.js";
import { rotated } from "./rotated.js";

/**
 * TurboQuant's quantizer for least squared error: each token of a head divided by its norm, rotated, and every
 * coordinate rounded to the best levels for a normal distribution. 1 to 4 bits, 4 by default. Nothing is held exactly.
 * Not here: its second part (a sketch of the residual), mixed bits, and what vLLM does otherwise (values rounded evenly,
 * first and last layers exact).
 *
 * Source: arXiv 2504.19874; its rotation is random, here it is Hadamard's.
 */
export function turboquant(options: MethodBits = {}): Method {
  const { keyBits, valueBits } = checkBits("turboquant", options, { keyBits: 4, valueBits: 4 }, 1, 4);
  const quantizer = (bits: number) => rotated(codebook({ levels: lloydMaxLevels(bits), scale: "rms" }));
  return compose({
    name: "turboquant",
    source: "TurboQuant, arXiv 2504.19874",
    keyBits,
    valueBits,
    needs: { headDim: 16 },
    keys: () => quantizer(keyBits),
    values: () => quantizer(valueBits),
  });
}
