/** The WASM backend: one module instance, its memory, and the kernels on it. */
import type { Backend, BackendKind, Normalized, Packed, Store, StoreShape, TileShape } from "../backend.js";
import { KvarnError } from "../errors.js";
import { Heap } from "./heap.js";
import { type Kernels, loadKernels, type WasmSource, type WasmVariant } from "./module.js";
import { TILE_ELEMENTS, WasmStore } from "./store.js";
import { inTurn, type Tasks } from "./tasks.js";
import { Workspace } from "./workspace.js";

export type { WasmSource } from "./module.js";

/**
 * Opens the WASM backend.
 * @throws {KvarnError} `backend-unavailable`, `invalid-argument`
 */
export async function openWasmBackend(options: {
  variant?: string;
  wasm?: WasmSource;
  threads?: number;
}): Promise<{ engine: Backend; reason: string }> {
  const { threads = 1 } = options;
  if (threads > 1) {
    if (options.wasm !== undefined)
      throw new KvarnError("invalid-argument", "wasm is a module without threads: leave it out");
    const { openThreads } = await import("./threads.js");
    const { kernels, variant, reason, heap, tasks } = await openThreads(options.variant, threads);
    return { engine: new WasmBackend(kernels, variant, heap, tasks), reason };
  }
  const { kernels, variant, reason } = await loadKernels(options.variant, options.wasm);
  const heap = new Heap(kernels.memory, kernels.heapStart.value as number);
  return { engine: new WasmBackend(kernels, variant, heap, inTurn(kernels)), reason };
}

class WasmBackend implements Backend {
  readonly kind: BackendKind = "wasm";
  readonly variant: WasmVariant;
  readonly tilesAtOnce: number;
  #kernels: Kernels | undefined;
  readonly #heap: Heap;
  readonly #tasks: Tasks;
  readonly #workspace: Workspace;

  constructor(kernels: Kernels, variant: WasmVariant, heap: Heap, tasks: Tasks) {
    this.variant = variant;
    this.tilesAtOnce = tasks.tilesAtOnce;
    this.#kernels = kernels;
    this.#heap = heap;
    this.#tasks = tasks;
    this.#workspace = new Workspace(heap);
  }

  async rotate(x: Float32Array, headDim: number, out: Float32Array): Promise<void> {
    const kernels = this.#kernels!;
    const tile = kernels.tile.value as number;
    const step = Math.floor(TILE_ELEMENTS / headDim) * headDim;
    for (let at = 0; at < x.length; at += step) {
      const part = x.subarray(at, at + step);
      const staged = new Float32Array(kernels.memory.buffer, tile, part.length);
      staged.set(part);
      kernels.rotateRows(tile, part.length / headDim, headDim);
      out.set(staged, at);
    }
  }

  async normalize(tiles: Float32Array, shape: TileShape, iterations: number, out: Normalized): Promise<void> {
    const kernels = this.#kernels!;
    const { rows, columns } = shape;
    this.#eachTile(shape, (tile, i) => {
      const size = rows * columns;
      tile.set(tiles.subarray(i * size, (i + 1) * size));
      kernels.normalize(rows, columns, iterations);
      out.balanced.set(tile, i * size);
      out.rowScale.set(this.#floats(kernels.rowScale, rows), i * rows);
      out.columnScale.set(this.#floats(kernels.columnScale, columns), i * columns);
    });
  }

  async pack(balanced: Float32Array, shape: TileShape, bits: number, out: Packed): Promise<void> {
    const kernels = this.#kernels!;
    const { rows, columns } = shape;
    const packedBytes = (rows * columns * bits) / 8;
    this.#eachTile(shape, (tile, i) => {
      tile.set(balanced.subarray(i * tile.length, (i + 1) * tile.length));
      kernels.pack(rows, columns, bits);
      out.codes.set(this.#bytes(kernels.codes, packedBytes), i * packedBytes);
      out.scale.set(this.#floats(kernels.codeScale, rows), i * rows);
      out.zero.set(this.#floats(kernels.codeZero, rows), i * rows);
    });
  }

  async unpackCodes(codes: Uint8Array, shape: TileShape, bits: number, out: Uint8Array): Promise<void> {
    const kernels = this.#kernels!;
    const { rows, columns } = shape;
    const packedBytes = (rows * columns * bits) / 8;
    this.#eachTile(shape, (tile, i) => {
      this.#bytes(kernels.codes, packedBytes).set(codes.subarray(i * packedBytes, (i + 1) * packedBytes));
      kernels.unpackCodes(rows, columns, bits);
      out.set(this.#bytes(kernels.bytes, tile.length), i * tile.length);
    });
  }

  async unpack(
    { codes, scale, zero }: Packed,
    shape: TileShape,
    bits: number,
    out: Float32Array,
  ): Promise<void> {
    const kernels = this.#kernels!;
    const { rows, columns } = shape;
    const packedBytes = (rows * columns * bits) / 8;
    this.#eachTile(shape, (tile, i) => {
      this.#bytes(kernels.codes, packedBytes).set(codes.subarray(i * packedBytes, (i + 1) * packedBytes));
      this.#floats(kernels.codeScale, rows).set(scale.subarray(i * rows, (i + 1) * rows));
      this.#floats(kernels.codeZero, rows).set(zero.subarray(i * rows, (i + 1) * rows));
      kernels.unpack(rows, columns, bits);
      out.set(tile, i * tile.length);
    });
  }

  createStore(shape: StoreShape): Store {
    const f32 = this.variant.endsWith("-f32");
    return new WasmStore(this.#kernels!, this.#tasks, this.#heap, this.#workspace, shape, f32);
  }

  checkAlive(): void {
    this.#tasks.checkAlive();
  }

  run<T>(work: () => T): { result: T } {
    return { result: work() };
  }

  checkRoom(bytes: number): void {
    this.#heap.checkRoom(bytes);
  }

  heldBytes(): number {
    return this.#kernels?.memory.buffer.byteLength ?? 0;
  }

  dispose(): void {
    // The instance and its memory go with their last reference.
    this.#kernels = undefined;
    this.#tasks.dispose();
  }

  /** Runs `work` for every tile with a view of the kernels' tile memory. */
  #eachTile({ rows, columns, count }: TileShape, work: (tile: Float32Array, index: number) => void): void {
    const tile = this.#floats(this.#kernels!.tile, rows * columns);
    for (let i = 0; i < count; i++) work(tile, i);
  }

  #floats(address: WebAssembly.Global, length: number): Float32Array {
    return new Float32Array(this.#kernels!.memory.buffer, address.value as number, length);
  }

  #bytes(address: WebAssembly.Global, length: number): Uint8Array {
    return new Uint8Array(this.#kernels!.memory.buffer, address.value as number, length);
  }
}
