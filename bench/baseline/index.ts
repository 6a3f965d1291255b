// What the benchmarks and `kvarn report` compare with: the same work without compression, in strict SIMD and tuned as
// the product's kernels are. No imports, no static data; memory below `heapStart` belongs to the kernels.

export { attend, storeKeys, storeValues, BLOCK } from "./attend";
export { pass } from "./pass";
export { prefill } from "./prefill";

export const heapStart: usize = __heap_base;
