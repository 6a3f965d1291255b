/**
 * Matrix units: shaders that use them, and whether a device multiplies as they expect. Loaded only where one offers to: what they use is
 * an experiment of Dawn's, which may come to mean something else.
 */
import type { Gpu } from "./gpu.js";
import { addShaders } from "./kernel.js";
import { shaders } from "./matrix-inlined.js";

/** Rows of a left matrix, columns of a right one, and bytes of each. */
const SIDE = 16;
const BYTES = 32;
/** Any odd number: words that matrices are made of are its multiples. */
const SEED = 0x9e3779b1;

/** Invocations that say who is beside them, in subgroups of so many. */
const INVOCATIONS = 128;
const SUBGROUP = 32;

/** Whether a small product comes out right, and subgroups are of invocations side by side. */
export async function tryMatrixUnits(gpu: Gpu): Promise<boolean> {
  addShaders(shaders);
  gpu.device.pushErrorScope("validation");
  const kernel = gpu.kernel("matrix-probe", {});
  await kernel.made;
  await gpu.device.popErrorScope();
  if (!kernel.pipeline) return false;
  const bytes = (SIDE * SIDE + INVOCATIONS) * 4;
  const { result, settled } = gpu.run(() => {
    const sums = gpu.scratch("matrix-sums", bytes);
    gpu.dispatch({ kernel, params: [SEED], bindings: [{ buffer: sums }], groups: [1] });
    return gpu.read(sums, 0, bytes);
  });
  const [data] = await Promise.all([result, settled]);
  const right = new Int8Array(SIDE * BYTES * 2);
  const left = new Int8Array(SIDE * BYTES);
  for (const matrix of [left, right]) {
    const words = new Int32Array(matrix.buffer);
    words.forEach((_, i) => (words[i] = Math.imul(i + 1, SEED)));
  }
  const found = new Int32Array(data.buffer);
  return found.every((value, i) => {
    if (i >= SIDE * SIDE) {
      const invocation = i - SIDE * SIDE;
      return value === (invocation | (SUBGROUP - 1)) * 256 + (invocation ^ 1);
    }
    const row = left.subarray(Math.floor(i / SIDE) * BYTES);
    const column = right.subarray((i % SIDE) * 2 * BYTES);
    let expected = 0;
    for (let k = 0; k < BYTES; k++) expected += row[k] * column[k];
    return value === expected;
  });
}
