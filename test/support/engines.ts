/**
 * The engines that tests run on. `KVARN_ENGINES` names the backends to take, separated by commas; default: all. A GPU that
 * is not there is named and left out, unless `KVARN_REQUIRE` is set.
 */
import { type Kvarn, openKvarn, type OpenOptions } from "../../src/index.js";
import { describeAdapter, findAdapter, findGpu, openDevice } from "../../src/webgpu/adapter.js";

const chosen = process.env.KVARN_ENGINES?.split(",");

/** Whether tests are to run on a backend, as far as the environment says. */
export function isChosen(backend: string): boolean {
  return chosen === undefined || chosen.includes(backend);
}

/** A device for tests to share, and with it the pipelines made for it, or why there is none. */
async function openSharedDevice(): Promise<GPUDevice | undefined> {
  if (!isChosen("webgpu")) return undefined;
  try {
    const adapter = await findAdapter((await findGpu()).gpu);
    if (!adapter) throw new Error("no adapter");
    return await openDevice(adapter);
  } catch (error) {
    if (process.env.KVARN_REQUIRE) throw error;
    console.warn(`webgpu is absent, its tests are left out: ${(error as Error).message}`);
    return undefined;
  }
}

const device = await openSharedDevice();

/** Whether tests run on a GPU, of hardware or software. */
export const hasGpu = device !== undefined;

/** Whether it is hardware, which "auto" may take. */
export const hasHardwareGpu = device !== undefined && !describeAdapter(device.adapterInfo).software;

// Dawn in Node asks for events in every turn of the event loop. Where the GPU is software it needs the processor itself, so
// these turns come a millisecond apart.
if (hasGpu && !hasHardwareGpu) {
  const setLater = (callback: () => void) => setTimeout(callback, 1);
  globalThis.setImmediate = setLater as unknown as typeof setImmediate;
}

/** The device that tests share. Throws where there is none. */
export function sharedDevice(): GPUDevice {
  if (!device) throw new Error("no GPU");
  return device;
}

const candidates: OpenOptions[] = [
  { backend: "reference" },
  { backend: "wasm", variant: "strict" },
  { backend: "wasm", variant: "strict-f32" },
  ...(device ? [{ backend: "webgpu", device } as const] : []),
];

/** Every backend and variant that runs here, each opened once. */
export async function openEngines(): Promise<Kvarn[]> {
  return Promise.all(candidates.filter(({ backend }) => isChosen(backend!)).map(openKvarn));
}
