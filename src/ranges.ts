/** Some bytes of a memory. */
export interface Range {
  readonly address: number;
  readonly bytes: number;
}

/**
 * Which parts of a memory are free. First fit, free neighbours joined. Blocks are whole tiles, few and large, so the list
 * stays short.
 */
export class FreeRanges {
  /** Ascending, no two adjacent. */
  readonly #free: { address: number; bytes: number }[] = [];

  /** Takes `bytes` bytes: their address, or undefined where no free range is as long. */
  take(bytes: number): number | undefined {
    const index = this.#free.findIndex((range) => range.bytes >= bytes);
    if (index < 0) return undefined;
    const range = this.#free[index];
    const { address } = range;
    range.address += bytes;
    range.bytes -= bytes;
    if (range.bytes === 0) this.#free.splice(index, 1);
    return address;
  }

  give(address: number, bytes: number): void {
    let next = this.#free.findIndex((range) => range.address > address);
    if (next < 0) next = this.#free.length;
    const before = this.#free[next - 1];
    const after = this.#free[next];
    const joinsBefore = before !== undefined && before.address + before.bytes === address;
    const joinsAfter = after !== undefined && address + bytes === after.address;
    if (joinsBefore) {
      before.bytes += bytes + (joinsAfter ? after.bytes : 0);
      if (joinsAfter) this.#free.splice(next, 1);
    } else if (joinsAfter) {
      after.address = address;
      after.bytes += bytes;
    } else {
      this.#free.splice(next, 0, { address, bytes });
    }
  }

  /** Where the free range that reaches up to `end` begins; `end` where there is none. */
  tailBefore(end: number): number {
    const last = this.#free.at(-1);
    return last !== undefined && last.address + last.bytes === end ? last.address : end;
  }

  /** Forgets what lies from `end` on. */
  cut(end: number): void {
    while (this.#free.length > 0) {
      const last = this.#free[this.#free.length - 1];
      if (last.address < end) {
        last.bytes = Math.min(last.bytes, end - last.address);
        return;
      }
      this.#free.pop();
    }
  }
}
