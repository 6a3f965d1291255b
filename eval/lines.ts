/**
 * Line retrieval: many lines that each hold a number, then some of them are asked for (LongChat's task, table 4 of KVarN's
 * paper). Asked as the beginning of the line again, which small models can go on with, too.
 */
import type { Decoder } from "../examples/llama/decoder.js";
import type { ModelTokenizer } from "../examples/llama/tokenizer.js";
import { greedy } from "../examples/llama/sampling.js";
import { xorshift32 } from "../bench/data.js";
import { MethodAttention } from "./attention.js";
import type { LinesResult } from "./results.js";
import { methodOf, type Setting } from "./settings.js";

const SEED = 6;
const FIRST = [
  "amber",
  "bold",
  "calm",
  "dark",
  "early",
  "faint",
  "grand",
  "happy",
  "icy",
  "jolly",
  "kind",
  "late",
];
const SECOND = [
  "apple",
  "bridge",
  "candle",
  "door",
  "engine",
  "forest",
  "garden",
  "harbor",
  "island",
  "jacket",
];

/** How a line begins, and the number that it holds. */
interface Line {
  readonly start: string;
  readonly digits: string;
}

/** @param count of the lines, each with a name of its own */
function makeLines(count: number, random: () => number): Line[] {
  const names = FIRST.flatMap((first) => SECOND.map((second) => `${first} ${second}`));
  if (count > names.length) throw new RangeError(`there are names for ${names.length} lines, not ${count}`);
  return Array.from({ length: count }, () => {
    const [name] = names.splice(random() % names.length, 1);
    const digits = Array.from({ length: 5 }, () => random() % 10).join("");
    return { start: `line ${name}: REGISTER_CONTENT is <`, digits };
  });
}

/** @returns results in the order of the settings */
export async function runLines(
  decoder: Decoder,
  module: WebAssembly.Module,
  tokenizer: ModelTokenizer,
  { lines: count, questions }: { lines: number; questions: number },
  settings: readonly Setting[],
  onQuestion: () => void,
): Promise<LinesResult[]> {
  const random = xorshift32(SEED);
  const lines = makeLines(count, random);
  const context = tokenizer.encode(
    `Below is a record of lines to remember. Each has a register content.\n\n` +
      lines.map(({ start, digits }) => `${start}${digits}>\n`).join("") +
      `\nThe record is over. Now some of its lines again:\n\n`,
  );
  // Each once: an answer stays in the cache.
  const left = [...lines];
  const asked = Array.from({ length: questions }, () => left.splice(random() % left.length, 1)[0]);
  // With the right answer behind each, whose logits tell whether greedy decoding would have given it.
  const parts = asked.map(({ start, digits }) => {
    const answer = [...digits].map((digit) => tokenizer.encode(digit)[0]);
    return { question: tokenizer.encode(start), answer, end: tokenizer.encode(">\n") };
  });
  const length = parts.reduce((sum, part) => sum + Object.values(part).flat().length, context.length);
  const results: LinesResult[] = [];
  for (const setting of settings) {
    const cache = await MethodAttention.open(methodOf(setting), decoder.config, module, length);
    await decoder.forward(context, cache, { logits: "last" });
    const result = { asked: questions, right: 0, digits: 0, rightDigits: 0 };
    for (const { question, answer, end } of parts) {
      const tokens = [...question, ...answer, ...end];
      const logits = await decoder.forward(tokens, cache, { logits: "all" });
      const { vocabulary } = decoder.config;
      const right = answer.filter((token, i) => {
        const at = (question.length + i - 1) * vocabulary;
        return greedy(logits.subarray(at, at + vocabulary)) === token;
      }).length;
      result.digits += answer.length;
      result.rightDigits += right;
      if (right === answer.length) result.right++;
      onQuestion();
    }
    results.push({ ...result, bits: cache.cache.bitsPerValue() });
  }
  return results;
}
