import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { PassThrough } from "node:stream";
import { fileURLToPath } from "node:url";
import { hasGpu } from "./support/engines.js";
import { describe, expect, it, vi } from "vitest";
import { runCli } from "../src/cli/cli.js";
import type { ConformanceResult } from "../src/cli/conformance.js";
import type { DoctorReport } from "../src/cli/doctor.js";
import type { SizeReport } from "../src/cli/size.js";
import { USUAL_PRESETS } from "../src/cli/sizes.js";
import { selfCheck } from "../src/cli/self-check.js";
import { openKvarn } from "../src/index.js";
import { Kvarn } from "../src/kvarn.js";
import { referenceBackend } from "../src/reference/index.js";

const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as {
  version: string;
};

async function run(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const stderr = new PassThrough();
  let text = "";
  const status = await runCli(args, { stdout: { write: (part) => (text += part) }, stderr });
  return { status, stdout: text, stderr: (stderr.read() as Buffer | null)?.toString() ?? "" };
}

describe("kvarn", () => {
  it.each(["--help", "-h", "help"])("lists the commands at %s", async (argument) => {
    const { status, stdout, stderr } = await run(argument);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toMatch(/^Usage: kvarn COMMAND \[options\]\n/);
    expect(stdout).toMatch(/^ {2}report +\S/m);
    expect(stdout).toMatch(/^ {2}doctor +\S/m);
  });

  it("prints its version", async () => {
    expect(await run("--version")).toEqual({ status: 0, stdout: `${version}\n`, stderr: "" });
  });

  it.each([
    [[], "a command is missing"],
    [["repot"], "unknown command 'repot'"],
    [["--verbose"], "unknown option '--verbose'"],
    [["--json", "report"], "unknown option '--json'"],
  ])("refuses %j", async (args, message) => {
    const { status, stdout, stderr } = await run(...args);
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    expect(stderr).toContain(`kvarn: ${message}\n\nUsage: kvarn COMMAND [options]\n`);
  });

  it.each(["report", "size", "doctor", "conformance"])(
    "explains %s, wherever --help stands",
    async (command) => {
      for (const args of [["--help"], ["-h"], ["x", "--help"], ["--no-such-option", "--help"]]) {
        const { status, stdout, stderr } = await run(command, ...args);
        expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
        expect(stdout).toMatch(new RegExp(`^Usage: kvarn ${command} `));
        expect(Math.max(...stdout.split("\n").map((line) => line.length))).toBeLessThanOrEqual(102);
      }
    },
  );

  it("takes what follows -- for a file", async () => {
    const { status, stderr } = await run("report", "--", "--help");
    expect(status).toBe(1);
    expect(stderr).toBe("kvarn: cannot read --help: no such file or directory\n");
  });

  it("does not hide its own mistakes", async () => {
    const broken = {
      write: () => {
        throw new TypeError("broken");
      },
    };
    await expect(runCli(["--version"], { stdout: broken, stderr: new PassThrough() })).rejects.toThrow(
      TypeError,
    );
  });
});

describe("kvarn doctor", () => {
  it("tries every backend and variant, and checks those that open", async () => {
    const { status, stdout, stderr } = await run("doctor", "--json");
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    const report = JSON.parse(stdout) as DoctorReport;
    expect(report).toMatchObject({
      kvarn: version,
      runtime: "node",
      version: process.versions.node,
      platform: process.platform,
      arch: process.arch,
      features: { simd128: true, float16Array: "Float16Array" in globalThis },
    });
    expect(report.cores).toBeGreaterThan(0);
    const tried = report.backends.map(({ kind, variant }) => `${kind} ${variant}`);
    expect(tried).toEqual([
      "webgpu f32",
      "wasm strict",
      "wasm strict-f32",
      "wasm relaxed",
      "wasm relaxed-f32",
      "reference f64",
    ]);
    for (const { kind, variant, runs, check, problem } of report.backends) {
      const isRelaxed = variant.startsWith("relaxed");
      if (kind === "webgpu" && !hasGpu) {
        expect(problem).toMatch(/navigator.gpu|adapter/);
      } else if (!isRelaxed || report.features.relaxedSimd) {
        expect({ variant, runs, problem }).toEqual({ variant, runs: true, problem: null });
        expect(check!.outputDifference).toBeLessThan(variant.endsWith("f32") ? 1e-5 : 1e-3);
        expect(check!.errorGrowth).toBeLessThan(1.05);
      } else {
        expect({ variant, runs, check }).toEqual({ variant, runs: false, check: null });
        expect(problem).toMatch(/relaxed/);
      }
    }
    const kvarn = await openKvarn();
    expect(report.auto).toEqual(kvarn.backend);
    kvarn.dispose();
  });

  it("prints the same for people, within 100 columns", async () => {
    const { status, stdout } = await run("doctor");
    expect(status).toBe(0);
    expect(stdout).toMatch(new RegExp(`^kvarn +${version.replaceAll(".", "\\.")}\n`));
    expect(stdout).toContain(`Node ${process.versions.node}`);
    expect(stdout).toMatch(/^wasm strict: runs \(attention off by [\d.e+-]+, encoding error [\d.]+ times/m);
    expect(stdout).toMatch(/^wasm relaxed: (runs|does not run: )/m);
    expect(stdout).toMatch(hasGpu ? /^webgpu f32: runs on \S+/m : /^webgpu f32: does not run: /m);
    expect(stdout).toMatch(/^auto takes wasm \S+: /m);
    for (const line of stdout.split("\n")) expect(line.length).toBeLessThanOrEqual(100);
  });

  it("takes no files", async () => {
    const { status, stderr } = await run("doctor", "x");
    expect(status).toBe(2);
    expect(stderr).toMatch(/^kvarn: Unexpected argument 'x'/);
  });
});

describe("kvarn size", () => {
  const model = ["--layers", "2", "--kv-heads", "3", "--head-dim", "64"];

  it("says what a cache comes to hold", async () => {
    const args = [...model, "--tokens", "1000", "--preset", "k4v2_g64,k3v8_g128", "--exact-window", "70"];
    const { status, stdout, stderr } = await run("size", ...args, "--json");
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    const report = JSON.parse(stdout) as SizeReport;
    const question = { layers: 2, kvHeads: 3, headDim: 64, tokens: 1000, exactWindow: 70 };
    expect(report).toMatchObject({ kvarn: version, ...question });
    expect(report.presets.map(({ preset }) => preset)).toEqual(["k4v2_g64", "k3v8_g128"]);
    const kvarn = await openKvarn({ backend: "wasm" });
    for (const { preset, bitsPerValue, ...bytes } of report.presets) {
      const cache = kvarn.createCache({ ...question, queryHeads: 6, preset });
      const zeros = new Float32Array(1000 * 3 * 64);
      for (const layer of [0, 1]) await cache.append(layer, zeros, zeros);
      await cache.flush();
      expect(cache.memory()).toMatchObject(bytes);
      expect(bytes.f16Bytes).toBe(2 * 2 * 2 * 3 * 64 * 1000);
      expect(bitsPerValue).toBeCloseTo((8 * bytes.totalBytes) / (2 * 2 * 3 * 64 * 1000), 12);
    }
    kvarn.dispose();
  });

  it("prints a table of the usual presets", async () => {
    const { status, stdout } = await run("size", ...model, "--tokens", "32768");
    expect(status).toBe(0);
    const lines = stdout.split("\n");
    expect(lines[0]).toBe("2 layers, 3 KV heads of 64, 32,768 tokens: 48.0 MiB in binary16");
    expect(stdout).toMatch(/^ *preset +exact +records +total +smaller +bits\/value$/m);
    expect(stdout).toMatch(/^ *k4v2_g128 +0\.188 +10\.6 +10\.8 +4\.43x +3\.61$/m);
    expect(lines.filter((line) => /^ *k\d/.test(line))).toHaveLength(USUAL_PRESETS.length);
    for (const line of lines) expect(line.length).toBeLessThanOrEqual(100);
  });

  it.each([
    [model, 2, "--tokens is missing"],
    [[...model, "--tokens", "many"], 2, "--tokens takes a whole number, got 'many'"],
    [[...model, "--tokens", "9", "x"], 2, "Unexpected argument 'x'"],
    [[...model, "--tokens", "9", "--preset", "k1v1_g8"], 1, "preset must be k{b}v{b}"],
    [["--layers", "2", "--kv-heads", "3", "--head-dim", "65", "--tokens", "9"], 1, "headDim must be"],
  ])("refuses %j", async (args, expected, message) => {
    const { status, stdout, stderr } = await run("size", ...args);
    expect({ status, stdout }).toEqual({ status: expected, stdout: "" });
    expect(stderr).toContain(`kvarn: ${message}`);
  });
});

describe("selfCheck", () => {
  /** The reference engine with something spoiled. */
  function spoiled(spoil: (backend: ReturnType<typeof referenceBackend>) => void): Kvarn {
    const backend = referenceBackend();
    spoil(backend);
    return new Kvarn(backend, "for a test");
  }

  it("passes the reference and fails an engine that attends or encodes wrongly", async () => {
    const reference = new Kvarn(referenceBackend(), "for a test");
    expect(
      await selfCheck(
        spoiled(() => {}),
        reference,
      ),
    ).toEqual({
      passed: true,
      outputDifference: 0,
      errorGrowth: 1,
    });
    const attendsWrongly = spoiled((backend) => {
      const create = backend.createStore.bind(backend);
      backend.createStore = (shape, mayLeave) => {
        const store = create(shape, mayLeave);
        const attend = store.attend.bind(store);
        store.attend = async (request) => {
          await attend({ ...request, softmaxScale: request.softmaxScale * 1.01 });
        };
        return store;
      };
    });
    const attended = await selfCheck(attendsWrongly, reference);
    expect(attended).toMatchObject({ passed: false, errorGrowth: 1 });
    expect(attended.outputDifference).toBeGreaterThan(1e-3);
    const encodesWrongly = spoiled((backend) => {
      const create = backend.createStore.bind(backend);
      backend.createStore = (shape, mayLeave) => create({ ...shape, iterations: 0 }, mayLeave);
    });
    const encoded = await selfCheck(encodesWrongly, reference);
    expect(encoded).toMatchObject({ passed: false, outputDifference: 0 });
    expect(encoded.errorGrowth).toBeGreaterThan(1.05);
  });
});

const built = fileURLToPath(new URL("../dist/cli/main.js", import.meta.url));

describe.skipIf(!existsSync(built))("the built command", () => {
  function start(
    args: string[],
    closeStdout = false,
  ): Promise<{ status: number | null; stdout: string; stderr: string }> {
    return new Promise((resolve, reject) => {
      const child = spawn(process.execPath, [built, ...args]);
      let [stdout, stderr] = ["", ""];
      child.stdout.on("data", (part: Buffer) => (stdout += part.toString()));
      child.stderr.on("data", (part: Buffer) => (stderr += part.toString()));
      child.on("error", reject);
      child.on("close", (status) => resolve({ status, stdout, stderr }));
      if (closeStdout) child.stdout.destroy();
    });
  }

  it("is executable and knows its version", async () => {
    expect(readFileSync(built, "utf8")).toMatch(/^#!\/usr\/bin\/env node\n(?!#!)/);
    expect(await start(["--version"])).toEqual({ status: 0, stdout: `${version}\n`, stderr: "" });
  });

  it("exits with 1 and one line, or 2 and the usage", async () => {
    const missing = await start(["report", "no-such-file"]);
    expect(missing).toEqual({
      status: 1,
      stdout: "",
      stderr: "kvarn: cannot read no-such-file: no such file or directory\n",
    });
    const unknown = await start(["--no-such-option"]);
    expect(unknown).toMatchObject({ status: 2, stdout: "" });
    expect(unknown.stderr).toMatch(/^kvarn: unknown option/);
    expect(unknown.stderr).not.toContain("    at ");
  });

  it("is quiet when its reader has gone", async () => {
    const size = ["size", "--layers", "2", "--kv-heads", "2", "--head-dim", "64", "--tokens", "1000"];
    expect(await start(size, true)).toEqual({ status: 0, stdout: "", stderr: "" });
  });
});

describe("kvarn conformance", () => {
  it("prints a table of what runs and why the rest does not", async () => {
    const { status, stdout, stderr } = await run("conformance", "--backend", "wasm");
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    const titles = /^ +backend +rotate +normalize +pack +encode +decode +attend +cache$/m;
    expect(stdout).toMatch(titles);
    for (const variant of ["strict", "strict-f32", "relaxed", "relaxed-f32"]) {
      expect(stdout).toMatch(
        new RegExp(`^( *wasm ${variant}( +\\d+){7}|wasm ${variant} does not run: .*)$`, "m"),
      );
    }
    expect(stdout).toMatch(/^\d+ passed, 0 failed\n$/m);
    expect(stdout).not.toContain("reference");
  });

  it("prints every check as JSON", async () => {
    const { status, stdout } = await run("conformance", "--backend", "reference", "--json");
    expect(status).toBe(0);
    const { kvarn, backends } = JSON.parse(stdout) as ConformanceResult;
    expect(kvarn).toBe(version);
    expect(backends).toHaveLength(1);
    const [{ kind, variant, problem, report }] = backends;
    expect({ kind, variant, problem }).toEqual({ kind: "reference", variant: "f64", problem: null });
    expect(report!.counts).toEqual({ passed: report!.checks.length, failed: 0, notCovered: 0 });
  });

  it("exits with 1 and names the check when one fails", async () => {
    const pack = vi.spyOn(Kvarn.prototype, "pack").mockRejectedValue(new Error("planted"));
    try {
      const { status, stdout } = await run("conformance", "--backend", "reference");
      expect(status).toBe(1);
      expect(stdout).toMatch(/^reference f64: pack, 2 bits: failed: planted$/m);
      expect(stdout).toMatch(/^ *reference f64 +\d+ +\d+ +0 of 6 /m);
      expect(stdout).toMatch(/^\d+ passed, 6 failed$/m);
    } finally {
      pack.mockRestore();
    }
  });

  it("exits with 1 when nothing of the backend asked for runs", async () => {
    const open = vi.spyOn(WebAssembly, "validate").mockReturnValue(false);
    try {
      const { status, stdout } = await run("conformance", "--backend", "wasm");
      expect(status).toBe(1);
      expect(stdout).toMatch(/^wasm strict does not run: /m);
    } finally {
      open.mockRestore();
    }
  });

  it("refuses backends that there are not", async () => {
    const { status, stderr } = await run("conformance", "--backend", "cuda");
    expect(status).toBe(2);
    expect(stderr).toContain("kvarn: --backend takes webgpu, wasm or reference, got 'cuda'");
  });
});
