/** A device for peers. */
import { findAdapter, openDevice } from "../../src/webgpu/adapter.js";

/** Were they garbage-collected while a device lives, the process would abort. */
const kept: unknown[] = [];

/**
 * A device that has nothing of ours: in Node, ours does not clear workgroup memory before kernels, and those of others count on
 * that.
 */
export async function openPeerDevice(): Promise<GPUDevice> {
  const adapter = await findAdapter(await findGpu());
  return openDevice(adapter!);
}

async function findGpu(): Promise<GPU> {
  const gpu = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
  if (gpu) return gpu;
  const { create } = await import("webgpu");
  // Times are wanted in less than steps of 65 us.
  const made = create(["disable-dawn-features=timestamp_quantization"]);
  kept.push(made);
  return made;
}
