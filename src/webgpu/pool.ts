/**
 * Memory for blocks of one kind of one layer: buffers that kernels can see whole, as few as possible, so that one dispatch
 * finds as many tiles as possible. The last one grows, by being copied to a larger one.
 */
import type { Block, Budget } from "../backend.js";
import { KvarnError } from "../errors.js";
import { FreeRanges } from "../ranges.js";
import type { Gpu } from "./gpu.js";

/** Offsets of blocks are multiples of this. */
const ALIGNMENT = 16;

/** How much larger than needed a buffer gets where the cache may hold as much. */
const GROWTH = 1.25;

/** One buffer of a pool. */
class Slab {
  readonly blocks = new Set<GpuBlock>();
  readonly free = new FreeRanges();
  capacity = 0;
  buffer!: GPUBuffer;
  /** Counts how often the device has refused a buffer. */
  refusals = 0;
  /** Number of the call that last made it larger. */
  grownIn = 0;
}

export class GpuBlock implements Block {
  owners = 1;
  /** Whether it went with a buffer that the device has refused. */
  gone = false;

  constructor(
    readonly kind: Block["kind"],
    readonly capacity: number,
    readonly bytes: number,
    readonly pool: Pool,
    readonly slab: Slab,
    /** Bytes from the start of its buffer. */
    public offset: number,
  ) {}

  get buffer(): GPUBuffer {
    return this.slab.buffer;
  }
}

export class Pool {
  readonly #gpu: Gpu;
  readonly #kind: Block["kind"];
  readonly #budget: Budget;
  readonly #slabs: Slab[] = [];
  #used = 0;
  /** Stores that may ask for more blocks, the oldest first. */
  readonly #owners: object[] = [];

  /** @param budget asked where it could take more than it needs now */
  constructor(gpu: Gpu, kind: Block["kind"], budget: Budget) {
    this.#gpu = gpu;
    this.#kind = kind;
    this.#budget = budget;
  }

  /** Bytes of its buffers that are in no block: those are for its oldest owner to answer for, not for forks. */
  slackBytesOf(owner: object): number {
    if (owner !== this.#owners[0]) return 0;
    return this.#slabs.reduce((sum, { capacity }) => sum + capacity, 0) - this.#used;
  }

  /** A block of `bytes` bytes, not cleared. */
  allocate(capacity: number, bytes: number): GpuBlock {
    const size = align(bytes);
    if (size > this.#gpu.mostBytes) {
      throw new KvarnError(
        "out-of-memory",
        `a tile of ${bytes} bytes exceeds what this GPU device shows a kernel, ${this.#gpu.mostBytes} bytes`,
      );
    }
    let slab: Slab | undefined;
    let offset: number | undefined;
    for (slab of this.#slabs) {
      offset = slab.free.take(size);
      if (offset !== undefined) break;
    }
    if (slab === undefined || offset === undefined) {
      slab = this.#extend(size);
      offset = slab.free.take(size)!;
    }
    const block = new GpuBlock(this.#kind, capacity, size, this, slab, offset);
    slab.blocks.add(block);
    this.#used += size;
    return block;
  }

  free(block: GpuBlock): void {
    if (block.gone) return;
    const { slab, offset, bytes } = block;
    slab.blocks.delete(block);
    slab.free.give(offset, bytes);
    this.#used -= bytes;
    if (slab.blocks.size === 0) this.#drop(slab);
  }

  /** Gives room that no block needs back to the device, by copying what is needed. */
  trim(): void {
    for (const slab of [...this.#slabs]) {
      if (slab.capacity > sum(slab.blocks)) this.#compact(slab);
    }
  }

  /** The same pool, for one more owner. */
  own(owner: object): this {
    this.#owners.push(owner);
    return this;
  }

  /** One owner less. */
  disown(owner: object): void {
    this.#owners.splice(this.#owners.indexOf(owner), 1);
  }

  /** A slab that has `size` free bytes at its end. */
  #extend(size: number): Slab {
    const last = this.#slabs.at(-1);
    const kept = last ? last.free.tailBefore(last.capacity) : 0;
    if (last && kept + size <= this.#gpu.mostBytes) {
      this.#resize(last, this.#roomy(kept + size, last));
      return last;
    }
    const slab = new Slab();
    this.#resize(slab, size);
    this.#slabs.push(slab);
    return slab;
  }

  /** At least `needed` bytes, and more where the cache may hold them. */
  #roomy(needed: number, { capacity, grownIn }: Slab): number {
    const within = (bytes: number): number => Math.max(needed, Math.min(this.#gpu.mostBytes, align(bytes)));
    // A call that asks again and again would copy again and again. What proves too much is trimmed after it.
    if (grownIn === this.#gpu.calls) return within(2 * capacity);
    const wished = within(needed * GROWTH);
    return this.#budget(wished - capacity) ? wished : needed;
  }

  /** Moves a slab to a larger buffer. */
  #resize(slab: Slab, capacity: number): void {
    const { capacity: before, buffer: old } = slab;
    this.#replace(slab, capacity);
    slab.grownIn = this.#gpu.calls;
    if (before > 0) this.#gpu.copy(old, 0, slab.buffer, 0, before);
    slab.free.give(before, capacity - before);
  }

  /** Moves a slab to a buffer that its blocks just fill. */
  #compact(slab: Slab): void {
    const { buffer: old } = slab;
    this.#replace(slab, sum(slab.blocks));
    let at = 0;
    for (const block of inOrder(slab)) {
      this.#gpu.copy(old, block.offset, slab.buffer, at, block.bytes);
      block.offset = at;
      at += block.bytes;
    }
    slab.free.cut(0);
  }

  /** Gives a slab another buffer. Should the device refuse it, all is again as it was. */
  #replace(slab: Slab, capacity: number): void {
    const { buffer: oldBuffer, capacity: oldCapacity, refusals } = slab;
    const offsets = [...slab.blocks].map((block) => [block, block.offset] as const);
    const buffer = this.#gpu.createBuffer(capacity);
    slab.buffer = buffer;
    slab.capacity = capacity;
    this.#gpu.moves++;
    this.#gpu.settled.then(
      () => {
        if (oldCapacity > 0) this.#gpu.retire(oldBuffer);
      },
      () => {
        this.#gpu.retire(buffer);
        // What was built on a refused buffer falls with it.
        if (slab.refusals !== refusals || !this.#slabs.includes(slab)) return;
        slab.refusals++;
        this.#gpu.moves++;
        slab.buffer = oldBuffer;
        slab.capacity = oldCapacity;
        const before = new Map(offsets);
        for (const block of slab.blocks) this.#takeBack(block, before.get(block));
        findFree(slab);
        if (oldCapacity === 0) this.#slabs.splice(this.#slabs.indexOf(slab), 1);
      },
    );
  }

  /** Puts a block back where it was; nowhere if that is undefined. */
  #takeBack(block: GpuBlock, offset: number | undefined): void {
    if (offset !== undefined) {
      block.offset = offset;
      return;
    }
    block.gone = true;
    block.slab.blocks.delete(block);
    this.#used -= block.bytes;
  }

  #drop(slab: Slab): void {
    this.#slabs.splice(this.#slabs.indexOf(slab), 1);
    this.#gpu.retire(slab.buffer);
  }
}

/** Makes what lies between the blocks of a slab its free part. */
function findFree(slab: Slab): void {
  slab.free.cut(0);
  let end = 0;
  for (const { offset, bytes } of inOrder(slab)) {
    if (offset > end) slab.free.give(end, offset - end);
    end = offset + bytes;
  }
  if (slab.capacity > end) slab.free.give(end, slab.capacity - end);
}

function inOrder({ blocks }: Slab): GpuBlock[] {
  return [...blocks].sort((a, b) => a.offset - b.offset);
}

function sum(blocks: ReadonlySet<GpuBlock>): number {
  let bytes = 0;
  for (const block of blocks) bytes += block.bytes;
  return bytes;
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
