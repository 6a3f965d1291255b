/**
 * The package with the WASM engine alone, `"auto"` and `"wasm"` in {@link OpenOptions}: for programs that count bytes
 * and run on CPUs.
 * @module
 */
import { openEngine, type OpenOptions } from "./dispatch.js";
import type { Kvarn } from "./kvarn.js";
import { openWasmBackend } from "./wasm/index.js";

export * from "./api.js";

/**
 * Opens the WASM engine.
 * @throws {KvarnError} `invalid-argument`; `backend-unavailable` when the backend or variant asked for cannot run here
 */
export function openKvarn(options?: OpenOptions): Promise<Kvarn> {
  return openEngine({ wasm: openWasmBackend }, options);
}
