/** Divides the evaluation into pieces of work. */
import type { Llama } from "../examples/llama/answer.js";
import { compileKernels, loadLlama } from "../examples/llama/node.js";
import { BLOCK, runForced } from "./forced.js";
import { runGreedy } from "./greedy.js";
import { runLines } from "./lines.js";
import type { Entry, Results, TaskName } from "./results.js";
import type { Effort, Setting } from "./settings.js";
import { readText } from "./texts.js";

/** Settings that share one exact run; each takes two caches of all layers. */
const TOGETHER = 4;

/** One task on one text, or number of lines, at some settings. */
export interface Unit {
  readonly task: TaskName;
  readonly on: string;
  readonly settings: readonly Setting[];
}

/** What is not done yet. */
export function planUnits(effort: Effort, results: Results): Unit[] {
  const units = (task: TaskName, on: string): Unit[] => {
    const left = effort.settings.filter((setting) => !results.has({ task, on, setting }));
    const parts = Math.ceil(left.length / TOGETHER);
    return Array.from({ length: parts }, (_, i) => {
      const settings = left.slice(i * TOGETHER, (i + 1) * TOGETHER);
      return { task, on, settings };
    });
  };
  return [
    ...effort.texts.flatMap((text) => units("forced", text)),
    ...effort.texts.flatMap((text) => units("greedy", text)),
    ...effort.lines.flatMap((lines) => units("lines", String(lines))),
  ];
}

/** How many steps a unit reports. */
export function stepsOf({ task, settings }: Unit, effort: Effort): number {
  const each = {
    forced: Math.floor(effort.textTokens / BLOCK),
    greedy: effort.generatedTokens,
    lines: effort.questions,
  };
  return settings.length * each[task];
}

/** Works on units with one model. */
export class Examiner {
  private constructor(
    private readonly llama: Llama,
    private readonly module: WebAssembly.Module,
    private readonly effort: Effort,
  ) {}

  /** @throws {Error} where the model is missing or damaged */
  static async open(model: string, effort: Effort): Promise<Examiner> {
    return new Examiner(await loadLlama(model), await compileKernels(), effort);
  }

  async run({ task, on, settings }: Unit, onStep: () => void): Promise<Entry[]> {
    const found = await this.#run(task, on, settings, onStep);
    return settings.map((setting, i) => ({ task, on, setting, result: found[i] }));
  }

  async #run(
    task: TaskName,
    on: string,
    settings: readonly Setting[],
    onStep: () => void,
  ): Promise<Entry["result"][]> {
    const { decoder, tokenizer } = this.llama;
    const { textTokens, promptTokens, generatedTokens, questions } = this.effort;
    if (task === "lines") {
      return runLines(decoder, this.module, tokenizer, { lines: Number(on), questions }, settings, onStep);
    }
    const tokens = tokenizer.encode(readText(on));
    const needed = task === "forced" ? textTokens : promptTokens;
    if (tokens.length < needed) {
      throw new Error(`the text ${on} has ${tokens.length} tokens, not ${needed}`);
    }
    if (task === "forced") {
      return runForced(decoder, this.module, tokens.slice(0, needed), settings, onStep);
    }
    return runGreedy(decoder, this.module, tokens.slice(0, needed), generatedTokens, settings, onStep);
  }
}
