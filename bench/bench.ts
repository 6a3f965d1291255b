/** `npm run bench`: one harness, one table. */
import { parseOptions, type Streams, UsageError } from "../src/cli/command.js";
import { referencesFor } from "./references.js";
import { misses, render, toJson } from "./report.js";
import { runCases, type RunOptions } from "./run.js";

const help = `Usage: npm run bench -- [options]

Times the public calls, by default on one thread, in turn with what they are compared with: one plain SIMD
pass over the same f32 data (scale, sum, sum of squares), attention over an uncompressed f32 cache, both as fast
as we could make them, and peers: ONNX Runtime's GroupQueryAttention, llama.cpp. \`npm run peers\` installs
those. Medians; ratios are medians over rounds, against the fastest baseline of the round's run.

With --backend webgpu, by the GPU's own clock: attention of one token, sink and tail included, against our
own attention over a binary16 cache, encoding against a rotation, and both against their bytes at the rate
of a copy; prefill against the same over a binary16 cache.

Options:
  --case SUBSTRING   only cases whose name and description contain it, such as 'attend' or 't32768'
  --backend NAME     auto (default), webgpu, wasm or reference
  --variant NAME     strict, relaxed, strict-f32 or relaxed-f32 of wasm; default: what auto takes
  --browser NAME     in a page of chromium or firefox, headless, instead of here
  --threads N        of wasm; default 1, as the baseline has
  --matrix           of webgpu in Node: has Dawn offer its experiment with matrix units
  --json             a list of { name, backend, variant, case, value, unit, baseline, ratio }, nothing else
  --check            exit with 1 when a gate is missed
  --quick            one sample over short contexts: shows that it runs, measures nothing
  -h, --help         this text

`;

const OPTIONS = {
  case: { type: "string", default: "" },
  backend: { type: "string", default: "auto" },
  variant: { type: "string" },
  browser: { type: "string" },
  threads: { type: "string", default: "1" },
  matrix: { type: "boolean", default: false },
  json: { type: "boolean", default: false },
  check: { type: "boolean", default: false },
  quick: { type: "boolean", default: false },
  help: { type: "boolean", short: "h", default: false },
} as const;

/**
 * Runs the benchmarks that a command line asks for.
 * @param args without the program's name
 * @returns the exit status
 * @throws {UsageError} when the command line is wrong
 * @throws {KvarnError} as `openKvarn`
 */
export async function runBench(args: string[], { stdout, stderr }: Streams): Promise<number> {
  const { values } = parseOptions({ args, options: OPTIONS });
  if (values.help) {
    stdout.write(help);
    return 0;
  }
  const { browser, json, check, threads, ...rest } = values;
  const options = { ...rest, threads: Number(threads) };
  const progress = (title: string) => {
    if (stderr.isTTY) stderr.write(`\r\x1b[K${title}`);
  };
  const report =
    browser === undefined ? await runCases(options, progress) : await runInPage(browser, options);
  progress("");
  if (report.lines.length === 0) throw new UsageError(`no case contains '${options.case}'`);
  if (json) {
    stdout.write(toJson(report));
    for (const reason of report.absent) stderr.write(`not run: ${reason}\n`);
  } else {
    stdout.write(render(report, referencesFor(report.lines)));
  }
  return check && report.lines.some(misses) ? 1 : 0;
}

async function runInPage(browser: string, options: RunOptions) {
  if (browser !== "chromium" && browser !== "firefox") {
    throw new UsageError(`--browser takes chromium or firefox, got '${browser}'`);
  }
  // Only there: it brings a bundler and a driver of browsers.
  return (await import("./browser.js")).runInBrowser(browser, options);
}
