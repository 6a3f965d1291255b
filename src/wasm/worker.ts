/**
 * What a thread runs: it instantiates the kernels on the memory that all share, says that it is there, and serves until
 * the engine is disposed of. `scripts/inline-worker.mjs` makes it a text; nothing imports it.
 */
import type * as NodeWorkers from "node:worker_threads";
import { DONE, FAILED } from "./control.js";

/** What a thread is told when it starts. */
export interface ThreadStart {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  /** Where its working memory begins. */
  readonly base: number;
  /** Where the words begin that threads share. */
  readonly control: number;
}

/** What a thread says, once: nothing, or why it cannot serve. */
export interface ThreadAnswer {
  readonly error?: string;
}

async function start(
  { module, memory, base, control }: ThreadStart,
  answer: (answer: ThreadAnswer) => void,
): Promise<void> {
  let serve: (control: number) => void;
  try {
    const { exports } = await WebAssembly.instantiate(module, { env: { memory, base } });
    serve = exports.serve as typeof serve;
  } catch (error) {
    answer({ error: String(error) });
    return;
  }
  answer({});
  try {
    serve(control);
  } catch {
    // The thread that waits for this one may not be able to hear of it by a message.
    const words = new Int32Array(memory.buffer, control);
    Atomics.store(words, FAILED, 1);
    Atomics.notify(words, DONE);
  }
}

/** What a worker of the web has of its own; libraries of types know it only as a page or as Node. */
interface WorkerScope {
  onmessage: ((event: { readonly data: ThreadStart }) => void) | null;
  postMessage(answer: ThreadAnswer): void;
  close(): void;
}

// The first versions of Node 20 have `require` alone, and Deno has no `require`.
const { process, require } = globalThis as {
  process?: { versions?: { node?: string }; getBuiltinModule?: (name: string) => unknown };
  require?: (name: string) => unknown;
};
if (process?.versions?.node) {
  const name = "node:worker_threads";
  const workers = (process.getBuiltinModule?.(name) ?? require!(name)) as typeof NodeWorkers;
  void start(workers.workerData as ThreadStart, (answer) => workers.parentPort!.postMessage(answer));
} else {
  const scope = globalThis as unknown as WorkerScope;
  scope.onmessage = ({ data }) => {
    void start(data, (answer) => scope.postMessage(answer)).then(() => scope.close());
  };
}
