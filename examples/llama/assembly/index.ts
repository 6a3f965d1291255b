// The decoder's matrix products, in strict SIMD. No imports; memory from `heapStart` on is the caller's.

export { dequantize } from "./dequantize";
export { multiply } from "./multiply";

export const heapStart: usize = __heap_base;
