import { checkIterations } from "../config.js";
import { parsePreset } from "../format.js";
import { dualScale } from "./dual-scale.js";
import { checkBits, compose, type Method, type MethodBits, type MethodParts } from "./method.js";
import { OTT_POOL } from "./ott.js";
import { rotated } from "./rotated.js";

/** Settings of KVarN. */
export interface KvarnOptions extends MethodBits {
  /** Tokens of a tile, 64 or 128, and of the sink. Default 128. */
  group?: number;
  /** Steps of the normalization. Default 8. */
  iterations?: number;
}

/**
 * KVarN, as the engines of this package compute it: keys and values rotated, tiles of `group` tokens balanced by two
 * scales, keys rounded per channel and values per token. The first `group` tokens are exact, and those that fill no tile.
 * 4 bits for keys and 2 for values by default.
 *
 * Source: arXiv 2606.03458 and its vLLM implementation (huawei-csl/KVarN).
 */
export function kvarn(options: KvarnOptions = {}): Method {
  return compose(kvarnParts("kvarn", "KVarN, arXiv 2606.03458", options));
}

/** KVarN with the pool of outlier tokens of OTT. */
export function kvarnOtt(options: KvarnOptions = {}): Method {
  const source = "KVarN, arXiv 2606.03458; pool of OTT, arXiv 2505.10938";
  return compose({ ...kvarnParts("kvarn+ott", source, options), pool: OTT_POOL });
}

function kvarnParts(name: string, source: string, options: KvarnOptions): MethodParts {
  const { keyBits, valueBits } = checkBits(name, options, { keyBits: 4, valueBits: 2 }, 2, 8);
  const { group } = parsePreset(`k${keyBits}v${valueBits}_g${options.group ?? 128}`);
  const iterations = checkIterations(options.iterations);
  return {
    name,
    source,
    keyBits,
    valueBits,
    needs: { tokens: group, headDim: 16 },
    window: { sink: group },
    keys: () => rotated(dualScale({ bits: keyBits, axis: "channel", group, iterations })),
    values: () => rotated(dualScale({ bits: valueBits, axis: "token", group, iterations })),
  };
}
