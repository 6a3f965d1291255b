/**
 * The public calls on a GPU, by its own clock: attention of one token against attention over an uncompressed cache in
 * binary16, encoding against the time that the same device takes to copy.
 */
import { type GpuTensor, type Kvarn, type KvarnCache, openKvarn, parsePreset } from "../../src/index.js";
import { findAdapter, findGpu, openDevice } from "../../src/webgpu/adapter.js";
import { Gpu } from "../../src/webgpu/gpu.js";
import { nameOf } from "../../src/webgpu/index.js";
import { Source } from "../data.js";
import { makeAttendF16 } from "./attend-f16.js";
import { readKernel } from "./kernel.js";

export interface GpuResult {
  name: string;
  case: string;
  value: number;
  unit: string;
  /** The same of what it is compared with. */
  baseline: number;
  /** What that is. */
  against: string;
  /** How many times as fast ours is. */
  ratio: number;
}

const PRESET = "k4v2_g128";
const HEADS = { queryHeads: 32, kvHeads: 8, headDim: 128 };
const { queryHeads, kvHeads, headDim } = HEADS;
const WIDTH = kvHeads * headDim;
/** More than the innermost caches of large GPUs hold: what calls take turns with. */
const BEYOND_CACHES = 100e6;
const CHUNK = 4096;

export interface GpuEffort {
  readonly warmUpMs: number;
  /** Calls between two looks at the clock, and how often that is done: medians are over those. */
  readonly calls: number;
  readonly samples: number;
  readonly contexts: readonly number[];
  /** Copies of 256 MiB before each time. */
  readonly heats: number;
}

export const FULL_GPU: GpuEffort = {
  warmUpMs: 1000,
  calls: 50,
  samples: 15,
  contexts: [4_096, 32_768, 131_072],
  heats: 200,
};

export const QUICK_GPU: GpuEffort = { warmUpMs: 0, calls: 1, samples: 1, contexts: [300], heats: 0 };

/** Runs all cases. Throws `backend-unavailable` where there is no GPU. */
export async function runGpuCases(
  effort: GpuEffort,
  report: (name: string) => void,
): Promise<{ adapter: string; results: GpuResult[] }> {
  const adapter = (await findAdapter((await findGpu()).gpu))!;
  const device = await openDevice(adapter);
  const kvarn = await openKvarn({ device });
  const bench = new GpuBench(device, kvarn, effort);
  try {
    report("copy");
    const copied = await bench.copy();
    const results: GpuResult[] = [];
    for (const context of effort.contexts) {
      report(`attend t${context}`);
      results.push(...(await bench.attend(context, copied)));
    }
    report("encode");
    results.push(await bench.encode(copied));
    return { adapter: nameOf(kvarn.backend.adapter!), results };
  } finally {
    kvarn.dispose();
    device.destroy();
  }
}

class GpuBench {
  readonly #device: GPUDevice;
  readonly #kvarn: Kvarn;
  readonly #effort: GpuEffort;
  /** For what is not the package's: it shares no working memory with it. */
  readonly #gpu: Gpu;
  readonly #source = new Source(7);
  #heater: (() => Promise<GPUCommandBuffer[]>) | undefined;

  constructor(device: GPUDevice, kvarn: Kvarn, effort: GpuEffort) {
    this.#device = device;
    this.#kvarn = kvarn;
    this.#effort = effort;
    this.#gpu = new Gpu(device);
  }

  /** Some tens of milliseconds of copying. */
  async #heat(): Promise<GPUCommandBuffer[]> {
    const { heats } = this.#effort;
    if (heats === 0) return [];
    this.#heater ??= await this.#makeHeater(heats);
    return this.#heater();
  }

  async #makeHeater(heats: number): Promise<() => Promise<GPUCommandBuffer[]>> {
    const bytes = Math.min(2 ** 28, this.#device.limits.maxStorageBufferBindingSize);
    const bindings = [{ buffer: this.#buffer(bytes) }, { buffer: this.#buffer(bytes) }];
    const kernel = await readKernel(this.#gpu, "copy", "copy", {});
    return async () => {
      const encoder = this.#device.createCommandEncoder();
      const dispatch = { kernel, params: [bytes / 4], bindings, groups: [4096] } as const;
      const work = () => Array.from({ length: heats }, () => this.#gpu.dispatch(dispatch));
      await this.#gpu.run(work, encoder).settled;
      return [encoder.finish()];
    };
  }

  /** Bytes per microsecond that a kernel reads and writes, together. */
  async copy(): Promise<number> {
    const bytes = Math.min(2 ** 28, this.#device.limits.maxStorageBufferBindingSize);
    const [source, target] = [this.#buffer(bytes), this.#buffer(bytes)];
    const kernel = await readKernel(this.#gpu, "copy", "copy", {});
    const time = await this.#time((_, encoder) => {
      const bindings = [{ buffer: source }, { buffer: target }];
      const work = () => this.#gpu.dispatch({ kernel, params: [bytes / 4], bindings, groups: [4096] });
      return this.#gpu.run(work, encoder).settled;
    });
    source.destroy();
    target.destroy();
    return (2 * bytes) / time;
  }

  /** One token over `context` and some more: a full sink, and a tail of 100 tokens. */
  async attend(context: number, bytesPerMicrosecond: number): Promise<GpuResult[]> {
    const { group } = parsePreset(PRESET);
    const q = this.#upload(this.#source.rows(queryHeads, headDim), queryHeads * headDim);
    const first = await this.#fill(context, 100);
    const recordBytes = first.memory().recordBytes;
    const caches = [first];
    while (caches.length * recordBytes < BEYOND_CACHES && context > group) {
      caches.push(await this.#kvarn.restoreCache(await first.serialize()));
    }
    const tokens = first.length(0);
    const out: GpuTensor = { buffer: this.#buffer(queryHeads * headDim * 4), type: "f32", tokens: 1 };
    const ours = await this.#time((i, commandEncoder) =>
      caches[i % caches.length].attend(0, q, { out, commandEncoder }),
    );
    for (const cache of caches) cache.dispose();

    const sideBytes = tokens * WIDTH * 2;
    const copies = Math.max(1, Math.ceil(BEYOND_CACHES / (2 * sideBytes)));
    const exact = Array.from({ length: copies }, () => [this.#buffer(sideBytes), this.#buffer(sideBytes)]);
    const kernel = await makeAttendF16(this.#gpu, kvHeads, headDim);
    const f16 = await this.#time((i, encoder) => {
      const [keys, values] = exact[i % copies].map((buffer) => ({ buffer }));
      const work = () => kernel.attend({ buffer: q.buffer }, keys, values, tokens, { buffer: out.buffer });
      return this.#gpu.run(work, encoder).settled;
    });
    for (const buffer of exact.flat()) buffer.destroy();

    const title = `${PRESET} d${headDim} h${queryHeads}/${kvHeads} t${tokens}`;
    const result = (name: string, value: number, baseline: number, against: string): GpuResult => {
      return { name, case: title, value, unit: "us", baseline, against, ratio: baseline / value };
    };
    return [
      result("attend", ours, f16, "our f16 kernel"),
      result("attend", ours, recordBytes / bytesPerMicrosecond, "its records' bytes at the copy's rate"),
      result("f16 kernel", f16, (2 * sideBytes) / bytesPerMicrosecond, "its bytes at the copy's rate"),
    ];
  }

  /** The tiles of a prompt, encoded by the append that follows it; a K and a V tile are two. */
  async encode(bytesPerMicrosecond: number): Promise<GpuResult> {
    const { group } = parsePreset(PRESET);
    const context = Math.min(16_384, Math.max(...this.#effort.contexts)) + group;
    const prompt = await this.#fill(context, 0);
    const { k, v } = this.#source.tokens(1, kvHeads, headDim);
    const [key, value] = [this.#upload(k, WIDTH), this.#upload(v, WIDTH)];
    const before = prompt.memory();
    const forks: KvarnCache[] = [];
    const record = async (_: number, commandEncoder: GPUCommandEncoder) => {
      const fork = prompt.fork();
      await fork.append(0, key, value, { commandEncoder });
      forks.push(fork);
    };
    const time = await this.#time(record, { calls: 1, afterwards: () => forks.pop()!.dispose() });
    const tiles = 2 * kvHeads * (Math.floor(context / group) - 1);
    const floor = (before.tailBytes + (tiles / 2 / kvHeads) * 13_824 * kvHeads) / bytesPerMicrosecond;
    prompt.dispose();
    return {
      name: "encode",
      case: `${PRESET} d${headDim}, ${tiles} tiles, 8 iterations`,
      value: (1e6 * tiles) / time,
      unit: "tiles/s",
      baseline: (1e6 * tiles) / floor,
      against: "its bytes at the copy's rate",
      ratio: floor / time,
    };
  }

  /** A cache of one layer: `tokens` tokens, encoded as far as possible, and `tail` more. */
  async #fill(tokens: number, tail: number): Promise<KvarnCache> {
    const cache = this.#kvarn.createCache({ ...HEADS, preset: PRESET, layers: 1 });
    const { k, v } = this.#source.tokens(Math.min(CHUNK, tokens), kvHeads, headDim);
    for (let left = tokens; left > 0 && tail > 0; left -= CHUNK) {
      const length = Math.min(CHUNK, left) * WIDTH;
      await cache.append(0, k.subarray(0, length), v.subarray(0, length));
      await cache.flush();
    }
    if (tail > 0) await cache.append(0, k.subarray(0, tail * WIDTH), v.subarray(0, tail * WIDTH));
    else {
      const all = this.#source.tokens(tokens, kvHeads, headDim);
      await cache.append(0, all.k, all.v);
    }
    return cache;
  }

  /**
   * Median microseconds of one call, by the GPU's clock.
   * @param options `calls`: how many are submitted at once; only such as leave each other's tables and memory alone
   */
  async #time(
    record: (i: number, encoder: GPUCommandEncoder) => Promise<unknown>,
    { calls = this.#effort.calls, afterwards = () => {} } = {},
  ): Promise<number> {
    const { warmUpMs, samples } = this.#effort;
    const clock = new Clock(this.#device);
    const times: number[] = [];
    const start = performance.now();
    let call = 0;
    while (times.length < samples) {
      // Something to do while calls are recorded: an idle GPU lowers its clock within milliseconds.
      this.#device.queue.submit(await this.#heat());
      // One submission for all calls, so that nothing waits between them: their tables are the same. Only the first of
      // all, which makes room to work in, goes alone.
      const commands: GPUCommandBuffer[] = [clock.begin()];
      const count = call === 0 ? 1 : calls;
      for (let i = 0; i < count; i++) {
        const encoder = this.#device.createCommandEncoder();
        await record(call++, encoder);
        commands.push(encoder.finish());
      }
      this.#device.queue.submit([...commands, clock.end()]);
      const time = await clock.read();
      afterwards();
      // The first time, pipelines are made; then clocks speed up.
      if (call > calls + 1 && performance.now() - start > warmUpMs) times.push(time / calls);
    }
    clock.destroy();
    return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
  }

  #upload(data: Float32Array, width: number): GpuTensor {
    const buffer = this.#buffer(data.byteLength);
    this.#device.queue.writeBuffer(buffer, 0, data as Float32Array<ArrayBuffer>);
    return { buffer, type: "f32", tokens: data.length / width };
  }

  #buffer(size: number): GPUBuffer {
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    return this.#device.createBuffer({ size, usage });
  }
}

/** Looks at the GPU's clock before and after other commands. */
class Clock {
  readonly #device: GPUDevice;
  readonly #queries: GPUQuerySet;
  readonly #resolved: GPUBuffer;
  readonly #reader: GPUBuffer;

  constructor(device: GPUDevice) {
    this.#device = device;
    this.#queries = device.createQuerySet({ type: "timestamp", count: 2 });
    this.#resolved = device.createBuffer({
      size: 16,
      usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
    });
    this.#reader = device.createBuffer({
      size: 16,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
  }

  begin(): GPUCommandBuffer {
    const encoder = this.#device.createCommandEncoder();
    const querySet = this.#queries;
    encoder.beginComputePass({ timestampWrites: { querySet, endOfPassWriteIndex: 0 } }).end();
    return encoder.finish();
  }

  end(): GPUCommandBuffer {
    const encoder = this.#device.createCommandEncoder();
    const querySet = this.#queries;
    encoder.beginComputePass({ timestampWrites: { querySet, beginningOfPassWriteIndex: 1 } }).end();
    encoder.resolveQuerySet(querySet, 0, 2, this.#resolved, 0);
    encoder.copyBufferToBuffer(this.#resolved, 0, this.#reader, 0, 16);
    return encoder.finish();
  }

  /** Microseconds between the two. */
  async read(): Promise<number> {
    await this.#reader.mapAsync(GPUMapMode.READ);
    const [from, to] = new BigUint64Array(this.#reader.getMappedRange());
    this.#reader.unmap();
    return Number(to - from) / 1e3;
  }

  destroy(): void {
    this.#queries.destroy();
    this.#resolved.destroy();
    this.#reader.destroy();
  }
}
