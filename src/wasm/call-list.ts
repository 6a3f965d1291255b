/** Calls of kernels, put down for threads: what `assembly/threads.ts` reads. */
import type { TaskKernels } from "./tasks.js";

type TaskKernel = keyof TaskKernels | "clearRows" | "writeTokens" | "encodeNewKeys" | "encodeNewValues";

/** Kernels by the numbers that they have there. */
const NUMBERS: Record<TaskKernel, number> = {
  setMask: 0,
  attendRecord: 1,
  attendRecordF32: 2,
  attendExact: 3,
  clearRows: 4,
  encodeKeys: 5,
  encodeValues: 6,
  writeTokens: 7,
  encodeNewKeys: 8,
  encodeNewValues: 9,
  hideTokens: 10,
  refineKeys: 11,
  refineValues: 12,
};

/** Stands in for the kernels, and keeps what it is told: by task, the calls of one after another. */
export class CallList implements TaskKernels {
  #words = new Int32Array(4096);
  #length = 0;
  /** Where each task begins. */
  readonly #starts: number[] = [];

  /** How many tasks were begun. */
  get tasks(): number {
    return this.#starts.length;
  }

  /** Bytes that {@link move} writes. */
  get bytes(): number {
    return 4 * this.#length;
  }

  /** Begins a task. */
  begin(): void {
    this.#starts.push(this.#length);
  }

  /**
   * Puts all calls to `address` of a memory, and clears the list.
   * @returns by task, where its calls begin; and where the last ones end
   */
  move(buffer: ArrayBufferLike, address: number): number[] {
    new Int32Array(buffer, address, this.#length).set(this.#words.subarray(0, this.#length));
    const starts = [...this.#starts, this.#length].map((start) => address + 4 * start);
    this.clear();
    return starts;
  }

  clear(): void {
    this.#starts.length = 0;
    this.#length = 0;
  }

  setMask(queryHeadsPerKvHead: number, first: number, slidingWindow: number, cap: number): void {
    this.#add(NUMBERS.setMask, [queryHeadsPerKvHead, first, slidingWindow, 0]);
    new Float32Array(this.#words.buffer)[this.#length - 1] = cap;
  }

  hideTokens(...args: number[]): void {
    this.#add(NUMBERS.hideTokens, args);
  }

  attendRecord(...args: number[]): void {
    this.#add(NUMBERS.attendRecord, args);
  }

  attendRecordF32(...args: number[]): void {
    this.#add(NUMBERS.attendRecordF32, args);
  }

  attendExact(...args: number[]): void {
    this.#add(NUMBERS.attendExact, args);
  }

  clearRows(...args: number[]): void {
    this.#add(NUMBERS.clearRows, args);
  }

  encodeKeys(...args: number[]): void {
    this.#add(NUMBERS.encodeKeys, args);
  }

  encodeValues(...args: number[]): void {
    this.#add(NUMBERS.encodeValues, args);
  }

  refineKeys(...args: number[]): void {
    this.#add(NUMBERS.refineKeys, args);
  }

  refineValues(...args: number[]): void {
    this.#add(NUMBERS.refineValues, args);
  }

  /** @returns where its result will be, in bytes from the address of {@link move} on */
  writeTokens(source: number, half: boolean, ...rest: number[]): number {
    this.#add(NUMBERS.writeTokens, [source, Number(half), ...rest, 0]);
    return 4 * (this.#length - 1);
  }

  /** @returns as {@link writeTokens} */
  encodeNew(kernel: "encodeNewKeys" | "encodeNewValues", ...args: number[]): number {
    this.#add(NUMBERS[kernel], [...args, 0]);
    return 4 * (this.#length - 1);
  }

  #add(kernel: number, args: readonly number[]): void {
    const end = this.#length + 1 + args.length;
    if (end > this.#words.length) {
      const longer = new Int32Array(2 * end);
      longer.set(this.#words);
      this.#words = longer;
    }
    this.#words[this.#length] = kernel;
    // Addresses from 2^31 on keep their bits.
    for (let i = 0; i < args.length; i++) this.#words[this.#length + 1 + i] = args[i];
    this.#length = end;
  }
}
