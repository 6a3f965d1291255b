/**
 * The package with the WebGPU engine alone, `"auto"` and `"webgpu"` in {@link OpenOptions}: for programs that count
 * bytes and do nothing without a GPU.
 * @module
 */
import { openEngine, type OpenOptions } from "./dispatch.js";
import type { Kvarn } from "./kvarn.js";
import { openWebGpuBackend } from "./webgpu/index.js";

export * from "./api.js";

/**
 * Opens the WebGPU engine.
 * @throws {KvarnError} `invalid-argument`; `backend-unavailable` when the backend or variant asked for cannot run here
 */
export function openKvarn(options?: OpenOptions): Promise<Kvarn> {
  return openEngine({ webgpu: openWebGpuBackend }, options);
}
