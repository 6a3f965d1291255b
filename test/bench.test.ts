import { describe, expect, it, vi } from "vitest";
import { type BenchResult, runBench } from "../bench/bench.js";
import { cases } from "../bench/cases.js";
import { Source } from "../bench/data.js";
import { compare } from "../bench/timing.js";

/** Runs a command line; what it prints and its status. */
async function bench(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const written = { stdout: "", stderr: "" };
  const stream = (name: "stdout" | "stderr") => ({ write: (text: string) => (written[name] += text) });
  const stderr = stream("stderr") as unknown as NodeJS.WritableStream;
  const status = await runBench(args, { stdout: stream("stdout"), stderr });
  return { status, ...written };
}

describe("the benchmarks", () => {
  it("time every case, and print JSON alone", async () => {
    const { status, stdout, stderr } = await bench("--quick", "--json");
    const results = JSON.parse(stdout) as BenchResult[];
    expect(status).toBe(0);
    expect(stderr).toBe("");
    expect(results.map((result) => `${result.name} ${result.case}`)).toEqual(
      cases.map((one) => `${one.name} ${one.case}`),
    );
    for (const result of results) {
      expect(Object.keys(result)).toEqual([
        ...["name", "backend", "variant", "case", "value", "unit", "baseline", "ratio"],
      ]);
      expect(result.value).toBeGreaterThan(0);
      expect(result.baseline).toBeGreaterThan(0);
      expect(result.ratio).toBeGreaterThan(0);
    }
  });

  it("print a table of the cases asked for, and fail a check that is missed", async () => {
    const args = ["--quick", "--backend", "reference", "--case", "encode k4v2"];
    const { status, stdout } = await bench(...args);
    expect(status).toBe(0);
    expect(stdout).toMatch(/^reference f64: /);
    expect(stdout).toMatch(/\nencode k4v2_g128 d128 .* us\/record .* passes {2}<= 60 FAIL {2}<= 30 FAIL\n$/);
    expect((await bench(...args, "--check")).status).toBe(1);
    expect((await bench("--quick", "--backend", "reference", "--case", "rotate", "--check")).status).toBe(0);
  });

  it("refuse what they do not know", async () => {
    await expect(bench("--case", "nothing")).rejects.toThrow("no case contains 'nothing'");
    await expect(bench("--fast")).rejects.toThrow("--fast");
    await expect(bench("--backend", "fpga")).rejects.toMatchObject({ code: "invalid-argument" });
  });
});

describe("compare", () => {
  const effort = { warmUpMs: 0, sampleMs: 0, totalMs: 0, leastSamples: 4 };

  it("takes turns, resets before each sample, and counts calls", async () => {
    const log: string[] = [];
    const contender = (name: string) => ({
      run: (call: number) => void log.push(`${name}${call}`),
      reset: () => void log.push(`${name}r`),
    });
    await compare(contender("a"), contender("b"), effort);
    const [warmUp, samples] = [log.slice(0, 12), log.slice(12)];
    expect(warmUp).toEqual(["ar", "a0", "ar", "a1", "ar", "a2", "br", "b0", "br", "b1", "br", "b2"]);
    expect(samples).toEqual([3, 4, 5, 6].flatMap((call) => ["ar", `a${call}`, "br", `b${call}`]));
  });

  it("compares medians", async () => {
    const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
    let calls = 0;
    const { ours, baseline, relative } = await compare(
      // One slow sample of five is no matter.
      { run: () => wait(++calls === 6 ? 200 : 40) },
      { run: () => wait(10) },
      { ...effort, leastSamples: 5 },
    );
    expect(ours).toBeGreaterThanOrEqual(39);
    expect(ours).toBeLessThan(200);
    expect(baseline).toBeGreaterThanOrEqual(9);
    expect(relative).toBeGreaterThan(1);
  });

  it("takes enough calls where the clock goes in whole milliseconds", async () => {
    const exact = performance.now.bind(performance);
    vi.spyOn(performance, "now").mockImplementation(() => Math.floor(exact()));
    let calls = 0;
    const spin = (ms: number): void => {
      if (++calls > 100_000) throw new Error("endless");
      for (const end = exact() + ms; exact() < end;);
    };
    try {
      const timing = await compare(
        { run: () => spin(0.1) },
        { run: () => spin(0.05) },
        { warmUpMs: 40, sampleMs: 20, totalMs: 100, leastSamples: 3 },
      );
      expect(timing.ours).toBeGreaterThan(0.08);
      expect(timing.relative).toBeGreaterThan(1);
    } finally {
      vi.restoreAllMocks();
    }
  });
});

describe("the benchmarks' data", () => {
  it("are the same for a seed, and of the scale that they should be", () => {
    const { k, v } = new Source(7).tokens(580, 2, 64);
    expect(new Source(7).tokens(580, 2, 64)).toEqual({ k, v });
    expect(new Source(8).tokens(580, 2, 64).k).not.toEqual(k);
    const rows = new Source(7).rows(1000, 64);
    const mean = rows.reduce((sum, x) => sum + x, 0) / rows.length;
    const variance = rows.reduce((sum, x) => sum + (x - mean) ** 2, 0) / rows.length;
    expect(Math.abs(mean)).toBeLessThan(0.02);
    expect(Math.abs(variance - 1)).toBeLessThan(0.02);
    // Head 0 has its large channels where 7d is a multiple of 25.
    const channel = (d: number) => k.filter((_, i) => i % 128 === d);
    const size = (x: Float32Array) => Math.sqrt(x.reduce((sum, y) => sum + y * y, 0) / x.length);
    expect(size(channel(25)) / size(channel(24))).toBeGreaterThan(6);
  });
});
