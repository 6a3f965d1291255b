/**
 * A device and how work reaches it. A call collects steps; they are recorded in the order of the calls and submitted once
 * a call. While a pipeline is still being made, steps wait; otherwise they are recorded before the call returns.
 */
import { KvarnError, type KvarnErrorCode } from "../errors.js";
import { describeAdapter } from "./adapter.js";
import { type Kernel, kernelOn } from "./kernel.js";
import type { Constants } from "./shader.js";

/** Part of a buffer, as kernels see it. */
export interface Binding {
  readonly buffer: GPUBuffer;
  /** Bytes, a multiple of 256. Default 0. */
  readonly offset?: number;
  /** Bytes. Default: up to the end. */
  readonly size?: number;
}

export interface Dispatch {
  readonly kernel: Kernel;
  /** u32 words of the uniform at binding 0, at most 64; floats as {@link floatBits}. */
  readonly params: readonly number[];
  /** Storage at bindings 1, 2, …. */
  readonly bindings: readonly Binding[];
  /** Workgroups by dimension, at most 65,535 each. */
  readonly groups: readonly [x: number, y?: number, z?: number];
}

/** One step of a call. */
type Step = (recorder: Recorder) => void;

/** Data of a caller until it is uploaded: as it is, or a copy where that takes longer than the call. */
interface Input {
  data: ArrayBufferView<ArrayBuffer>;
}

interface Read {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly bytes: number;
  readonly resolve: (data: Uint8Array<ArrayBuffer>) => void;
  readonly reject: (error: unknown) => void;
}

/** What one call does. */
class Call {
  readonly steps: Step[] = [];
  readonly kernels = new Set<Kernel>();
  readonly inputs: Input[] = [];
  readonly reads: Read[] = [];
  /** Buffers to give back once the steps are submitted. */
  readonly retired: GPUBuffer[] = [];
  /** Names of the working buffers that it made. */
  readonly scratch: string[] = [];
  /** Bytes of the table buffer in use. */
  tableBytes = 0;
  /** Whether it made buffers, or uses a caller's, which the device may yet refuse. */
  uncertain = false;
  readonly settled: Promise<void>;
  settle!: (outcome: Promise<void>) => void;

  /**
   * @param encoder a caller's; ours are made as needed
   * @param before the call before this one, while it has not settled
   */
  constructor(
    readonly encoder: GPUCommandEncoder | undefined,
    public before: Call | undefined,
  ) {
    this.settled = new Promise((resolve) => (this.settle = resolve));
    // Whoever cares waits for it; nobody else needs to.
    this.settled.then(
      () => (this.before = undefined),
      () => {},
    );
  }

  get ready(): boolean {
    return [...this.kernels].every(({ pipeline }) => pipeline);
  }
}

const SLOT_BYTES = 256;
const SLOTS = 256;
/** Least size of a working buffer. */
const LEAST_BYTES = 1 << 12;
/** Buffers to read results from are kept for the next ones up to this size. */
const MOST_IDLE_BYTES = 1 << 22;
/** Larger buffers are not worth it: while one grows, it is there twice. */
const MOST_BYTES = 2 ** 30;

const converter = new DataView(new ArrayBuffer(4));

/** The bits of a number as f32. */
export function floatBits(x: number): number {
  converter.setFloat32(0, x);
  return converter.getUint32(0);
}

/** Two dimensions of a grid with at least `count` workgroups. */
export function grid(count: number): [number, number] {
  const x = Math.min(count, 32768);
  return [x, Math.ceil(count / x)];
}

export class Gpu {
  readonly device: GPUDevice;
  /** Size of the largest buffer that kernels can see whole. */
  readonly mostBytes: number;
  /**
   * Whether the adapter computes on the CPU: there, registers are memory like any other, and unrolled loops take seconds to
   * compile.
   */
  readonly software: boolean;
  /** Whether attention may use matrix units, see `matrix.ts`. */
  matrixUnits = false;
  /** Counts the calls. */
  calls = 0;
  /** Counts how often tiles have come to lie in another buffer, or elsewhere in theirs. */
  moves = 0;
  readonly #scratch = new Map<string, GPUBuffer>();
  readonly #idleReaders: GPUBuffer[] = [];
  #params: GPUBuffer;
  #nextSlot = 0;
  #current: Call | undefined;
  #last: Call | undefined;
  /** Calls whose pipelines are still being made, and those after them. */
  readonly #waiting: Call[] = [];
  /** Buffers to give back once a caller has submitted: by the next call. */
  readonly #retired: GPUBuffer[] = [];
  /** Whether the last call went to a caller's encoder, which may not be submitted yet. */
  #unsubmitted = false;
  /** Buffers of all kinds that are not given back. */
  readonly #live = new Set<GPUBuffer>();
  #failure: { code: KvarnErrorCode; message: string } | undefined;

  constructor(device: GPUDevice) {
    this.device = device;
    const { maxStorageBufferBindingSize, maxBufferSize } = device.limits;
    this.software = describeAdapter(device.adapterInfo).software;
    this.mostBytes = Math.min(maxStorageBufferBindingSize, maxBufferSize, MOST_BYTES);
    this.#params = this.#makeParams();
    void device.lost.then(({ message, reason }) => {
      this.#failure = { code: "device-lost", message: `the GPU device was lost: ${message || reason}` };
    });
  }

  /** Bytes of all buffers. */
  get heldBytes(): number {
    let bytes = 0;
    for (const { size } of this.#live) bytes += size;
    return bytes;
  }

  /** Whether the device may yet refuse what the present call does. */
  get uncertain(): boolean {
    return this.#current!.uncertain;
  }

  /** Says that the present call uses a buffer of the caller, of which nobody knows what state it is in. */
  relyOnCaller(): void {
    const call = this.#current!;
    // What becomes of a caller's encoder is for the caller to see.
    if (!call.encoder) call.uncertain = true;
  }

  /** Settles as the present call does. */
  get settled(): Promise<void> {
    return this.#current!.settled;
  }

  /** Throws once the device is lost or has failed. */
  checkAlive(): void {
    if (this.#failure) throw new KvarnError(this.#failure.code, this.#failure.message);
  }

  /**
   * Makes one call of what `work` enqueues. It is recorded when this returns, unless pipelines are still being made.
   * @param encoder a caller's, who submits it before the next call
   * @returns what `work` returned, and a promise of the device having accepted all of it
   */
  run<T>(work: () => T, encoder?: GPUCommandEncoder): { result: T; settled: Promise<void> } {
    this.checkAlive();
    this.#destroyAll(this.#retired);
    this.#unsubmitted = encoder !== undefined;
    const call = new Call(encoder, this.#last);
    this.#current = this.#last = call;
    this.calls++;
    this.#pushScopes();
    try {
      return { result: work(), settled: call.settled };
    } finally {
      // After an error, too: what is enqueued by then keeps what growing buffers hold, or writes where nothing is.
      this.#current = undefined;
      if (this.#waiting.length === 0 && call.ready) {
        this.#record(call);
        call.settle(this.#outcome(call, [this.#popScopes()]));
      } else {
        for (const input of call.inputs) input.data = copyOf(input.data);
        this.#waiting.push(call);
        call.settle(this.#outcome(call, [this.#popScopes(), this.#recordLater(call)]));
      }
    }
  }

  /** Adds a dispatch to the present call. */
  dispatch(dispatch: Dispatch): void {
    this.#current!.kernels.add(dispatch.kernel);
    this.#enqueue((recorder) => recorder.dispatch(dispatch));
  }

  /** Adds a copy to the present call, between two buffers. */
  copy(source: GPUBuffer, from: number, target: GPUBuffer, to: number, bytes: number): void {
    this.#enqueue((recorder) => recorder.copy(source, from, target, to, bytes));
  }

  /** Adds to the present call that a part of a buffer, whole words, is filled with zeros. */
  clear(buffer: GPUBuffer, offset: number, bytes: number): void {
    this.#enqueue((recorder) => recorder.clear(buffer, offset, bytes));
  }

  /** Puts data of a caller into a buffer, after all that is enqueued. Not with a caller's encoder. */
  write(target: GPUBuffer, offset: number, data: ArrayBufferView<ArrayBuffer>): void {
    const input = { data };
    this.#current!.inputs.push(input);
    this.#enqueue((recorder) => recorder.write(target, offset, input.data));
  }

  /** A table for kernels of the present call to read. */
  table(words: Uint32Array<ArrayBuffer>): Binding {
    const call = this.#current!;
    const offset = call.tableBytes;
    call.tableBytes += align(words.byteLength);
    const buffer = this.scratch("tables", call.tableBytes);
    // Ahead of what is recorded: nothing else in the call uses this part.
    this.#enqueue(() => this.device.queue.writeBuffer(buffer, offset, words));
    return { buffer, offset, size: words.byteLength };
  }

  /** What a part of a buffer holds when the present call is done. Not with a caller's encoder. */
  read(buffer: GPUBuffer, offset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    const { reads } = this.#current!;
    return new Promise((resolve, reject) => reads.push({ buffer, offset, bytes, resolve, reject }));
  }

  /**
   * The pipeline of a shader for these constants, made on first use.
   * @param name file in `shaders/`; its entry point has the same name, dashes as underscores
   */
  kernel(name: string, constants: Constants): Kernel {
    return kernelOn(this.device, name, constants);
  }

  /** Room to work in for one call at a time, at least `bytes` bytes. What it holds is lost when it grows. */
  scratch(name: string, bytes: number): GPUBuffer {
    const old = this.#scratch.get(name);
    if (old && old.size >= bytes) return old;
    const size = Math.max(LEAST_BYTES, 2 ** Math.ceil(Math.log2(bytes)));
    const buffer = this.createBuffer(Math.max(align(bytes), Math.min(this.mostBytes, size)));
    this.#scratch.set(name, buffer);
    this.#current!.scratch.push(name);
    if (old) this.retire(old);
    return buffer;
  }

  /** A buffer for kernels and copies. The device may yet refuse it: the settling of the present call tells. */
  createBuffer(bytes: number): GPUBuffer {
    this.#current!.uncertain = true;
    return this.#makeBuffer(
      bytes,
      GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
    );
  }

  /** Gives a buffer back once all that is enqueued is submitted. */
  retire(buffer: GPUBuffer): void {
    const call = this.#current ?? this.#waiting.at(-1);
    if (call) call.retired.push(buffer);
    else if (this.#unsubmitted) this.#retired.push(buffer);
    else this.#destroy(buffer);
  }

  /** Gives every buffer of its own back; those that were made here and not retired are for their owners to retire. */
  dispose(): void {
    this.#destroyAll(this.#retired);
    this.#destroyAll(this.#idleReaders);
    this.#destroyAll([...this.#scratch.values(), this.#params]);
    this.#scratch.clear();
  }

  /** For the recorder: leaves what it has put so far as it is, for a caller's encoder that is not submitted yet. */
  keepParams(): void {
    this.retire(this.#params);
    this.#params = this.#makeParams();
  }

  /** For the recorder: words that kernels read as their uniform. */
  putParams(words: readonly number[]): Binding {
    const offset = this.#nextSlot * SLOT_BYTES;
    this.#nextSlot = (this.#nextSlot + 1) % SLOTS;
    this.device.queue.writeBuffer(this.#params, offset, Uint32Array.from(words));
    return { buffer: this.#params, offset, size: SLOT_BYTES };
  }

  #enqueue(step: Step): void {
    this.#current!.steps.push(step);
  }

  #record(call: Call): void {
    const recorder = new Recorder(this, call.encoder);
    for (const step of call.steps.splice(0)) step(recorder);
    if (call.reads.length > 0) this.#read(call.reads, recorder);
    recorder.submit();
    if (call.encoder) this.#retired.push(...call.retired);
    else this.#destroyAll(call.retired);
  }

  async #recordLater(call: Call): Promise<void> {
    const before = this.#waiting[this.#waiting.indexOf(call) - 1];
    await Promise.all([before?.settled.catch(() => {}), ...[...call.kernels].map(({ made }) => made)]);
    const refused = [...call.kernels].find(({ refusal }) => refusal !== undefined);
    if (refused) this.#failure ??= { code: "device-failed", message: refused.refusal! };
    this.#pushScopes();
    try {
      if (call.ready) this.#record(call);
      else for (const { reject } of call.reads) reject(this.#error());
    } finally {
      this.#waiting.splice(this.#waiting.indexOf(call), 1);
    }
    await this.#popScopes();
  }

  /** Reads all that a call asks for by one buffer. */
  #read(reads: readonly Read[], recorder: Recorder): void {
    const total = reads.reduce((sum, { bytes }) => sum + bytes, 0);
    const reader = this.#takeReader(total);
    let at = 0;
    const places = reads.map((read) => {
      recorder.copy(read.buffer, read.offset, reader, at, read.bytes);
      return { read, at: (at += read.bytes) - read.bytes };
    });
    recorder.submit();
    reader.mapAsync(GPUMapMode.READ, 0, total).then(
      () => {
        const mapped = reader.getMappedRange(0, total);
        for (const { read, at } of places) read.resolve(new Uint8Array(mapped.slice(at, at + read.bytes)));
        reader.unmap();
        if (reader.size <= MOST_IDLE_BYTES) this.#idleReaders.push(reader);
        else this.#destroy(reader);
      },
      (cause: unknown) => {
        const error = this.#error(cause);
        for (const { reject } of reads) reject(error);
        this.#destroy(reader);
      },
    );
  }

  #takeReader(bytes: number): GPUBuffer {
    const index = this.#idleReaders.findIndex(({ size }) => size >= bytes);
    if (index >= 0) return this.#idleReaders.splice(index, 1)[0];
    const size = Math.max(
      LEAST_BYTES,
      2 ** Math.ceil(Math.log2(Math.min(bytes, MOST_IDLE_BYTES))),
      align(bytes),
    );
    return this.#makeBuffer(size, GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
  }

  #makeParams(): GPUBuffer {
    return this.#makeBuffer(SLOT_BYTES * SLOTS, GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
  }

  #makeBuffer(size: number, usage: number): GPUBuffer {
    const buffer = this.device.createBuffer({ size, usage });
    this.#live.add(buffer);
    return buffer;
  }

  #destroyAll(buffers: GPUBuffer[]): void {
    for (const buffer of buffers.splice(0)) this.#destroy(buffer);
  }

  #destroy(buffer: GPUBuffer): void {
    if (this.#live.delete(buffer)) buffer.destroy();
  }

  #pushScopes(): void {
    this.device.pushErrorScope("validation");
    this.device.pushErrorScope("out-of-memory");
  }

  /** Throws what the device has to say of what it was told since the last {@link #pushScopes}. */
  async #popScopes(): Promise<void> {
    const popped = [this.device.popErrorScope(), this.device.popErrorScope()];
    const [memory, validation] = await Promise.all(popped).catch((cause: unknown) => {
      throw this.#error(cause);
    });
    if (memory) throw new KvarnError("out-of-memory", `the GPU device has no memory: ${memory.message}`);
    this.checkAlive();
    if (validation)
      throw new KvarnError("device-failed", `the GPU device refuses the call: ${validation.message}`);
  }

  async #outcome(call: Call, parts: Promise<void>[]): Promise<void> {
    try {
      await Promise.all(parts);
      // Settled in order, so that what is taken back is taken back in order, and a failure is told from its consequences.
      await call.before?.settled.catch(() => {});
    } catch (error) {
      // What was built on a refused call fails with it.
      await call.before?.settled;
      // Where nothing can be taken back, nothing that follows is to be relied on.
      if (!call.uncertain && error instanceof KvarnError) this.#failure ??= error;
      // A working buffer that the device has refused is of no use to the next call.
      for (const name of call.scratch) {
        const buffer = this.#scratch.get(name);
        this.#scratch.delete(name);
        if (buffer) this.retire(buffer);
      }
      throw error;
    }
  }

  /** What went wrong: a device that is lost explains all else; otherwise it failed, and is not to be relied on. */
  #error(cause?: unknown): KvarnError {
    const message = cause instanceof Error || isGpuError(cause) ? cause.message : String(cause);
    this.#failure ??= { code: "device-failed", message: `the GPU device failed: ${message}` };
    return new KvarnError(this.#failure.code, this.#failure.message, { cause });
  }
}

/** What steps record into. */
class Recorder {
  readonly #gpu: Gpu;
  readonly #own: boolean;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  /** Dispatches since the last submission. */
  #dispatches = 0;

  constructor(gpu: Gpu, encoder: GPUCommandEncoder | undefined) {
    this.#gpu = gpu;
    this.#encoder = encoder;
    this.#own = encoder === undefined;
  }

  dispatch({ kernel, params, bindings, groups: [x, y = 1, z = 1] }: Dispatch): void {
    // Uniforms are written ahead of what is recorded, so their places must not come round again before it is submitted.
    if (this.#dispatches === SLOTS) {
      if (this.#own) this.submit();
      else this.#gpu.keepParams();
      this.#dispatches = 0;
    }
    this.#dispatches++;
    const pipeline = kernel.pipeline!;
    const resources = [this.#gpu.putParams(params), ...bindings];
    const group = this.#gpu.device.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: resources.map((resource, binding) => ({ binding, resource })),
    });
    this.#pass ??= this.#commands().beginComputePass();
    this.#pass.setPipeline(pipeline);
    this.#pass.setBindGroup(0, group);
    this.#pass.dispatchWorkgroups(x, y, z);
  }

  copy(source: GPUBuffer, from: number, target: GPUBuffer, to: number, bytes: number): void {
    this.#endPass();
    this.#commands().copyBufferToBuffer(source, from, target, to, bytes);
  }

  clear(buffer: GPUBuffer, offset: number, bytes: number): void {
    this.#endPass();
    this.#commands().clearBuffer(buffer, offset, bytes);
  }

  write(target: GPUBuffer, offset: number, data: ArrayBufferView<ArrayBuffer>): void {
    this.submit();
    this.#gpu.device.queue.writeBuffer(target, offset, data.buffer, data.byteOffset, data.byteLength);
  }

  /** Submits what was recorded; a caller's encoder is left to the caller. */
  submit(): void {
    this.#endPass();
    if (!this.#own || !this.#encoder) return;
    this.#gpu.device.queue.submit([this.#encoder.finish()]);
    this.#encoder = undefined;
    this.#dispatches = 0;
  }

  #commands(): GPUCommandEncoder {
    return (this.#encoder ??= this.#gpu.device.createCommandEncoder());
  }

  #endPass(): void {
    this.#pass?.end();
    this.#pass = undefined;
  }
}

/** Rounds up to what offsets of bindings must be multiples of. */
function align(bytes: number): number {
  return Math.ceil(bytes / 256) * 256;
}

function copyOf(view: ArrayBufferView<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice();
}

function isGpuError(value: unknown): value is { message: string } {
  return typeof (value as Partial<GPUError> | undefined)?.message === "string";
}
