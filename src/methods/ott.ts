import { affine } from "./affine.js";
import { checkBits, compose, type Method, type MethodBits } from "./method.js";
import type { PoolOptions } from "./outlier-pool.js";

/** The pool of OTT. */
export const OTT_POOL: PoolOptions = { tokens: 3, displaced: 32, exemptLayers: 2 };

/** Tokens that are compressed together, and those that are exact besides. */
const GROUP = 128;
const RECENT = 32;

/**
 * OTT (outlier token tracing): KIVI's axes, with the 3 tokens of smallest keys held exactly from layer 2 on. Keys and
 * values leave together, 128 tokens at a time; a channel of these, or a token of a head, has one scale and zero point.
 * 2 bits by default.
 *
 * Source: arXiv 2505.10938, by its description.
 */
export function ott(options: MethodBits = {}): Method {
  const { keyBits, valueBits } = checkBits("ott", options, { keyBits: 2, valueBits: 2 }, 1, 8);
  return compose({
    name: "ott",
    source: "OTT, arXiv 2505.10938",
    keyBits,
    valueBits,
    needs: { tokens: GROUP },
    window: { recent: RECENT },
    keys: () => affine({ bits: keyBits, axis: "channel", group: GROUP }),
    values: ({ headDim }) => affine({ bits: valueBits, axis: "token", group: headDim }),
    pool: OTT_POOL,
  });
}
