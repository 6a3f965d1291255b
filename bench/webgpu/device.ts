/** A device for peers. */
import { findAdapter, makeDawn, openDevice } from "../../src/webgpu/adapter.js";

/**
 * A device that has nothing of ours: in Node, ours does not clear workgroup memory before kernels, and those of others count on
 * that.
 */
export async function openPeerDevice(): Promise<GPUDevice> {
  const { gpu } = (globalThis as { navigator?: { gpu?: GPU } }).navigator ?? {};
  const adapter = await findAdapter(gpu ?? (await makeDawn([])));
  return openDevice(adapter!);
}
