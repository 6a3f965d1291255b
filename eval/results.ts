/** What tasks find, and where that is kept, so that a run that was stopped goes on where it was. */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Setting } from "./settings.js";

/** A text, teacher-forced, in blocks; lists have an element a block, means over its tokens. */
export interface ForcedResult {
  readonly blockTokens: number;
  /** Divergence from the exact run's next token, in nats. */
  readonly kl: readonly number[];
  /** Of the tokens that came, in nats. */
  readonly nll: readonly number[];
  readonly exactNll: readonly number[];
  /** Share of tokens with the same likeliest next one. */
  readonly agreement: readonly number[];
  /** Mean absolute error of attention outputs, over all layers: keys and values of the exact run, compressed. */
  readonly staticError: readonly number[];
  /** The same, keys and values computed by the run that reads its own compressed past. */
  readonly accumulatedError: readonly number[];
  /** Mean magnitude of the exact outputs. */
  readonly outputSize: readonly number[];
  /** Relative L2 errors of the exact run's keys, values, scores and attention outputs, as `kvarn report` has them. */
  readonly key: number | null;
  readonly value: number | null;
  readonly score: number | null;
  readonly output: number | null;
  /** Relative change of keys' norms: mean of the worst 1 %; share of the squared error of keys that is such change. */
  readonly worstNorm: number | null;
  readonly magnitudeShare: number | null;
  /** Bits for an element of K or V, the window included. */
  readonly bits: readonly number[];
  /** Of compressed elements alone, at the text's end. */
  readonly compressedBits: number | null;
}

/** A text's beginning continued greedily; lists have an element a step. */
export interface GreedyResult {
  /** Steps until the likeliest token is another than without compression; null: never. */
  readonly divergence: number | null;
  readonly kl: readonly number[];
  /** Bits for an element of K or V at the end, the window included. */
  readonly bits: number;
}

/** Lines of registers, some of which are asked for. */
export interface LinesResult {
  readonly asked: number;
  /** All digits right. */
  readonly right: number;
  readonly digits: number;
  readonly rightDigits: number;
  /** Bits for an element of K or V at the end, the window included. */
  readonly bits: number;
}

export interface TaskResults {
  forced: ForcedResult;
  greedy: GreedyResult;
  lines: LinesResult;
}

export type TaskName = keyof TaskResults;

/** One task on one text, or number of lines, at one setting. */
export interface Entry<Task extends TaskName = TaskName> {
  readonly task: Task;
  readonly on: string;
  readonly setting: Setting;
  readonly result: TaskResults[Task];
}

/** What a folder's results are of: another model or effort needs another folder. */
export type Origin = Readonly<Record<string, unknown>>;

/** A folder of results, a file each. */
export class Results {
  readonly #entries = new Map<string, Entry>();

  /** @throws {Error} where the folder has results of something else */
  constructor(
    private readonly folder: string,
    origin: Origin,
  ) {
    mkdirSync(folder, { recursive: true });
    const path = join(folder, "origin.json");
    const text = JSON.stringify(origin, null, 2);
    if (!existsSync(path)) write(path, text);
    else if (readFileSync(path, "utf8") !== text) {
      throw new Error(
        `${folder} has results of another model, effort or version of this program: choose another --out`,
      );
    }
    for (const name of readdirSync(folder)) {
      if (!name.endsWith(".result.json")) continue;
      const entry = JSON.parse(readFileSync(join(folder, name), "utf8")) as Entry;
      this.#entries.set(keyOf(entry), entry);
    }
  }

  has(entry: Omit<Entry, "result">): boolean {
    return this.#entries.has(keyOf(entry));
  }

  add(entry: Entry): void {
    this.#entries.set(keyOf(entry), entry);
    write(join(this.folder, `${keyOf(entry)}.result.json`), JSON.stringify(entry));
  }

  all<Task extends TaskName>(task: Task): Entry<Task>[] {
    return [...this.#entries.values()].filter((entry): entry is Entry<Task> => entry.task === task);
  }

  /** Puts a file beside the results. */
  write(name: string, text: string): void {
    write(join(this.folder, name), text);
  }
}

function keyOf({ task, on, setting }: Omit<Entry, "result">): string {
  return `${task}-${on}-${setting.name.replace("+", "-")}-${setting.keyBits}-${setting.valueBits}`;
}

/** A file is there whole or not at all. */
function write(path: string, text: string): void {
  writeFileSync(`${path}.part`, text);
  renameSync(`${path}.part`, path);
}
