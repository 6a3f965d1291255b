// What the engine calls: kernels over raw pointers. Callers check shapes; nothing is checked here.

export { attendExact, attendRecord, attendRecordF32, finishQueries, prepareQueries } from "./attend";
export { writeTokens } from "./exact";
export { keyNorms, sumTokens } from "./outliers";
export { decodeKeys, decodeValues, encodeKeys, encodeNewKeys, encodeNewValues, encodeValues } from "./record";
export { addQueries, factorQueries, refineKeys, refineValues } from "./refine";
export { rotateRows } from "./rotate";
export { hideTokens, setMask } from "./softmax";
export { normalize, pack, unpack, unpackCodes } from "./tiles";
export {
  BEST_COLUMN_SCALE as columnScale,
  BEST_ROW_SCALE as rowScale,
  CODE_SCALE as codeScale,
  CODE_ZERO as codeZero,
  END as heapStart,
  K_BYTES as bytes,
  TILE as tile,
  V_BYTES as codes,
} from "./memory";

// Whether this is the build with relaxed SIMD.
export const relaxed: bool = ASC_FEATURE_RELAXED_SIMD;
