/**
 * The engines that tests run on. `KVARN_ENGINES` names the backends to take, separated by commas; default: all. A GPU that
 * is not there is named and left out, unless `KVARN_REQUIRE` is set.
 */
import { type Kvarn, openKvarn, type OpenOptions } from "../../src/index.js";
import { openWebGpuBackend, type WebGpuBackend } from "../../src/webgpu/index.js";

const chosen = process.env.KVARN_ENGINES?.split(",");

/** Whether tests are to run on a backend, as far as the environment says. */
export function isChosen(backend: string): boolean {
  return chosen === undefined || chosen.includes(backend);
}

/** A WebGPU backend of its own, on whatever adapter there is; undefined where there is none. */
export async function openGpuBackend(): Promise<WebGpuBackend | undefined> {
  if (!isChosen("webgpu")) return undefined;
  try {
    return (await openWebGpuBackend({ allowSoftwareAdapter: true })).engine;
  } catch (error) {
    if (process.env.KVARN_REQUIRE) throw error;
    console.warn(`webgpu is absent, its tests are left out: ${(error as Error).message}`);
    return undefined;
  }
}

const gpu = await openGpuBackend();
gpu?.dispose();

/** Whether tests run on a GPU, of hardware or software. */
export const hasGpu = gpu !== undefined;

/** Whether it is hardware, which "auto" may take. */
export const hasHardwareGpu = await openWebGpuBackend({}).then(
  ({ engine }) => {
    engine.dispose();
    return true;
  },
  () => false,
);

const candidates: OpenOptions[] = [
  { backend: "reference" },
  { backend: "wasm", variant: "strict" },
  { backend: "wasm", variant: "strict-f32" },
  ...(hasGpu ? [{ backend: "webgpu", allowSoftwareAdapter: true } as const] : []),
];

/** Every backend and variant that runs here, each opened once. */
export async function openEngines(): Promise<Kvarn[]> {
  return Promise.all(candidates.filter(({ backend }) => isChosen(backend!)).map(openKvarn));
}
