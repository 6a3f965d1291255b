/** Finds a WASM build that runs here and instantiates it. */
import { describe, KvarnError } from "../errors.js";
import { type Build, type InlinedBuilds, readBuild } from "./builds.js";
import * as inlined from "./inlined.js";
import { canRunRelaxed, canRunSimd, paysRelaxed } from "./probe.js";

/** A compiled module or its bytes: `kvarn/kvarn.wasm` or `kvarn/kvarn-relaxed.wasm`. */
export type WasmSource = WebAssembly.Module | BufferSource | Response;

/** The kernels of `assembly/index.ts`. Pointers and sizes are plain numbers; see there for what each does. */
export interface Kernels {
  readonly memory: WebAssembly.Memory;
  readonly relaxed: WebAssembly.Global;
  readonly heapStart: WebAssembly.Global;
  readonly tile: WebAssembly.Global;
  readonly codes: WebAssembly.Global;
  readonly bytes: WebAssembly.Global;
  readonly rowScale: WebAssembly.Global;
  readonly columnScale: WebAssembly.Global;
  readonly codeScale: WebAssembly.Global;
  readonly codeZero: WebAssembly.Global;
  rotateRows(x: number, rows: number, headDim: number): void;
  normalize(rows: number, columns: number, iterations: number): void;
  pack(rows: number, columns: number, bits: number): void;
  unpackCodes(rows: number, columns: number, bits: number): void;
  unpack(rows: number, columns: number, bits: number): void;
  writeTokens(
    source: number,
    half: boolean,
    tokens: number,
    kvHeads: number,
    headDim: number,
    target: number,
    stride: number,
  ): number;
  encodeKeys(source: number, stride: number, ...tile: number[]): void;
  encodeValues(source: number, stride: number, ...tile: number[]): void;
  encodeNewKeys(source: number, stride: number, ...tile: number[]): number;
  encodeNewValues(source: number, stride: number, ...tile: number[]): number;
  refineKeys(source: number, stride: number, ...tile: number[]): void;
  refineValues(source: number, stride: number, ...tile: number[]): void;
  addQueries(
    source: number,
    half: boolean,
    tokens: number,
    perHead: number,
    stride: number,
    headDim: number,
    target: number,
  ): void;
  factorQueries(moment: number, headDim: number, target: number): number;
  keyNorms(keys: number, stride: number, tokens: number, headDim: number, target: number): void;
  sumTokens(source: number, stride: number, tokens: number, headDim: number, target: number): void;
  decodeKeys(headDim: number, group: number, bits: number, ...fields: number[]): void;
  decodeValues(headDim: number, group: number, bits: number, ...fields: number[]): void;
  prepareQueries(
    source: number,
    half: boolean,
    tokens: number,
    queryHeads: number,
    kvHeads: number,
    headDim: number,
    softmaxScale: number,
    queries: number,
    sums: number,
    states: number,
  ): void;
  setMask(queryHeadsPerKvHead: number, first: number, slidingWindow: number, cap: number): void;
  hideTokens(a: number, b: number, c: number, d: number): void;
  attendRecord(headDim: number, tokens: number, ...rest: number[]): void;
  attendRecordF32(headDim: number, tokens: number, ...rest: number[]): void;
  attendExact(headDim: number, tokens: number, ...rest: number[]): void;
  finishQueries(
    tokens: number,
    queryHeads: number,
    kvHeads: number,
    headDim: number,
    sinks: number,
    sums: number,
    states: number,
    target: number,
  ): void;
}

/** The builds and arithmetics: `-f32` attends to records in f32 instead of 16-bit integer dots. */
export const VARIANTS = ["strict", "strict-f32", "relaxed", "relaxed-f32"] as const;
export type WasmVariant = (typeof VARIANTS)[number];

/** Compiled once, however many engines are opened; compiling costs more than all else. */
const compiled = new Map<string, Promise<WebAssembly.Module>>();

/**
 * Instantiates the build of `variant`, or the best one here.
 * @throws {KvarnError} `backend-unavailable`, `invalid-argument`
 */
export async function loadKernels(
  wanted: string | undefined,
  source: WasmSource | undefined,
): Promise<{ kernels: Kernels; variant: WasmVariant; reason: string }> {
  if (source !== undefined) return loadGiven(source, checkVariant(wanted));
  const { variant, build, reason } = chooseVariant(wanted);
  const kernels = await instantiate(await compileInlined(build, inlined, build));
  return { kernels, variant, reason };
}

/**
 * The variant asked for, or the best one here, and its build.
 * @throws {KvarnError} `backend-unavailable`
 */
export function chooseVariant(wanted: string | undefined): {
  variant: WasmVariant;
  build: Build;
  reason: string;
} {
  const variant = checkVariant(wanted) ?? (paysRelaxed() && canRunRelaxed() ? "relaxed" : "strict");
  const build = variant.startsWith("relaxed") ? "relaxed" : "strict";
  if (build === "relaxed" && !canRunRelaxed()) throw unavailable("this runtime has no relaxed SIMD");
  return { variant, build, reason: wanted ? "asked for by name" : describeChoice(build) };
}

function checkVariant(wanted: string | undefined): WasmVariant | undefined {
  if (wanted !== undefined && !(VARIANTS as readonly string[]).includes(wanted)) {
    throw unavailable(
      `the wasm backend has the variants ${VARIANTS.map((name) => `"${name}"`).join(", ")}, not ${describe(wanted)}`,
    );
  }
  if (typeof WebAssembly === "undefined") throw unavailable("this runtime has no WebAssembly");
  if (!canRunSimd()) throw unavailable("this runtime's WebAssembly has no SIMD (simd128)");
  return wanted as WasmVariant | undefined;
}

function describeChoice(build: Build): string {
  if (build === "relaxed") return "SIMD with relaxed instructions, the faster build on this engine";
  return canRunRelaxed()
    ? "SIMD; this engine has relaxed instructions too, but they were not measured to pay on it"
    : "SIMD; this engine has no relaxed instructions";
}

async function loadGiven(
  source: WasmSource,
  wanted: WasmVariant | undefined,
): Promise<{ kernels: Kernels; variant: WasmVariant; reason: string }> {
  const kernels = await instantiate(await compileGiven(source));
  const build = kernels.relaxed?.value === 1 ? "relaxed" : "strict";
  const choice = wanted ?? build;
  if (!choice.startsWith(build)) {
    throw unavailable(
      `variant "${choice}" was asked for, but the module given in \`wasm\` is the ${build} build`,
    );
  }
  return { kernels, variant: choice, reason: "SIMD, from the module given" };
}

async function compileGiven(source: unknown): Promise<WebAssembly.Module> {
  if (source instanceof WebAssembly.Module) return source;
  try {
    return await WebAssembly.compile(await readBytes(source));
  } catch (cause) {
    if (cause instanceof KvarnError) throw cause;
    throw unavailable(`the module given in \`wasm\` cannot be compiled here: ${String(cause)}`, cause);
  }
}

async function readBytes(source: unknown): Promise<BufferSource> {
  if (source instanceof ArrayBuffer) return source;
  // Not every engine compiles from a DataView.
  if (ArrayBuffer.isView(source)) {
    return new Uint8Array(source.buffer as ArrayBuffer, source.byteOffset, source.byteLength);
  }
  if (typeof Response !== "undefined" && source instanceof Response) return source.arrayBuffer();
  throw new KvarnError(
    "invalid-argument",
    `wasm must be a WebAssembly.Module, its bytes or a Response, got ${describe(source)}`,
  );
}

/** @param name what the module is kept and complained of under */
export async function compileInlined(
  name: string,
  builds: InlinedBuilds,
  build: Build,
): Promise<WebAssembly.Module> {
  let module = compiled.get(name);
  if (!module) {
    module = compile(readBuild(builds, build));
    compiled.set(name, module);
  }
  try {
    return await module;
  } catch (cause) {
    compiled.delete(name);
    throw unavailable(
      `the ${name} module cannot be compiled here (${String(cause)}); a content security policy must have ` +
        "'wasm-unsafe-eval' in script-src, and where modules come with the program alone (Cloudflare Workers), pass " +
        "kvarn/kvarn.wasm as `wasm`",
      cause,
    );
  }
}

/** Async so that what a policy makes `compile` throw at once is a rejection, too. */
async function compile(bytes: Uint8Array<ArrayBuffer>): Promise<WebAssembly.Module> {
  return WebAssembly.compile(bytes);
}

export async function instantiate(
  module: WebAssembly.Module,
  imports?: WebAssembly.Imports,
): Promise<Kernels> {
  let kernels: Partial<Kernels>;
  try {
    kernels = (await WebAssembly.instantiate(module, imports)).exports;
  } catch (cause) {
    throw unavailable(`the module cannot be instantiated here: ${String(cause)}`, cause);
  }
  if (!(kernels.heapStart instanceof WebAssembly.Global)) {
    throw new KvarnError("invalid-argument", "the module given in `wasm` is not kvarn.wasm");
  }
  return kernels as Kernels;
}

export function unavailable(message: string, cause?: unknown): KvarnError {
  return new KvarnError("backend-unavailable", message, { cause });
}
