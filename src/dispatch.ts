/** Opens an engine: which backend runs here, and why. */
import type { Backend, BackendKind } from "./backend.js";
import { checkInteger, describe, KvarnError } from "./errors.js";
import { Kvarn } from "./kvarn.js";
import type { openWasmBackend, WasmSource } from "./wasm/index.js";
import type { AdapterInfo, openWebGpuBackend } from "./webgpu/index.js";

/** What to open; by default whatever is fastest here. */
export interface OpenOptions {
  /**
   * `"auto"` (default) takes the fastest that runs here and never fails for want of one; another name takes that one or
   * throws. WebGPU is the fastest on a hardware adapter that answers quickly, and on a `device` of the caller.
   */
  backend?: "auto" | BackendKind;
  /**
   * Which build or arithmetic of the backend; default: the fastest one measured for this engine. WASM: `"strict"`,
   * `"relaxed"`, and either with `-f32`: attention in f32 throughout instead of 16-bit integer dots. WebGPU: `"f32"`.
   */
  variant?: string;
  /** A GPU device to work on, so that tensors can stay in its buffers. It stays the caller's. */
  device?: GPUDevice;
  /** Whether `"webgpu"` may take an adapter that computes on the CPU: for tests; WASM beats it. */
  allowSoftwareAdapter?: boolean;
  /** The WASM module, where the inlined one may not be compiled (Cloudflare Workers): `kvarn/kvarn.wasm`. */
  wasm?: WasmSource;
  /**
   * How many threads WASM attends and encodes on, the caller's included: 1 (default) to 64. More than one need workers
   * and SharedArrayBuffer, which pages have only when they are cross-origin isolated. `"auto"` that takes WebGPU starts
   * none.
   */
  threads?: number;
}

/** What an engine runs on. */
export interface BackendInfo {
  /** Which of the backends. */
  kind: BackendKind;
  /** Which build or arithmetic of it, as {@link OpenOptions.variant} names them. */
  variant: string;
  /** Why this one, and why not those that would have come before it. */
  reason: string;
  /** The GPU adapter, where one is used. */
  adapter?: AdapterInfo;
}

/** What there is to choose from; an entry point of the package has all of them or one. */
export interface Engines {
  readonly webgpu?: typeof openWebGpuBackend;
  readonly wasm?: typeof openWasmBackend;
  readonly reference?: () => Backend;
}

/** More than any machine that this was measured on has cores. */
const MOST_THREADS = 64;

const CHOICES = ["auto", "webgpu", "wasm", "reference"] as const;

/**
 * A GPU that takes longer for the least of calls is not worth it to callers with typed arrays: WASM attends to a thousand
 * tokens of a layer in about that time. Browsers differ by a factor of a thousand.
 */
const MOST_ROUND_TRIP_MS = 0.5;

/**
 * Opens one of these engines.
 * @throws {KvarnError} `invalid-argument`; `backend-unavailable` when the backend or variant asked for cannot run here
 */
export async function openEngine(engines: Engines, options: OpenOptions = {}): Promise<Kvarn> {
  if (typeof options !== "object" || options === null) {
    throw new KvarnError("invalid-argument", `options must be an object, got ${describe(options)}`);
  }
  const { backend = "auto", variant, device, threads = 1 } = options;
  checkInteger("threads", threads, 1, MOST_THREADS);
  if (!CHOICES.includes(backend)) {
    throw new KvarnError(
      "invalid-argument",
      `backend must be one of ${CHOICES.map((choice) => `"${choice}"`).join(", ")}, got ${describe(backend)}`,
    );
  }
  if (device !== undefined) {
    if (backend !== "auto" && backend !== "webgpu")
      throw new KvarnError(
        "invalid-argument",
        `device is for the webgpu backend, got ${describe(backend)}, too`,
      );
    if (typeof (device as Partial<GPUDevice>)?.createBuffer !== "function")
      throw new KvarnError("invalid-argument", `device must be a GPUDevice, got ${describe(device)}`);
  }
  if (threads > 1 && (device !== undefined || (backend !== "auto" && backend !== "wasm"))) {
    throw new KvarnError(
      "invalid-argument",
      `threads are for the wasm backend, got ${threads} for ${describe(device === undefined ? backend : "webgpu")}`,
    );
  }
  if (backend === "reference") return openReference(engines, variant);
  if (backend === "webgpu" || device !== undefined) return openWebGpu(engines, options);
  if (backend === "wasm") return openWasm(engines, options, "");
  return openFastest(engines, options);
}

/** Auto falls back for want of a backend, not for a mistake in the call. */
async function openFastest(engines: Engines, options: OpenOptions): Promise<Kvarn> {
  const { variant, threads = 1 } = options;
  if (!engines.wasm) return openWebGpu(engines, options);
  if (!engines.webgpu || variant !== undefined) return openWasm(engines, options, "");
  let whyNot: string;
  try {
    const { engine, reason, adapter } = await engines.webgpu({ allowSoftwareAdapter: false });
    const time = await engine.roundTrip().catch((error: unknown) => {
      engine.dispose();
      throw error;
    });
    const trip = `a call takes ${time.toFixed(2)} ms there and back`;
    if (time <= MOST_ROUND_TRIP_MS) return new Kvarn(engine, `${reason}; ${trip}`, adapter);
    engine.dispose();
    whyNot = `not WebGPU on ${reason}: ${trip}, more than ${MOST_ROUND_TRIP_MS} ms`;
  } catch (error) {
    whyNot = `not WebGPU: ${(error as Error).message}`;
  }
  try {
    return await openWasm(engines, options, `; ${whyNot}`);
  } catch (error) {
    const mayGoOn = error instanceof KvarnError && error.code === "backend-unavailable" && threads === 1;
    if (!mayGoOn || !engines.reference) throw error;
    return new Kvarn(engines.reference(), `plain TypeScript, slow: ${error.message}; ${whyNot}`);
  }
}

async function openWebGpu(engines: Engines, options: OpenOptions): Promise<Kvarn> {
  const { engine, reason, adapter } = await present("webgpu", engines.webgpu)(options);
  return new Kvarn(engine, reason, adapter);
}

async function openWasm(
  engines: Engines,
  { variant, wasm, threads }: OpenOptions,
  whyNot: string,
): Promise<Kvarn> {
  const { engine, reason } = await present("wasm", engines.wasm)({ variant, wasm, threads });
  return new Kvarn(engine, reason + whyNot);
}

function openReference(engines: Engines, variant: string | undefined): Kvarn {
  const engine = present("reference", engines.reference)();
  if (variant !== undefined && variant !== engine.variant) {
    throw new KvarnError(
      "backend-unavailable",
      `the reference backend has one variant, "${engine.variant}", not ${describe(variant)}`,
    );
  }
  return new Kvarn(engine, "asked for by name");
}

function present<Open>(kind: BackendKind, open: Open | undefined): Open {
  if (open !== undefined) return open;
  throw new KvarnError(
    "backend-unavailable",
    `this entry point of the package has no ${kind} backend: import from "kvarn", which has them all`,
  );
}
