import { KvarnError } from "../errors.js";
import { FreeRanges, type Range } from "../ranges.js";

export type { Range } from "../ranges.js";

const PAGE = 65536;
/** wasm32 addresses 4 GiB; the last page stays unused, so that no address plus size wraps. */
const MOST_PAGES = 65535;
const ALIGNMENT = 16;

/**
 * Allocator for a WASM memory. Memory grows by what is missing; WASM memory never shrinks, but freed ranges serve later
 * blocks of any cache.
 */
export class Heap {
  readonly #memory: WebAssembly.Memory;
  readonly #free = new FreeRanges();
  #end: number;
  #used = 0;

  /** @param start first address that is the heap's */
  constructor(memory: WebAssembly.Memory, start: number) {
    this.#memory = memory;
    this.#end = align(start);
    this.#grow(this.#end);
  }

  /** Bytes in blocks. */
  get usedBytes(): number {
    return this.#used;
  }

  /** Throws unless `bytes` more could be addressed. */
  checkRoom(bytes: number): void {
    checkAddressable(this.#used + bytes);
  }

  /** Takes `bytes` bytes, not cleared, at an address divisible by 16. */
  allocate(bytes: number): Range {
    const size = align(bytes);
    const address = this.#free.take(size) ?? this.#extend(size);
    this.#used += size;
    return { address, bytes: size };
  }

  free({ address, bytes }: Range): void {
    this.#used -= bytes;
    this.#free.give(address, bytes);
  }

  /** Room behind all blocks; a free range at the very end counts towards it. */
  #extend(size: number): number {
    const address = this.#free.tailBefore(this.#end);
    this.#grow(address + size);
    this.#free.cut(address);
    this.#end = address + size;
    return address;
  }

  #grow(end: number): void {
    const pages = Math.ceil(end / PAGE) - this.#memory.buffer.byteLength / PAGE;
    if (pages <= 0) return;
    const total = this.#memory.buffer.byteLength + pages * PAGE;
    checkAddressable(total);
    try {
      this.#memory.grow(pages);
    } catch (cause) {
      throw new KvarnError("out-of-memory", `the WASM engine's memory could not grow to ${total} bytes`, {
        cause,
      });
    }
  }
}

function checkAddressable(bytes: number): void {
  if (bytes <= MOST_PAGES * PAGE) return;
  throw new KvarnError(
    "out-of-memory",
    `the WASM engine would need ${bytes} bytes; wasm32 addresses ${MOST_PAGES * PAGE}`,
  );
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
