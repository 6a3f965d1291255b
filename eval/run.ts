/** Spreads units over threads. */
import { Worker } from "node:worker_threads";
import type { Results } from "./results.js";
import type { Effort } from "./settings.js";
import type { Unit } from "./tasks.js";
import type { Message, WorkerData } from "./worker.js";

/**
 * Works through the units; what each finds is kept as soon as it is there.
 * @throws {Error} what the first unit to fail says; the others are stopped
 */
export async function runUnits(
  units: readonly Unit[],
  results: Results,
  { model, effort, jobs }: { model: string; effort: Effort; jobs: number },
  onStep: () => void,
  onDone: (unit: Unit) => void,
): Promise<void> {
  const left = [...units];
  const workerData: WorkerData = { model, effort };
  const workers: Worker[] = [];
  const work = async (worker: Worker): Promise<void> => {
    for (let unit = left.shift(); unit; unit = left.shift()) {
      const done = unit;
      await new Promise<void>((resolve, reject) => {
        worker.removeAllListeners();
        worker.on("error", reject);
        worker.on("exit", (code) => reject(new Error(`a thread ended with code ${code}`)));
        worker.on("message", (message: Message) => {
          if ("step" in message) onStep();
          else if ("error" in message) reject(new Error(message.error));
          else {
            for (const entry of message.entries) results.add(entry);
            resolve();
          }
        });
        worker.postMessage(done);
      });
      onDone(done);
    }
  };
  try {
    await Promise.all(
      Array.from({ length: Math.min(jobs, units.length) }, () => {
        const worker = new Worker(new URL("worker.js", import.meta.url), { workerData });
        workers.push(worker);
        return work(worker);
      }),
    );
  } finally {
    await Promise.all(
      workers.map((worker) => {
        worker.removeAllListeners();
        return worker.terminate();
      }),
    );
  }
}
