/**
 * Methods of KV-cache compression behind one interface, for comparing them: what each gives back of keys and values,
 * and what it stores. In plain TypeScript, for accuracy and not for speed; the engines of this package are in `kvarn`.
 * @module
 */
export { KvarnError, type KvarnErrorCode } from "../errors.js";
export { affine, type AffineOptions } from "./affine.js";
export { MethodCache, type MethodCacheConfig, type MethodMemory } from "./cache.js";
export { codebook, type CodebookOptions, lloydMaxLevels, normalFloatLevels } from "./codebook.js";
export { createMethod, METHOD_NAMES, type MethodName } from "./create.js";
export { dualScale, type DualScaleOptions } from "./dual-scale.js";
export { f16 } from "./f16.js";
export { halfPrecision } from "./half-precision.js";
export { hadamardKivi, kivi, type KiviOptions } from "./kivi.js";
export { kvarn, kvarnOtt, type KvarnOptions } from "./kvarn.js";
export type { CompressedRange } from "./layer.js";
export {
  compose,
  type CompressedTokens,
  type Compressor,
  type HeadContext,
  type Method,
  type MethodBits,
  type MethodNeeds,
  type MethodParts,
  type MethodWindow,
  type Quantizer,
  type StoredRows,
} from "./method.js";
export { nqkv } from "./nqkv.js";
export { ott } from "./ott.js";
export { OutlierPool, type HeldTokens, type PoolOptions } from "./outlier-pool.js";
export { quarot, type QuarotOptions } from "./quarot.js";
export { queryAware, type QueryAwareOptions } from "./query-aware.js";
export { rotated } from "./rotated.js";
export { squat, type SquatOptions } from "./squat.js";
export { turboquant } from "./turboquant.js";
