/**
 * KVarN for the web: an LLM's KV cache in 2 to 8 bits per value, in Node, Deno and browsers.
 * @module
 */
import { openEngine, type OpenOptions } from "./dispatch.js";
import type { Kvarn } from "./kvarn.js";
import { referenceBackend } from "./reference/index.js";
import { openWasmBackend } from "./wasm/index.js";
import { openWebGpuBackend } from "./webgpu/index.js";

export * from "./api.js";

/**
 * Opens an engine.
 * @throws {KvarnError} `invalid-argument`; `backend-unavailable` when the backend or variant asked for cannot run here
 */
export function openKvarn(options?: OpenOptions): Promise<Kvarn> {
  return openEngine(
    { webgpu: openWebGpuBackend, wasm: openWasmBackend, reference: referenceBackend },
    options,
  );
}
