/** Where WebGPU comes from on this runtime, and a device of our own. */
import { KvarnError } from "../errors.js";

/** A way to WebGPU that this runtime offers. */
export interface Entry {
  readonly gpu: GPU;
  /** In a few words. */
  readonly by: string;
}

/** The npm package that brings WebGPU (Dawn) to Node and Bun: an optional peer, and nothing for bundlers to follow. */
const PACKAGE = "webgpu";

/**
 * Dawn's objects for Node, and adapters: were they garbage-collected while a device lives, the process would abort.
 */
const kept: unknown[] = [];
let dawn: Promise<Entry> | undefined;

/** WebGPU as this runtime has it. Throws `backend-unavailable` where it has none. */
export async function findGpu(): Promise<Entry> {
  const gpu = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
  if (gpu) return { gpu, by: "navigator.gpu" };
  const { process } = globalThis as { process?: { versions?: Record<string, string> } };
  if (!process?.versions?.node)
    throw new KvarnError("backend-unavailable", "this runtime has no navigator.gpu");
  return (dawn ??= loadDawn());
}

async function loadDawn(): Promise<Entry> {
  const gpu = await makeDawn([
    // Kernels here write what they read. Software adapters take seconds to compile the clearing of 16 KiB.
    "enable-dawn-features=disable_workgroup_init",
  ]);
  return { gpu, by: "the npm package webgpu" };
}

/** A Dawn of its own, with these options besides. Throws `backend-unavailable` where the package does not load. */
export async function makeDawn(options: readonly string[]): Promise<GPU> {
  let module: { create: (options: string[]) => GPU; globals: object };
  try {
    module = (await import(/* @vite-ignore */ /* webpackIgnore: true */ PACKAGE)) as typeof module;
  } catch (cause) {
    dawn = undefined;
    throw new KvarnError(
      "backend-unavailable",
      `this runtime has no navigator.gpu, and the npm package webgpu does not load`,
      { cause },
    );
  }
  for (const [name, value] of Object.entries(module.globals)) {
    if (!(name in globalThis))
      Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  }
  const gpu = module.create([
    // Times from a GPU's clock are of no use in steps of 65 us.
    "disable-dawn-features=timestamp_quantization",
    ...options,
  ]);
  kept.push(gpu);
  return gpu;
}

/** The GPU adapter; names as it gives them, empty where the runtime keeps them to itself. */
export interface AdapterInfo {
  /** Such as `nvidia`. */
  vendor: string;
  /** A family of devices, such as `hopper`. */
  architecture: string;
  /** An identifier that the vendor gave. */
  device: string;
  /** For people to read. */
  description: string;
  /** Whether it computes on the CPU. */
  software: boolean;
}

export function describeAdapter(info: GPUAdapterInfo): AdapterInfo {
  const { vendor, architecture, device, description } = info;
  const named = /swiftshader|llvmpipe|lavapipe|software/i.test(`${architecture} ${device} ${description}`);
  return { vendor, architecture, device, description, software: named || info.isFallbackAdapter === true };
}

/** The best adapter, or undefined when there is none. */
export async function findAdapter(gpu: GPU): Promise<GPUAdapter | undefined> {
  const adapter = (await gpu.requestAdapter({ powerPreference: "high-performance" })) ?? undefined;
  if (adapter) kept.push(adapter);
  return adapter;
}

/** Limits that are worth having as high as the adapter offers. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
] as const;

/** Dawn's experiment with matrix units. It offers it only where it was told to allow what is unsafe. */
const MATRIX_FEATURE = "chromium-experimental-subgroup-matrix" as string as GPUFeatureName;

/** Whether kernels on a device may use matrix units, as 32 invocations at a time; whether they then can, `matrix.ts` tells. */
export function offersMatrixUnits({ features, adapterInfo }: GPUDevice): boolean {
  const { subgroupMinSize, subgroupMaxSize } = adapterInfo;
  return features.has(MATRIX_FEATURE) && subgroupMinSize === 32 && subgroupMaxSize === 32;
}

/** A device of our own, with the adapter's highest limits and the optional features that kernels or timing can use. */
export async function openDevice(adapter: GPUAdapter): Promise<GPUDevice> {
  const requiredLimits = Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]]));
  const wanted: GPUFeatureName[] = ["timestamp-query", "subgroups", MATRIX_FEATURE];
  const requiredFeatures = wanted.filter((feature) => adapter.features.has(feature));
  return adapter.requestDevice({ label: "kvarn", requiredLimits, requiredFeatures });
}
