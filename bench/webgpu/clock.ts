/** The GPU's own clock. */

/** Looks at the GPU's clock before and after other commands. */
export class Clock {
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
