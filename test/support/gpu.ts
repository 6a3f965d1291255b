/** Work on a GPU for tests of single kernels. */
import { parsePreset, type RecordLayout, recordLayout } from "../../src/format.js";
import { toHalf } from "../../src/half.js";
import type { Gpu } from "../../src/webgpu/gpu.js";
import { makeTile, type Recipe, transpose } from "./tiles.js";

/** Runs work on the GPU and waits until the device has taken it. */
export async function runOn<T>(gpu: Gpu, work: () => T): Promise<Awaited<T>> {
  const { result, settled } = gpu.run(work);
  await settled;
  return await result;
}

/** A buffer with data in it. */
export function bufferOf(gpu: Gpu, data: ArrayBufferView<ArrayBuffer>): GPUBuffer {
  const size = Math.ceil(data.byteLength / 4) * 4;
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const buffer = gpu.device.createBuffer({ size, usage });
  gpu.device.queue.writeBuffer(buffer, 0, data.buffer, data.byteOffset, data.byteLength);
  return buffer;
}

/** Bits of `[tokens, heads, headDim]` K and V as exact blocks hold them: `[tokens, 2, heads, headDim]`. */
export function exactBits(k: Float32Array, v: Float32Array, perToken: number): Uint16Array<ArrayBuffer> {
  const bits = new Uint16Array(2 * k.length);
  k.forEach((x, i) => {
    const at = Math.floor(i / perToken) * 2 * perToken + (i % perToken);
    bits[at] = toHalf(x);
    bits[at + perToken] = toHalf(v[i]);
  });
  return bits;
}

/** K and V `[group, headDim]` of one head. */
export function makeInput(recipe: Recipe, { headDim, group }: RecordLayout, seed: number) {
  const keys = makeTile(recipe, headDim, group, seed);
  return [transpose(keys, headDim, group), makeTile(recipe, group, headDim, seed + 1)] as const;
}

export function layoutFor(headDim: number, group: number, keyBits: number, valueBits: number): RecordLayout {
  return recordLayout(parsePreset(`k${keyBits}v${valueBits}_g${group}`), headDim);
}
