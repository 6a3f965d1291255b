/** Work on a GPU for tests of single kernels. */
import type { Gpu } from "../../src/webgpu/gpu.js";

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
