/** Times work on a GPU, which is kept at the clock that work of its own would have it at. */
import { Gpu } from "../../src/webgpu/gpu.js";
import { median } from "../timing.js";
import { Clock } from "./clock.js";
import { readKernel } from "./kernel.js";

export interface GpuEffort {
  readonly warmUpMs: number;
  /** Calls between two looks at the clock, and how often that is done: medians are over those. */
  readonly calls: number;
  readonly samples: number;
  /** Copies of 256 MiB before each time. */
  readonly heats: number;
  /** Longest context; what is longer is cut to it. */
  readonly mostTokens: number;
}

/** More than the innermost caches of large GPUs hold: what calls take turns with. */
const BEYOND_CACHES = 100e6;

interface TimeOptions {
  /** How many calls are submitted at once; only such as leave each other's tables and memory alone. */
  readonly calls?: number;
  /** Off the clock, after each look at it. */
  readonly afterwards?: () => void;
}

export class GpuTimer {
  readonly effort: GpuEffort;
  /** For what is not the package's: it shares no working memory with it. */
  readonly gpu: Gpu;
  readonly #device: GPUDevice;
  #heater: (() => Promise<GPUCommandBuffer[]>) | undefined;
  #rate: number | undefined;

  constructor(device: GPUDevice, effort: GpuEffort) {
    this.#device = device;
    this.effort = effort;
    this.gpu = new Gpu(device);
  }

  /** How many caches of so many bytes calls take turns with. */
  turns(bytes: number): number {
    return Math.min(this.effort.calls, Math.ceil(BEYOND_CACHES / bytes));
  }

  buffer(size: number): GPUBuffer {
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    return this.#device.createBuffer({ size, usage });
  }

  /** Median microseconds of one call that records into an encoder. */
  async time(
    record: (i: number, encoder: GPUCommandEncoder) => Promise<unknown>,
    { calls = this.effort.calls, afterwards }: TimeOptions = {},
  ): Promise<number> {
    return this.#time(calls, afterwards, async (clock, first, count) => {
      // One submission for all calls, so that nothing waits between them: their tables are the same.
      const commands: GPUCommandBuffer[] = [clock.begin()];
      for (let i = first; i < first + count; i++) {
        const encoder = this.#device.createCommandEncoder();
        await record(i, encoder);
        commands.push(encoder.finish());
      }
      this.#device.queue.submit([...commands, clock.end()]);
    });
  }

  /** The same of one that submits by itself, while the GPU is still busy with the copies before. */
  async timeSubmitting(run: (i: number) => void | Promise<void>): Promise<number> {
    return this.#time(this.effort.calls, undefined, async (clock, first, count) => {
      this.#device.queue.submit([clock.begin()]);
      for (let i = first; i < first + count; i++) await run(i);
      this.#device.queue.submit([clock.end()]);
    });
  }

  async #time(
    calls: number,
    afterwards: (() => void) | undefined,
    submit: (clock: Clock, first: number, count: number) => Promise<void>,
  ): Promise<number> {
    const { warmUpMs, samples } = this.effort;
    const clock = new Clock(this.#device);
    const times: number[] = [];
    const start = performance.now();
    let call = 0;
    while (times.length < samples) {
      // Something to do while calls are recorded: an idle GPU lowers its clock within milliseconds.
      this.#device.queue.submit(await this.#heat());
      // Only the first of all, which makes room to work in, goes alone.
      const count = call === 0 ? 1 : calls;
      await submit(clock, call, count);
      call += count;
      const time = await clock.read();
      afterwards?.();
      // The first time, pipelines are made; then clocks speed up.
      if (call > calls + 1 && performance.now() - start > warmUpMs) times.push(time / calls);
    }
    clock.destroy();
    return median(times);
  }

  /** Bytes per microsecond that a kernel reads and writes, together. Measured once. */
  async copyRate(): Promise<number> {
    return (this.#rate ??= await this.#measureCopy());
  }

  async #measureCopy(): Promise<number> {
    const { bytes, dispatch, destroy } = await this.#makeCopy();
    const time = await this.time((_, encoder) => this.gpu.run(dispatch, encoder).settled);
    destroy();
    return (2 * bytes) / time;
  }

  /** Some tens of milliseconds of copying. */
  async #heat(): Promise<GPUCommandBuffer[]> {
    const { heats } = this.effort;
    if (heats === 0) return [];
    this.#heater ??= await this.#makeHeater(heats);
    return this.#heater();
  }

  async #makeHeater(heats: number): Promise<() => Promise<GPUCommandBuffer[]>> {
    const { dispatch } = await this.#makeCopy();
    return async () => {
      const encoder = this.#device.createCommandEncoder();
      const work = () => Array.from({ length: heats }, dispatch);
      await this.gpu.run(work, encoder).settled;
      return [encoder.finish()];
    };
  }

  async #makeCopy(): Promise<{ bytes: number; dispatch: () => void; destroy: () => void }> {
    const bytes = Math.min(2 ** 28, this.#device.limits.maxStorageBufferBindingSize);
    const buffers = [this.buffer(bytes), this.buffer(bytes)];
    const bindings = buffers.map((buffer) => ({ buffer }));
    const kernel = await readKernel(this.gpu, "copy", "copy", {});
    return {
      bytes,
      dispatch: () => this.gpu.dispatch({ kernel, params: [bytes / 4], bindings, groups: [4096] }),
      destroy: () => buffers.forEach((buffer) => buffer.destroy()),
    };
  }
}
