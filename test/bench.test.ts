import { existsSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { runBench } from "../bench/bench.js";
import { cases } from "../bench/cases.js";
import { timeEntrants } from "../bench/compare.js";
import { Source } from "../bench/data.js";
import { onnxruntimePeers } from "../bench/peers/onnxruntime.js";
import { AbsentError, checkResult, PeerError } from "../bench/peers/peer.js";
import { Refusals } from "../bench/peers/refusals.js";
import { referencesFor } from "../bench/references.js";
import { type BenchResult, type Line, misses, render, titleOf } from "../bench/report.js";
import { Race, race } from "../bench/timing.js";
import { openUncompressed } from "../src/cli/uncompressed.js";

/** Where `npm run peers` has been. */
const hasPeers = existsSync("build/peers/node_modules");

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
    const { status, stdout, stderr } = await bench("--quick", "--json", "--backend", "wasm");
    const results = JSON.parse(stdout) as BenchResult[];
    expect(status).toBe(0);
    expect([...new Set(results.map(titleOf))]).toEqual(cases.map(titleOf));
    for (const one of cases) {
      const [ours, ...others] = results.filter((result) => titleOf(result) === titleOf(one));
      expect(ours.backend).toBe("wasm");
      expect(others.length).toBeGreaterThan(0);
      expect(others.map(({ value }) => value)).toContain(ours.baseline);
    }
    for (const result of results) {
      expect(Object.keys(result)).toEqual([
        ...["name", "backend", "variant", "case", "value", "unit", "baseline", "ratio"],
      ]);
      expect(result.value).toBeGreaterThan(0);
      expect(result.ratio).toBeGreaterThan(0);
    }
    const told = stderr.split("\n").filter((line) => line.includes("not installed"));
    if (hasPeers) expect(told).toEqual([]);
    else {
      expect(told).toEqual([
        "not run: onnxruntime-web: not installed; `npm run peers` does that",
        "not run: llama.cpp in node-llama-cpp: not installed; `npm run peers` does that",
      ]);
    }
  });

  it("print a table of the cases asked for, and fail a check that is missed", async () => {
    const args = ["--quick", "--backend", "reference", "--case", "encode k4v2"];
    const { status, stdout } = await bench(...args);
    expect(status).toBe(0);
    expect(stdout).toMatch(/^reference f64: /);
    expect(stdout).toMatch(
      /\nencode k4v2_g128 d128 +reference f64 .* us\/record .* passes of a plain SIMD pass {2}<= 35 FAIL {2}<= 25 FAIL\n/,
    );
    expect(stdout).toMatch(/\n +plain pass f32 simd .* 1\.00 {2}passes of a plain SIMD pass\n$/);
    expect((await bench(...args, "--check")).status).toBe(1);
    expect((await bench("--quick", "--backend", "reference", "--case", "rotate", "--check")).status).toBe(0);
  });

  it("refuse what they do not know", async () => {
    await expect(bench("--case", "nothing")).rejects.toThrow("no case contains 'nothing'");
    await expect(bench("--fast")).rejects.toThrow("--fast");
    await expect(bench("--backend", "fpga")).rejects.toMatchObject({ code: "invalid-argument" });
    await expect(bench("--browser", "lynx")).rejects.toThrow("got 'lynx'");
  });
});

describe("a case", () => {
  // A clock that only contenders move.
  let now = 0;
  beforeEach(() => vi.spyOn(performance, "now").mockImplementation(() => now));
  afterEach(() => vi.restoreAllMocks());
  const entrant = (label: string, ms: number, perCall: number, isBaseline: boolean) => {
    return {
      ...{ backend: label, variant: "v", label, isBaseline, perCall },
      contender: { run: () => void (now += ms) },
    };
  };
  const entrants = [
    entrant("ours", 6, 2, false),
    entrant("slow", 24, 1, true),
    entrant("fast", 4, 1, true),
    entrant("native", 1, 1, false),
  ];
  const effort = { warmUpMs: 0, sampleMs: 0, totalMs: 0, leastSamples: 2 };
  const one = { name: "n", case: "c", unit: "us" as const, gate: { least: 1.5 } };

  it("is compared with the fastest baseline, by what a call does", async () => {
    const lines = await timeEntrants({ ...one, ratioUnit: "x speed" }, entrants, effort);
    const found = lines.map(({ backend, value, ratio, gate }) => ({ backend, value, ratio, gate }));
    expect(found).toEqual([
      { backend: "ours", value: 3000, ratio: 4 / 3, gate: one.gate },
      { backend: "slow", value: 24000, ratio: 1 / 6, gate: undefined },
      { backend: "fast", value: 4000, ratio: 1, gate: undefined },
      { backend: "native", value: 1000, ratio: 4, gate: undefined },
    ]);
    for (const line of lines) expect(line).toMatchObject({ baseline: 4000, against: "fast" });
  });

  it("has ratios of times the other way round", async () => {
    const [ours, slow] = await timeEntrants({ ...one, ratioUnit: "x time" }, entrants, effort);
    expect([ours.ratio, slow.ratio]).toEqual([0.75, 6]);
  });
});

describe("a report", () => {
  const line: Line = {
    ...{ name: "attend", backend: "wasm", variant: "strict", case: "d128 t4096", value: 2, unit: "us" },
    ...{ baseline: 3, ratio: 1.5, against: "f32", ratioUnit: "x speed" },
  };

  it("judges gates either way, and none that is not there", () => {
    expect(misses(line)).toBe(false);
    expect(misses({ ...line, gate: { least: 1.5 } })).toBe(false);
    expect(misses({ ...line, gate: { least: 1.6 } })).toBe(true);
    expect(misses({ ...line, gate: { most: 1.5 } })).toBe(false);
    expect(misses({ ...line, gate: { most: 1.4 } })).toBe(true);
  });

  it("names a case once, and what did not run or was measured elsewhere below", () => {
    const other = { ...line, backend: "peer", variant: "8 bits" };
    const text = render({ title: "here", lines: [line, other], absent: ["x: gone"] }, ["y 3 us"]);
    expect(text.match(/attend d128 t4096/g)).toHaveLength(1);
    expect(text).toMatch(/^here\n\n/);
    expect(text).toMatch(/\nNot run: x: gone\nMeasured elsewhere: y 3 us\n$/);
  });

  it("has references beside their cases only", () => {
    expect(referencesFor([line])).toEqual([expect.stringContaining("12.9 ns")]);
    expect(referencesFor([{ ...line, name: "decode" }])).toEqual([]);
    const onGpu = { ...line, backend: "webgpu", case: "k4v2_g128 d128 h32/8 t131172" };
    expect(referencesFor([onGpu])).toEqual([expect.stringContaining("441 us")]);
  });
});

describe("race", () => {
  const effort = { warmUpMs: 0, sampleMs: 0, totalMs: 0, leastSamples: 4 };

  it("takes turns, resets before each sample, and counts calls", async () => {
    const log: string[] = [];
    const contender = (name: string) => ({
      run: (call: number) => void log.push(`${name}${call}`),
      reset: () => void log.push(`${name}r`),
    });
    await race([contender("a"), contender("b")], effort);
    const [warmUp, samples] = [log.slice(0, 12), log.slice(12)];
    expect(warmUp).toEqual(["ar", "a0", "ar", "a1", "ar", "a2", "br", "b0", "br", "b1", "br", "b2"]);
    expect(samples).toEqual([3, 4, 5, 6].flatMap((call) => ["ar", `a${call}`, "br", `b${call}`]));
  });

  it("compares medians, and rounds", async () => {
    const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
    let calls = 0;
    // One slow sample of five is no matter.
    const slow = { run: () => wait(++calls === 6 ? 200 : 40) };
    const result = await race([slow, { run: () => wait(10) }], { ...effort, leastSamples: 5 });
    expect(result.ms(0)).toBeGreaterThanOrEqual(39);
    expect(result.ms(0)).toBeLessThan(200);
    expect(result.ms(1)).toBeGreaterThanOrEqual(9);
    expect(result.ratio(0, 1)).toBeGreaterThan(1);
    const rounds = new Race([
      [1, 2],
      [3, 3],
      [8, 4],
    ]);
    expect(rounds.ms(0)).toBe(3);
    expect(rounds.ratio(0, 1)).toBe(1);
    expect(rounds.ratio(1, 0)).toBe(1);
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
      const result = await race([{ run: () => spin(0.1) }, { run: () => spin(0.05) }], {
        ...{ warmUpMs: 40, sampleMs: 20, totalMs: 100, leastSamples: 3 },
      });
      expect(result.ms(0)).toBeGreaterThan(0.08);
      expect(result.ratio(0, 1)).toBeGreaterThan(1);
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

describe("peers", () => {
  it("are named once for each reason", () => {
    const refusals = new Refusals();
    for (const variant of ["a", "b"]) {
      refusals.add({ backend: "x 1", variant }, "one", new PeerError("too long\nand more"));
      refusals.add({ backend: "x 1", variant }, "two", new PeerError("too long"));
      refusals.add({ backend: "y", variant }, "one", new AbsentError("not installed"));
    }
    expect(refusals.list()).toEqual(["x 1 (a, b): too long (one; two)", "y: not installed"]);
  });

  it("are refused where they compute something else", () => {
    const expected = Float32Array.of(3, 4);
    expect(() => checkResult(Float32Array.of(3, 4.05), expected, 0.02)).not.toThrow();
    expect(() => checkResult(Float32Array.of(3, 4.5), expected, 0.02)).toThrow(PeerError);
    expect(() => checkResult(Float32Array.of(3, NaN), expected, 0.02)).toThrow("differs by NaN");
  });

  // They are no part of an installation, CI's neither.
  if (!hasPeers) {
    console.warn("peers are absent, their test is left out: `npm run peers` installs them");
    return;
  }
  it("of ONNX Runtime attend to what they are given, one token or many", async () => {
    const heads = { queryHeads: 8, kvHeads: 2, headDim: 64 };
    const tokens = 70;
    for (const queries of [1, 3]) {
      const chunks = () => [new Source(1).tokens(tokens, 2, 64)];
      const q = new Source(2).rows(queries * 8, 64);
      const exact = await openUncompressed({ ...heads, capacity: tokens });
      const expected = new Float32Array(q.length);
      const [{ k, v }] = chunks();
      for (let token = 0; token < tokens; token++) {
        exact.append(k.subarray(128 * token, 128 * (token + 1)), v.subarray(128 * token, 128 * (token + 1)));
        const query = token - tokens + queries;
        if (query >= 0) expected.set(exact.attend(q.subarray(512 * query, 512 * (query + 1))), 512 * query);
      }
      const work = { ...heads, tokens, queries, chunks, q, expected };
      for (const peer of await onnxruntimePeers()) {
        await (await peer.open(work)).run(0);
        await expect(peer.open({ ...work, expected: expected.map((x) => -x) })).rejects.toThrow("differs by");
      }
    }
  });
});
