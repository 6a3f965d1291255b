/**
 * Several instances of the kernels on one memory, each on a thread of its own, the caller's among them. Loaded only where
 * threads are asked for.
 */
import { KvarnError } from "../errors.js";
import { CallList } from "./call-list.js";
import { CALLS, CONTROL_WORDS, DONE, FAILED, LIMIT, QUIT, RING, RING_TASKS } from "./control.js";
import { Heap } from "./heap.js";
import {
  chooseVariant,
  compileInlined,
  instantiate,
  type Kernels,
  unavailable,
  type WasmVariant,
} from "./module.js";
import { startThread, type Thread } from "./spawn.js";
import { TILE_ELEMENTS } from "./store.js";
import type { Cut, Tasks } from "./tasks.js";
import * as inlined from "./threads-inlined.js";
import { Workspace } from "./workspace.js";

/** What the builds with threads have besides. */
interface ThreadKernels extends Kernels {
  work(control: number): void;
  combineParts(parts: number, rows: number, headDim: number, sums: number, states: number): void;
}

/** Where the working memory of the caller's instance begins. */
const BASE = 1024;

/** The most pages that wasm32 addresses, and the least worth having. */
const MOST_PAGES = 65536;
const LEAST_PAGES = 4096;

/** For each thread, so that they end at about the same time. */
const TASKS_PER_THREAD = 4;

/** More than so many tiles, or calls that take tokens in, are not worth the room that they take at once. */
const MOST_TILES = 32;
const MOST_STAGES = 32;

/** Nanoseconds; what takes less altogether is not worth waking a thread for. */
const LEAST_COST = 30_000;

/** Bytes that one call reads that takes tokens in, and the call. */
const STAGE_BYTES = 4 * TILE_ELEMENTS + 64;

/** Bytes of calls that are shared before all are put down. */
const SHARED_BYTES = 1 << 16;

/** How often the caller looks whether the others are done before it sleeps, where it may. */
const LOOKS = 20_000;
/** Milliseconds that it sleeps at most before it looks again: a thread that fails wakes it. */
const NAP = 50;
/** Milliseconds without a task done after which a thread is taken for lost. */
const PATIENCE = 30_000;

/**
 * Opens the kernels on `threads` threads.
 * @throws {KvarnError} `backend-unavailable`
 */
export async function openThreads(
  wanted: string | undefined,
  threads: number,
): Promise<{ kernels: Kernels; variant: WasmVariant; reason: string; heap: Heap; tasks: Tasks }> {
  const { variant, build, reason } = chooseVariant(wanted);
  if (typeof SharedArrayBuffer === "undefined") {
    throw unavailable(
      "threads need SharedArrayBuffer, which pages have only when they are cross-origin isolated, by the headers " +
        "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp",
    );
  }
  const module = await compileInlined(`${build} threads`, inlined, build);
  const memory = makeMemory();
  const env = { memory, base: BASE };
  const kernels = (await instantiate(module, { env })) as ThreadKernels;
  const heap = new Heap(memory, kernels.heapStart.value as number);
  const tasks = await Threads.start(threads, module, kernels, heap);
  return { kernels, variant, reason: `${reason}; ${threads} threads`, heap, tasks };
}

/** A shared memory needs to know how large it may get, and not every machine has 4 GiB of addresses to set aside. */
function makeMemory(): WebAssembly.Memory {
  for (let maximum = MOST_PAGES; ; maximum /= 2) {
    try {
      return new WebAssembly.Memory({ initial: 0, maximum, shared: true });
    } catch (cause) {
      if (maximum <= LEAST_PAGES) throw unavailable("this runtime makes no shared memory", cause);
    }
  }
}

/** What a kernel returns, and what is to be done with it. */
interface Result {
  readonly check: (result: number) => void;
  readonly at: number;
}

class Threads implements Tasks {
  readonly kernels = new CallList();
  readonly #own: ThreadKernels;
  readonly #list: Workspace;
  readonly #control: number;
  readonly #words: Int32Array;
  readonly #threads: Thread[] = [];
  readonly #count: number;
  readonly #mayBlock: boolean;
  /** What tokens are read from while they are taken in: room for so many calls. */
  readonly #staging: Workspace;
  readonly #stages: number;
  #staged = 0;
  /** Where calls lie that are shared before all are put down. */
  readonly #shared: Workspace;
  #sharedBytes = 0;
  /** What is to be done with results: with where they lie from the calls put down on, and in memory. */
  #pending: Result[] = [];
  #results: Result[] = [];
  #cost = 0;
  #disposed = false;
  /** Why no task can be run any more. */
  #lost: KvarnError | undefined;

  private constructor(count: number, kernels: ThreadKernels, heap: Heap) {
    this.#count = count;
    this.#own = kernels;
    this.#list = new Workspace(heap);
    this.#staging = new Workspace(heap);
    this.#shared = new Workspace(heap);
    this.#stages = Math.min(MOST_STAGES, 4 * count);
    this.#control = heap.allocate(4 * CONTROL_WORDS).address;
    this.#words = new Int32Array(kernels.memory.buffer, this.#control, CONTROL_WORDS).fill(0);
    this.#mayBlock = mayBlock(this.#words);
  }

  static async start(
    count: number,
    module: WebAssembly.Module,
    kernels: ThreadKernels,
    heap: Heap,
  ): Promise<Threads> {
    const threads = new Threads(count, kernels, heap);
    const bytes = (kernels.heapStart.value as number) - BASE;
    const starts = Array.from({ length: count - 1 }, async () => {
      const base = heap.allocate(bytes).address;
      const start = { module, memory: kernels.memory, base, control: threads.#control };
      threads.#threads.push(await startThread(start, (why) => threads.#onEnd(why)));
    });
    try {
      await Promise.all(starts);
      return threads;
    } catch (error) {
      await Promise.allSettled(starts);
      threads.dispose();
      throw error;
    }
  }

  get tilesAtOnce(): number {
    return Math.min(MOST_TILES, TASKS_PER_THREAD * this.#count);
  }

  /** Heads first: cutting the sequence makes sums to combine. */
  cut(kvHeads: number, tiles: number): Cut {
    const wanted = TASKS_PER_THREAD * this.#count;
    const headsPerTask = Math.max(1, Math.floor(kvHeads / wanted));
    const groups = Math.ceil(kvHeads / headsPerTask);
    const even = groups >= 2 * this.#count && groups % this.#count === 0;
    return { headsPerTask, parts: even ? 1 : Math.max(1, Math.min(tiles, Math.ceil(wanted / groups))) };
  }

  begin(cost: number): void {
    if (this.kernels.tasks === RING_TASKS) this.finish();
    this.#cost += cost;
    this.kernels.begin();
  }

  stage(): number {
    if (this.#staged === this.#stages) this.finish();
    return this.#staging.take(this.#stages * STAGE_BYTES) + this.#staged++ * STAGE_BYTES;
  }

  /** Others take it at once, while the caller stages the next. */
  writeTokens(onBad: (row: number) => never, ...args: Parameters<Kernels["writeTokens"]>): void {
    const [staged, , tokens, kvHeads, headDim] = args;
    this.begin(tokens * kvHeads * headDim);
    const check = (bad: number) => {
      if (bad >= 0) onBad(bad);
    };
    this.#pending.push({ check, at: this.kernels.writeTokens(...args) });
    this.#giveAt(() => staged + 4 * TILE_ELEMENTS);
  }

  encodeNew(
    kernel: "encodeNewKeys" | "encodeNewValues",
    onBad: () => void,
    ...args: [source: number, stride: number, ...tile: number[]]
  ): void {
    const check = (finite: number) => {
      if (!finite) onBad();
    };
    this.#pending.push({ check, at: this.kernels.encodeNew(kernel, ...args) });
  }

  /** What there is no room for waits for {@link finish}. */
  share(): void {
    const { bytes } = this.kernels;
    if (this.#sharedBytes + bytes > SHARED_BYTES) return;
    this.#giveAt(() => this.#shared.take(SHARED_BYTES) + this.#sharedBytes);
    this.#sharedBytes += bytes;
  }

  clearRows(rows: number, headDim: number, sums: number, states: number): void {
    this.kernels.clearRows(rows, headDim, sums, states);
  }

  combineParts(parts: number, rows: number, headDim: number, sums: number, states: number): void {
    if (parts > 1) this.#own.combineParts(parts, rows, headDim, sums, states);
  }

  finish(): void {
    if (this.kernels.tasks > 0) this.#giveAt(() => this.#list.take(this.kernels.bytes));
    const results = this.#results;
    this.#clear();
    this.#complete();
    const memory = new DataView(this.#own.memory.buffer);
    for (const { check, at } of results) check(memory.getInt32(at, true));
  }

  checkAlive(): void {
    if (this.#lost) throw this.#lost;
  }

  dispose(): void {
    this.#disposed = true;
    Atomics.store(this.#words, QUIT, 1);
    this.#wake();
    for (const thread of this.#threads) thread.stop();
  }

  #clear(): void {
    this.kernels.clear();
    this.#pending = [];
    this.#results = [];
    this.#staged = 0;
    this.#sharedBytes = 0;
    this.#cost = 0;
  }

  /**
   * Lets others take the tasks put down, whose calls are to lie where `room` says. Where there is no room the call fails: none
   * of its tasks is left then, neither put down nor under way, as its blocks are free from then on.
   */
  #giveAt(room: () => number): void {
    try {
      this.#give(room());
    } catch (error) {
      this.#clear();
      this.#complete();
      throw error;
    }
  }

  /** Lets others take the tasks put down, whose calls are to lie at `address`. */
  #give(address: number): void {
    // The ring must not come round to tasks that are not done.
    const notDone = (this.#words[LIMIT] - Atomics.load(this.#words, DONE)) | 0;
    if (notDone + this.kernels.tasks > RING_TASKS) this.#complete();
    const starts = this.kernels.move(this.#own.memory.buffer, address);
    for (const { check, at } of this.#pending) this.#results.push({ check, at: address + at });
    this.#pending = [];
    let task = this.#words[LIMIT];
    for (let i = 0; i + 1 < starts.length; i++, task++) {
      const at = RING + 2 * (task & (RING_TASKS - 1));
      this.#words[at] = starts[i];
      this.#words[at + 1] = starts[i + 1];
    }
    Atomics.store(this.#words, LIMIT, task);
    if (this.#cost >= LEAST_COST) this.#wake();
  }

  /** Takes tasks until none is left, and waits for the others. */
  #complete(): void {
    this.checkAlive();
    try {
      this.#own.work(this.#control);
    } catch (cause) {
      throw this.#lose("a kernel has failed", cause);
    }
    this.#waitFor(this.#words[LIMIT]);
  }

  #wake(): void {
    Atomics.add(this.#words, CALLS, 1);
    Atomics.notify(this.#words, CALLS);
  }

  /** Waits for the tasks that others have taken, which are as long as those just done. */
  #waitFor(limit: number): void {
    const words = this.#words;
    for (let looks = 0; looks < LOOKS; looks++) if (Atomics.load(words, DONE) === limit) return;
    let waited = 0;
    let before = performance.now();
    for (let last = Atomics.load(words, DONE); last !== limit;) {
      if (this.#mayBlock) Atomics.wait(words, DONE, last, NAP);
      if (Atomics.load(words, FAILED)) throw this.#lose("a thread has failed");
      const done = Atomics.load(words, DONE);
      const now = performance.now();
      // A machine that has slept in between has not waited.
      waited = done === last ? waited + Math.min(now - before, 2 * NAP) : 0;
      if (waited > PATIENCE) throw this.#lose("a thread does not answer");
      [last, before] = [done, now];
    }
  }

  #onEnd(why: string): void {
    if (!this.#disposed) this.#lose(`a thread has ended: ${why}`);
  }

  /** Ends all threads: one that is late must not write where others work by then. */
  #lose(why: string, cause?: unknown): KvarnError {
    this.#lost = new KvarnError(
      "thread-lost",
      `${why}; this engine computes no more, but its caches can be saved and moved to another`,
      { cause },
    );
    this.dispose();
    return this.#lost;
  }
}

/** Whether this thread may sleep: that of a page may not. */
function mayBlock(words: Int32Array): boolean {
  try {
    Atomics.wait(words, CALLS, ~words[CALLS], 0);
    return true;
  } catch {
    return false;
  }
}
