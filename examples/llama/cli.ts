/** The example on the command line. */
import { parseArgs } from "node:util";
import { openKvarn } from "kvarn";
import { answer, describeProgress, type Progress, type Question } from "./answer.js";
import { loadLlama } from "./node.js";

const USAGE = `Usage: npm run llama -- --model FILE --prompt TEXT [options]

Lets a Llama model in a GGUF file answer, with its keys and values in a compressed cache.

Options:
  --model FILE      SmolLM2-135M-Instruct.Q4_1.gguf, or another small Llama
  --prompt TEXT     what to ask
  --preset NAME     of the cache: k4v2_g128 by default
  --temperature T   0, the default, takes the likeliest token always
  --seed N          of the random choice above temperature 0; 0 by default
  --tokens N        how long the answer may be; 256 by default
  --help            this text
`;

/** Where the command writes. */
export interface Streams {
  readonly stdout: { write(text: string): unknown };
  readonly stderr: { write(text: string): unknown };
}

/** The command line is wrong. */
class UsageError extends Error {}

/**
 * Runs a command line: the answer goes to stdout, how fast it came to stderr.
 * @returns the exit status: 0, 1 when something went wrong, 2 when the command line is wrong
 */
export async function runLlama(args: readonly string[], streams: Streams): Promise<number> {
  try {
    const command = parse(args);
    if (command === undefined) streams.stdout.write(USAGE);
    else await print(command.model, command.question, streams);
    return 0;
  } catch (error) {
    streams.stderr.write(`${(error as Error).message}\n`);
    if (!(error instanceof UsageError)) return 1;
    streams.stderr.write(`\n${USAGE}`);
    return 2;
  }
}

/** What to do; undefined where help is asked for. */
function parse(args: readonly string[]): { model: string; question: Question } | undefined {
  const { model, prompt, preset, temperature, seed, tokens, help } = parseOptions(args);
  if (help) return undefined;
  if (model === undefined || prompt === undefined) throw new UsageError("--model and --prompt are needed");
  const question = {
    prompt,
    preset,
    temperature: toNumber("temperature", temperature, /^\d+(\.\d+)?$/),
    seed: toNumber("seed", seed, /^\d{1,9}$/),
    tokens: toNumber("tokens", tokens, /^[1-9]\d{0,8}$/),
  };
  return { model, question };
}

function parseOptions(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        model: { type: "string" },
        prompt: { type: "string" },
        preset: { type: "string", default: "k4v2_g128" },
        temperature: { type: "string", default: "0" },
        seed: { type: "string", default: "0" },
        tokens: { type: "string", default: "256" },
        help: { type: "boolean", default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

function toNumber(option: string, value: string, format: RegExp): number {
  if (!format.test(value)) throw new UsageError(`--${option} takes a number, not '${value}'`);
  return Number(value);
}

async function print(model: string, question: Question, { stdout, stderr }: Streams): Promise<void> {
  const llama = await loadLlama(model);
  const kvarn = await openKvarn({ backend: "wasm" });
  try {
    let last: Progress | undefined;
    for await (const progress of answer(llama, kvarn, question)) {
      stdout.write(progress.text);
      last = progress;
    }
    stdout.write("\n");
    if (last) stderr.write(`\n${describeProgress(last)}\n`);
  } finally {
    kvarn.dispose();
  }
}
