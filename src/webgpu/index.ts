/** The WebGPU backend: one device, its buffers, and the kernels on it. */
import type { Backend, Budget, Normalized, Packed, Store, StoreShape, TileShape } from "../backend.js";
import { describe, KvarnError } from "../errors.js";
import { rotationBlock } from "../format.js";
import {
  type AdapterInfo,
  describeAdapter,
  findAdapter,
  findGpu,
  offersMatrixUnits,
  openDevice,
} from "./adapter.js";
import { normalize, pack } from "./encode.js";
import { type Binding, floatBits, Gpu, grid } from "./gpu.js";
import { loadLateShaders } from "./kernel.js";
import { GpuStore } from "./store.js";

export type { AdapterInfo } from "./adapter.js";

/** The one way in which this backend computes. */
const VARIANT = "f32";

/** Bytes of tiles that the single kernels work on at a time. */
const PART_BYTES = 1 << 24;

export interface WebGpuOptions {
  variant?: string;
  device?: GPUDevice;
  allowSoftwareAdapter?: boolean;
}

/** An open backend, and what it runs on. */
export interface OpenedWebGpu {
  engine: WebGpuBackend;
  adapter: AdapterInfo;
  reason: string;
}

/**
 * Opens the WebGPU backend on the caller's device, or on one of its own.
 * @throws {KvarnError} `backend-unavailable`
 */
export async function openWebGpuBackend(options: WebGpuOptions): Promise<OpenedWebGpu> {
  const { variant = VARIANT, device } = options;
  if (variant !== VARIANT) {
    throw new KvarnError(
      "backend-unavailable",
      `the webgpu backend has one variant, "${VARIANT}", not ${describe(variant)}`,
    );
  }
  if (device) {
    const adapter = describeAdapter(device.adapterInfo);
    return {
      engine: new WebGpuBackend(await openGpu(device), false),
      adapter,
      reason: "on the caller's device",
    };
  }
  const { gpu, by } = await findGpu();
  const found = await findAdapter(gpu);
  if (!found) throw new KvarnError("backend-unavailable", `${by} finds no GPU adapter`);
  const adapter = describeAdapter(found.info);
  if (adapter.software && options.allowSoftwareAdapter !== true) {
    throw new KvarnError(
      "backend-unavailable",
      `the only GPU adapter is ${nameOf(adapter)}, software, which WASM beats; allowSoftwareAdapter takes it all the same`,
    );
  }
  try {
    const engine = new WebGpuBackend(await openGpu(await openDevice(found)), true);
    return { engine, adapter, reason: `${nameOf(adapter)} by ${by}` };
  } catch (cause) {
    throw new KvarnError("backend-unavailable", `${nameOf(adapter)} gives no device: ${String(cause)}`, {
      cause,
    });
  }
}

async function openGpu(device: GPUDevice): Promise<Gpu> {
  const gpu = new Gpu(device);
  if (offersMatrixUnits(device)) {
    const { tryMatrixUnits } = await import("./matrix.js");
    gpu.matrixUnits = await tryMatrixUnits(gpu);
  }
  return gpu;
}

/** An adapter in a few words. */
export function nameOf({ description, device, architecture, vendor }: AdapterInfo): string {
  return description || device || `${vendor} ${architecture}`.trim() || "an unnamed GPU";
}

export class WebGpuBackend implements Backend {
  readonly kind = "webgpu";
  readonly variant = VARIANT;
  readonly tilesAtOnce = 64;
  readonly #gpu: Gpu;
  readonly #ownsDevice: boolean;

  constructor(gpu: Gpu, ownsDevice: boolean) {
    this.#gpu = gpu;
    this.#ownsDevice = ownsDevice;
  }

  rotate(x: Float32Array, headDim: number, out: Float32Array): Promise<void> {
    const kernel = this.#gpu.kernel("rotate", { D: headDim, BLOCK: rotationBlock(headDim) });
    return this.#inParts(x.length / headDim, 4 * headDim, async (from, rows) => {
      const data = this.#input("x", x.subarray(from * headDim, (from + rows) * headDim));
      this.#gpu.dispatch({
        kernel,
        params: [rows, floatBits(1 / Math.sqrt(rotationBlock(headDim)))],
        bindings: [data],
        groups: grid(rows),
      });
      out.set(await this.#floats(data), from * headDim);
    });
  }

  async normalize(tiles: Float32Array, shape: TileShape, iterations: number, out: Normalized): Promise<void> {
    await loadLateShaders();
    const { rows, columns, count } = shape;
    const size = rows * columns;
    await this.#inParts(count, 4 * size, async (from, count) => {
      const input = this.#input("x", tiles.subarray(from * size, (from + count) * size));
      const balanced = this.#output("balanced", 4 * count * size);
      const rowScale = this.#output("rowScale", 4 * count * rows);
      const columnScale = this.#output("columnScale", 4 * count * columns);
      normalize(this.#gpu, input, { rows, columns, count }, iterations, { balanced, rowScale, columnScale });
      const read = await Promise.all([balanced, rowScale, columnScale].map((one) => this.#floats(one)));
      out.balanced.set(read[0], from * size);
      out.rowScale.set(read[1], from * rows);
      out.columnScale.set(read[2], from * columns);
    });
  }

  async pack(balanced: Float32Array, shape: TileShape, bits: number, out: Packed): Promise<void> {
    await loadLateShaders();
    const { rows, columns, count } = shape;
    const size = rows * columns;
    const packed = (size * bits) / 8;
    await this.#inParts(count, 4 * size, async (from, count) => {
      const input = this.#input("x", balanced.subarray(from * size, (from + count) * size));
      const codes = this.#output("codes", count * packed);
      const scale = this.#output("scale", 4 * count * rows);
      const zero = this.#output("zero", 4 * count * rows);
      pack(this.#gpu, input, { rows, columns, count }, bits, { codes, scale, zero });
      const read = await Promise.all([this.#bytes(codes), this.#floats(scale), this.#floats(zero)]);
      out.codes.set(read[0], from * packed);
      out.scale.set(read[1], from * rows);
      out.zero.set(read[2], from * rows);
    });
  }

  async unpackCodes(codes: Uint8Array, shape: TileShape, bits: number, out: Uint8Array): Promise<void> {
    await loadLateShaders();
    const { rows, columns, count } = shape;
    const size = rows * columns;
    const packed = (size * bits) / 8;
    const kernel = this.#gpu.kernel("unpack", { BITS: bits, COLUMNS: columns, RAW: 1 });
    await this.#inParts(count, size, async (from, count) => {
      const input = this.#input("codes", codes.subarray(from * packed, (from + count) * packed));
      const raw = this.#output("raw", count * size);
      this.#unpack(kernel, (count * size) / 4, [input, raw]);
      out.set(await this.#bytes(raw), from * size);
    });
  }

  async unpack(packed: Packed, shape: TileShape, bits: number, out: Float32Array): Promise<void> {
    await loadLateShaders();
    const { rows, columns, count } = shape;
    const size = rows * columns;
    const bytes = (size * bits) / 8;
    const kernel = this.#gpu.kernel("unpack", { BITS: bits, COLUMNS: columns, RAW: 0 });
    await this.#inParts(count, 4 * size, async (from, count) => {
      const codes = this.#input("codes", packed.codes.subarray(from * bytes, (from + count) * bytes));
      const scale = this.#input("scale", packed.scale.subarray(from * rows, (from + count) * rows));
      const zero = this.#input("zero", packed.zero.subarray(from * rows, (from + count) * rows));
      const values = this.#output("values", 4 * count * size);
      this.#unpack(kernel, count * size, [codes, scale, zero, values]);
      out.set(await this.#floats(values), from * size);
    });
  }

  createStore(shape: StoreShape, mayLeave: Budget, beside?: Store): Store {
    return new GpuStore(this.#gpu, shape, mayLeave, beside as GpuStore | undefined);
  }

  checkAlive(): void {
    this.#gpu.checkAlive();
  }

  run<T>(work: () => T, encoder?: GPUCommandEncoder): { result: T; settled: Promise<void> } {
    return this.#gpu.run(work, encoder);
  }

  checkRoom(): void {
    // What a device has is known when it has given it.
  }

  heldBytes(): number {
    return this.#gpu.heldBytes;
  }

  /** How long a small call takes from typed arrays to typed arrays, in ms: the median of a few. */
  async roundTrip(): Promise<number> {
    const x = new Float32Array(128);
    const times: number[] = [];
    for (let i = 0; i < 8; i++) {
      const start = performance.now();
      await this.rotate(x, 128, x);
      times.push(performance.now() - start);
    }
    return times.sort((a, b) => a - b)[3];
  }

  dispose(): void {
    this.#gpu.dispose();
    if (this.#ownsDevice) this.#gpu.device.destroy();
  }

  #unpack(kernel: ReturnType<Gpu["kernel"]>, count: number, bindings: Binding[]): void {
    const [x, y] = grid(Math.ceil(count / 64));
    this.#gpu.dispatch({ kernel, params: [count, x], bindings, groups: [x, y] });
  }

  /** Runs `work` for parts of `count` items of `bytes` bytes, one call each. */
  async #inParts(
    count: number,
    bytes: number,
    work: (from: number, count: number) => Promise<void>,
  ): Promise<void> {
    const most = Math.max(1, Math.floor(PART_BYTES / bytes));
    for (let from = 0; from < count; from += most) {
      const { result, settled } = this.#gpu.run(() => work(from, Math.min(most, count - from)));
      await Promise.all([result, settled]);
    }
  }

  #input(name: string, data: Float32Array | Uint8Array): Binding {
    const binding = this.#output(name, data.byteLength);
    this.#gpu.write(binding.buffer, 0, data as Uint8Array<ArrayBuffer>);
    return binding;
  }

  #output(name: string, bytes: number): Binding & { size: number } {
    return { buffer: this.#gpu.scratch(name, bytes), size: bytes };
  }

  #bytes({ buffer, size }: Binding): Promise<Uint8Array<ArrayBuffer>> {
    return this.#gpu.read(buffer, 0, size!);
  }

  async #floats(binding: Binding): Promise<Float32Array> {
    return new Float32Array((await this.#bytes(binding)).buffer);
  }
}
