/**
 * ONNX Runtime's WebAssembly module without the JavaScript around it. That copies every tensor on the CPU into the module's memory
 * and back at each run, the cache too, and passes no option of a provider that it does not know.
 */
import { inPage } from "../files.js";
import type { ElementType } from "./model.js";
import { importPackage } from "./packages.js";
import { PeerError } from "./peer.js";

/** What Emscripten made of it, as far as it is used. Numbers are addresses and handles; zero is none. */
interface OrtModule {
  readonly HEAPU8: Uint8Array<ArrayBuffer>;
  setValue(at: number, value: number, type: "i32" | "*"): void;
  getValue(at: number, type: "*"): number;
  UTF8ToString(at: number): string;
  stringToUTF8(text: string, at: number, bytes: number): void;
  lengthBytesUTF8(text: string): number;
  _malloc(bytes: number): number;
  _OrtInit(threads: number, logLevel: number): number;
  _OrtGetLastError(code: number, message: number): number;
  _OrtCreateSessionOptions(...options: (number | boolean)[]): number;
  _OrtAppendExecutionProvider(
    options: number,
    name: number,
    keys: number,
    values: number,
    count: number,
  ): number | Promise<number>;
  _OrtCreateSession(model: number, bytes: number, options: number): number | Promise<number>;
  _OrtCreateTensor(
    type: number,
    data: number,
    bytes: number,
    shape: number,
    dimensions: number,
    location: number,
  ): number;
  _OrtRun(
    session: number,
    inputNames: number,
    inputs: number,
    inputCount: number,
    outputNames: number,
    outputCount: number,
    outputs: number,
    options: number,
  ): number | Promise<number>;
  // Of the build with WebGPU.
  asyncInit?(): void;
  webgpuInit?(setDefault: (device: GPUDevice) => void): void;
  webgpuRegisterDevice?(device: GPUDevice): [id: number, instance: number, device: number];
  webgpuOnCreateSession?(session: number): void;
  webgpuRegisterBuffer?(buffer: GPUBuffer, session: number): number;
}

/** An input or output. */
export interface Value {
  readonly type: ElementType;
  readonly shape: readonly number[];
  readonly bytes: number;
  /** Where it lies: an address in the module's memory, or a buffer on its device. */
  readonly data: number | GPUBuffer;
}

/** A provider's options are those of its own documents, without their prefix. */
export interface GpuProvider {
  readonly device: GPUDevice;
  readonly options: Readonly<Record<string, number>>;
}

const ON_CPU = 1;
const ON_GPU = 4;
const ALL_OPTIMIZATIONS = 99;
const LOG_ERRORS = 3;

/** Dawn's bindings for Node refuse views of shared memory, which the module's is. */
function takeSharedMemory(queue: GPUQueue): void {
  const write = queue.writeBuffer.bind(queue);
  queue.writeBuffer = (buffer, offset, data, ...range) => {
    const isShared = data instanceof Uint8Array && data.buffer instanceof SharedArrayBuffer;
    write(buffer, offset, isShared ? data.slice() : data, ...range);
  };
}

/** One session in a module of its own, whose memory goes with it. */
export class OrtSession {
  readonly #module: OrtModule;
  #session = 0;

  private constructor(module: OrtModule) {
    this.#module = module;
  }

  /** @param gpu where to run it; default: on the CPU, in one thread */
  static async open(model: Uint8Array, gpu?: GpuProvider): Promise<OrtSession> {
    const file = `dist/ort-wasm-simd-threaded${gpu ? ".asyncify" : ""}.mjs`;
    type Factory = (settings: { numThreads: number }) => Promise<OrtModule>;
    const { default: make } = await importPackage<{ default: Factory }>("onnxruntime-web", file);
    const module = await make({ numThreads: 1 });
    const session = new OrtSession(module);
    session.#check(module._OrtInit(1, LOG_ERRORS));
    const options = module._OrtCreateSessionOptions(
      ...[ALL_OPTIMIZATIONS, true, true, 0, false, 0, 0, LOG_ERRORS, 0, 0],
    );
    if (gpu) await session.#useGpu(options, gpu);
    const at = session.allocate(model.length);
    module.HEAPU8.set(model, at);
    session.#session = session.#made(await module._OrtCreateSession(at, model.length, options));
    module.webgpuOnCreateSession?.(session.#session);
    return session;
  }

  async #useGpu(options: number, { device, options: given }: GpuProvider): Promise<void> {
    const module = this.#module;
    if (!inPage) takeSharedMemory(device.queue);
    module.asyncInit?.();
    module.webgpuInit!(() => {});
    const [deviceId, webgpuInstance, webgpuDevice] = module.webgpuRegisterDevice!(device);
    const all = { deviceId, webgpuInstance, webgpuDevice, ...given };
    const keys = this.#list(Object.keys(all).map((key) => this.#text(key)));
    const values = this.#list(Object.values(all).map((value) => this.#text(String(value))));
    const count = Object.keys(all).length;
    this.#check(await module._OrtAppendExecutionProvider(options, this.#text("WebGPU"), keys, values, count));
  }

  /** Takes memory of the module for good. */
  allocate(bytes: number): number {
    const at = this.#module._malloc(bytes) >>> 0;
    if (at === 0) throw new PeerError(`no ${Math.ceil(bytes / 2 ** 20)} MiB in its memory`);
    return at;
  }

  /** Bytes of the module's memory, as it is now: it moves when it grows. */
  bytes(at: number, length: number): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#module.HEAPU8.buffer, at, length);
  }

  floats(at: number, length: number): Float32Array<ArrayBuffer> {
    return new Float32Array(this.#module.HEAPU8.buffer, at, length);
  }

  /** Prepares runs over the same tensors, which stay where they are: an output may be an input. */
  bind(
    inputs: Readonly<Record<string, Value>>,
    outputs: Readonly<Record<string, Value>>,
  ): () => void | Promise<void> {
    const names = (values: object) => this.#list(Object.keys(values).map((name) => this.#text(name)));
    const handles = (values: Readonly<Record<string, Value>>) =>
      this.#list(Object.values(values).map((value) => this.#tensor(value)));
    const given = [names(inputs), handles(inputs), Object.keys(inputs).length] as const;
    const wanted = [names(outputs), Object.keys(outputs).length, handles(outputs)] as const;
    return () => {
      const status = this.#module._OrtRun(this.#session, ...given, ...wanted, 0);
      if (typeof status === "number") return this.#check(status);
      return status.then((code) => this.#check(code));
    };
  }

  #tensor({ type, shape, bytes, data }: Value): number {
    const module = this.#module;
    const onGpu = typeof data !== "number";
    const at = onGpu ? module.webgpuRegisterBuffer!(data, this.#session) : data;
    const dimensions = this.allocate(4 * Math.max(1, shape.length));
    shape.forEach((size, i) => module.setValue(dimensions + 4 * i, size, "i32"));
    const location = onGpu ? ON_GPU : ON_CPU;
    return this.#made(module._OrtCreateTensor(type, at, bytes, dimensions, shape.length, location));
  }

  #text(text: string): number {
    const bytes = this.#module.lengthBytesUTF8(text) + 1;
    const at = this.allocate(bytes);
    this.#module.stringToUTF8(text, at, bytes);
    return at;
  }

  #list(values: readonly number[]): number {
    const at = this.allocate(4 * values.length);
    values.forEach((value, i) => this.#module.setValue(at + 4 * i, value, "*"));
    return at;
  }

  #made(handle: number): number {
    if (handle === 0) this.#check(1);
    return handle;
  }

  #check(code: number): void {
    if (code === 0) return;
    const at = this.allocate(8);
    this.#module._OrtGetLastError(at, at + 4);
    throw new PeerError(this.#module.UTF8ToString(this.#module.getValue(at + 4, "*")));
  }
}
