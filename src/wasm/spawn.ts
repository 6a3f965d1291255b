/** Starts threads: workers of Node, Deno and Bun, or of browsers. */
import type * as NodeWorkers from "node:worker_threads";
import { unavailable } from "./module.js";
import type { ThreadAnswer, ThreadStart } from "./worker.js";
import { workerSource } from "./worker-inlined.js";

/** A thread that serves. */
export interface Thread {
  /** Ends it, whatever it is doing. */
  stop(): void;
}

interface Opened extends Thread {
  /** Called when it serves. */
  onServing(): void;
}

interface Listeners {
  readonly onAnswer: (answer: ThreadAnswer) => void;
  readonly onEnd: (why: string) => void;
}

/** Nothing for bundlers to follow. */
const NODE_WORKERS = "node:worker_threads";

/** Milliseconds that a thread may take to start. */
const PATIENCE = 30_000;

/**
 * Starts a thread; when the promise resolves, it serves and does not keep the process.
 * @param onEnd called when it has ended, by itself or not
 * @throws {KvarnError} `backend-unavailable`
 */
export async function startThread(start: ThreadStart, onEnd: (why: string) => void): Promise<Thread> {
  const { process } = globalThis as { process?: { versions?: Record<string, string> } };
  const open = process?.versions?.node === undefined ? openWebWorker : openNodeWorker;
  let listeners!: Listeners;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const answered = new Promise<void>((resolve, reject) => {
    const fail = (why: string): void => reject(new Error(why));
    listeners = {
      onAnswer: ({ error }) => (error === undefined ? resolve() : fail(error)),
      onEnd: (why) => {
        fail(why);
        onEnd(why);
      },
    };
    timer = setTimeout(() => fail(`no answer for ${PATIENCE / 1000} seconds`), PATIENCE);
  });
  answered.catch(() => {}); // There may be nobody to wait for it.
  let opened: Opened | undefined;
  try {
    opened = await open(start, listeners);
    await answered;
    opened.onServing();
    return opened;
  } catch (cause) {
    opened?.stop();
    throw unavailable(`threads do not start here: ${(cause as Error).message}`, cause);
  } finally {
    clearTimeout(timer);
  }
}

async function openNodeWorker(start: ThreadStart, { onAnswer, onEnd }: Listeners): Promise<Opened> {
  const { Worker } = (await import(
    /* @vite-ignore */ /* webpackIgnore: true */ NODE_WORKERS
  )) as typeof NodeWorkers;
  // Without the options of the process: what they preload is none of a thread's business.
  const worker = new Worker(workerSource, { eval: true, workerData: start, execArgv: [] });
  worker.once("message", onAnswer);
  worker.on("error", (error) => onEnd(String(error)));
  worker.on("exit", () => onEnd("it has ended"));
  return { onServing: () => worker.unref(), stop: () => void worker.terminate() };
}

async function openWebWorker(start: ThreadStart, { onAnswer, onEnd }: Listeners): Promise<Opened> {
  if (typeof Worker === "undefined") throw new Error("there are no workers");
  const url = URL.createObjectURL(new Blob([workerSource], { type: "text/javascript" }));
  const letGo = (): void => URL.revokeObjectURL(url);
  let worker: Worker;
  try {
    worker = new Worker(url);
  } catch (error) {
    letGo();
    throw error;
  }
  worker.onmessage = ({ data }: MessageEvent<ThreadAnswer>) => onAnswer(data);
  worker.onerror = (event) => {
    event.preventDefault();
    onEnd(event.message || "a policy must have blob: in worker-src");
  };
  const stop = (): void => {
    letGo();
    worker.terminate();
  };
  try {
    worker.postMessage(start);
  } catch (error) {
    stop();
    throw error;
  }
  return { onServing: letGo, stop };
}
