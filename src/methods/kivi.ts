import { checkInteger, KvarnError } from "../errors.js";
import { affine } from "./affine.js";
import { checkBits, compose, type Method, type MethodBits, type MethodParts } from "./method.js";
import { rotated } from "./rotated.js";

/** Settings of KIVI, and of what goes along its axes. */
export interface KiviOptions extends MethodBits {
  /** Elements that share a scale and a zero point. Default 32. */
  group?: number;
  /** Newest values that are held exactly, and keys that are compressed together. Default 128. */
  residual?: number;
}

/**
 * KIVI: keys rounded per channel over `group` tokens, values per token over `group` channels. Of keys the newest 1 to
 * `residual` are exact, of values always `residual`. 2 bits by default.
 *
 * Source: arXiv 2402.02750 and its code (jy-yuan/KIVI): groups of 32; a residual of 128, or of 32 in some of its
 * experiments.
 */
export function kivi(options: KiviOptions = {}): Method {
  return compose(kiviParts("kivi", "KIVI, arXiv 2402.02750", options));
}

/** Keys and values rotated by the Hadamard matrix as in QuaRot, then rounded along KIVI's axes. */
export function hadamardKivi(options: KiviOptions = {}): Method {
  const source = "rotation of QuaRot, arXiv 2404.00456; axes of KIVI, arXiv 2402.02750";
  const parts = kiviParts("hadamard+kivi", source, options);
  return compose({
    ...parts,
    // What divides the head size is a power of two in the rotation.
    needs: { ...parts.needs, headDim: leastCommonMultiple(parts.needs?.headDim ?? 1, 16) },
    keys: (head) => rotated(parts.keys(head)),
    values: (head) => rotated(parts.values(head)),
  });
}

/** The parts of KIVI, for methods that change some of them. */
export function kiviParts(name: string, source: string, options: KiviOptions): MethodParts {
  const { keyBits, valueBits } = checkBits(name, options, { keyBits: 2, valueBits: 2 }, 1, 8);
  const group = checkInteger(`${name}: group`, options.group ?? 32, 2, 512);
  const residual = checkInteger(`${name}: residual`, options.residual ?? 128, group, 65_536);
  if (residual % group !== 0) {
    throw new KvarnError(
      "invalid-argument",
      `${name}: residual must be a multiple of group (${group}), got ${residual}`,
    );
  }
  return {
    name,
    source,
    keyBits,
    valueBits,
    needs: { tokens: group, headDim: group },
    window: { block: residual, recentValues: residual },
    keys: () => affine({ bits: keyBits, axis: "channel", group }),
    values: () => affine({ bits: valueBits, axis: "token", group }),
  };
}

function leastCommonMultiple(a: number, b: number): number {
  let multiple = a;
  while (multiple % b !== 0) multiple += a;
  return multiple;
}
