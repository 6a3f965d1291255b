/** What the refined encoder knows of queries, on the GPU. To be called within {@link Gpu.run}. */
import type { StoreShape } from "../backend.js";
import { rotationBlock } from "../format.js";
import { type Binding, floatBits, type Gpu } from "./gpu.js";
import type { GpuBlock } from "./pool.js";

/** Rows of a KV head that one dispatch goes through, one after another: a GPU that takes too long for one is lost. */
const ROWS_AT_ONCE = 4096;

/** Queries of a call as kernels see them: `[tokens, queryHeads, headDim]`, not rotated. */
export interface GpuQueries {
  readonly binding: Binding;
  /** Where they begin there, in 4-byte words. */
  readonly word: number;
  /** Whether they are binary16, two a word. */
  readonly half: boolean;
  readonly tokens: number;
  readonly queryHeads: number;
}

/** Makes of moments what `encode` needs of them. */
export function factorQueries(gpu: Gpu, { kvHeads, headDim }: StoreShape, moments: GpuBlock): Binding {
  const factors = { buffer: gpu.scratch("factors", kvHeads * headDim * headDim * 4) };
  gpu.dispatch({
    kernel: gpu.kernel("factor-queries", { D: headDim, THREADS: headDim > 128 ? 256 : 128 }),
    params: [moments.offset / 4],
    bindings: [{ buffer: moments.buffer }, factors],
    groups: [kvHeads],
  });
  return factors;
}

/** Adds queries to moments. */
export function addQueries(
  gpu: Gpu,
  { kvHeads, headDim }: StoreShape,
  { binding, word, half, tokens, queryHeads }: GpuQueries,
  moments: GpuBlock,
): void {
  const headsPerKvHead = queryHeads / kvHeads;
  const constants = { D: headDim, BLOCK: rotationBlock(headDim), ROWS: 4, HALF: Number(half) };
  const tokenWords = (queryHeads * headDim) / (half ? 2 : 1);
  const most = Math.ceil(ROWS_AT_ONCE / headsPerKvHead);
  for (let token = 0; token < tokens; token += most) {
    const rows = Math.min(most, tokens - token) * headsPerKvHead;
    gpu.dispatch({
      kernel: gpu.kernel("add-queries", constants),
      params: [word + token * tokenWords, rows, queryHeads, headsPerKvHead, floatBits(1), moments.offset / 4],
      bindings: [binding, { buffer: moments.buffer }],
      groups: [headDim / 16, headDim / 16, kvHeads],
    });
  }
}
