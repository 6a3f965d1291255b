/** A thread that works on units, one after another. */
import { parentPort, workerData } from "node:worker_threads";
import type { Entry } from "./results.js";
import type { Effort } from "./settings.js";
import { Examiner, type Unit } from "./tasks.js";

/** What a thread says: that it has come a step further, what it has found, or what went wrong. */
export type Message = { step: true } | { entries: Entry[] } | { error: string };

export interface WorkerData {
  readonly model: string;
  readonly effort: Effort;
}

const { model, effort } = workerData as WorkerData;
const port = parentPort!;
const post = (message: Message): void => port.postMessage(message);

const examiner = Examiner.open(model, effort);
port.on("message", (unit: Unit) => {
  const work = async (): Promise<Message> => {
    try {
      return { entries: await (await examiner).run(unit, () => post({ step: true })) };
    } catch (error) {
      return { error: (error as Error).message };
    }
  };
  void work().then(post);
});
