/** The kernel that benchmarks compare with computes attention, too. */
import { afterAll, describe, expect, it } from "vitest";
import { makeAttendF16 } from "../../bench/webgpu/attend-f16.js";
import { scoreTokens, softmax, weighTokens } from "../../src/cli/attention.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { Gpu } from "../../src/webgpu/gpu.js";
import { relativeError } from "../../src/conformance/compare.js";
import { hasGpu, sharedDevice } from "../support/engines.js";
import { bufferOf, runOn } from "../support/gpu.js";
import { randomArray } from "../support/random.js";

describe.skipIf(!hasGpu)("uncompressed attention in benchmarks", () => {
  if (!hasGpu) return;
  const gpu = new Gpu(sharedDevice());
  afterAll(() => gpu.dispose());

  it.each([100, 700])("is right over %i tokens", async (length) => {
    const [kvHeads, headDim] = [2, 64];
    const queryHeads = 4 * kvHeads;
    const halves = (seed: number) => Uint16Array.from(randomArray(kvHeads * length * headDim, seed), toHalf);
    const [k, v] = [halves(1), halves(2)];
    const q = new Float32Array(randomArray(queryHeads * headDim, 3));
    const out = bufferOf(gpu, new Float32Array(q.length));
    const kernel = await makeAttendF16(gpu, kvHeads, headDim);
    const qBuffer = { buffer: bufferOf(gpu, q) };
    const [keys, values] = [k, v].map((data) => ({ buffer: bufferOf(gpu, data) }));
    const result = await runOn(gpu, () => {
      kernel.attend(qBuffer, keys, values, length, { buffer: out });
      return gpu.read(out, 0, out.size);
    });

    const expected: number[] = [];
    for (let head = 0; head < queryHeads; head++) {
      const first = Math.floor(head / 4) * length * headDim;
      const [kRows, vRows] = [k, v].map((bits) => ({
        data: Float32Array.from(bits.subarray(first, first + length * headDim), fromHalf),
        ...{ heads: 1, headDim },
      }));
      const weights = new Float64Array(length);
      scoreTokens(q.subarray(head * headDim), kRows, 0, 1 / Math.sqrt(headDim), weights);
      softmax(weights);
      expected.push(...weighTokens(weights, vRows, 0));
    }
    expect(relativeError(new Float32Array(result.buffer), Float64Array.from(expected))).toBeLessThan(1e-5);
  });
});
