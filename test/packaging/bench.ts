/**
 * The benchmarks in other runtimes and in pages: that they run there. Run by `npm run test:runtimes`. What is absent is named and
 * left out, unless `KVARN_REQUIRE` is set.
 */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { runBench } from "../../bench/bench.js";
import type { BenchResult } from "../../bench/report.js";
import { browsers } from "../support/browsers.js";

const { KVARN_RUNTIMES = "build/runtimes" } = process.env;
const CASE = ["--quick", "--json", "--backend", "wasm", "--case", "attend k2v2"];

/** Takes what `--json` printed. */
function expectResults(text: string): void {
  const results = JSON.parse(text) as BenchResult[];
  expect(results.map(({ name, backend }) => `${name} ${backend}`)).toEqual([
    ...["attend wasm", "attend uncompressed"],
  ]);
  // One sample may be shorter than a step of the clock.
  for (const { value } of results) expect(value).toBeGreaterThanOrEqual(0);
}

describe("the benchmarks", () => {
  const runtimes = [
    ["Deno", resolve(KVARN_RUNTIMES, "node_modules/.bin/deno"), ["run", "-A"]],
    ["Bun", resolve(KVARN_RUNTIMES, "node_modules/.bin/bun"), []],
  ] as const;
  if (runtimes.some(([, executable]) => existsSync(executable))) {
    execFileSync("npx", ["tsc", "-p", "bench/tsconfig.json"]);
  }
  for (const [name, executable, run] of runtimes) {
    const isAbsent = !existsSync(executable) && !process.env.KVARN_REQUIRE;
    if (isAbsent) console.warn(`${name} is absent, benchmarks in it are left out`);
    it.skipIf(isAbsent)(`run in ${name}`, () => {
      expectResults(
        execFileSync(executable, [...run, "build/bench/bench/main.js", ...CASE], { encoding: "utf8" }),
      );
    });
  }

  for (const [name] of browsers) {
    it(`run in a page of ${name}`, async () => {
      let printed = "";
      const stdout = { write: (text: string) => (printed += text) };
      const status = await runBench([...CASE, "--browser", name], { stdout, stderr: process.stderr });
      expect(status).toBe(0);
      expectResults(printed);
    });
  }
});
