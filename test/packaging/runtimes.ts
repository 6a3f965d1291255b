/**
 * The runtime matrix: the packed package, installed as a user does, checked by one program in every JavaScript runtime. Run
 * by `npm run test:runtimes`; `npm run runtimes` installs those that npm has. One that is absent is named and left out,
 * unless `KVARN_REQUIRE` is set.
 */
import { execFile } from "node:child_process";
import { existsSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import * as esbuild from "esbuild";
import { format } from "prettier";
import type { Browser } from "puppeteer-core";
import { afterAll, describe, expect, it } from "vitest";
import { browsers, listenTo, serveFolder } from "../support/browsers.js";
import { installPackage } from "./install.js";
import { enginesOf, expectReport, type Report } from "./report.js";

/** Where the runtimes from npm are installed, and where the table goes. */
const { KVARN_RUNTIMES = "build/runtimes", KVARN_RUNTIMES_TABLE = "docs/runtimes.md" } = process.env;
const installed = resolve(KVARN_RUNTIMES, "node_modules");

interface Runtime {
  name: string;
  /** Runs the check there; undefined where the runtime is absent. */
  run: (() => Promise<Report>) | undefined;
  /** Runs `kvarn report` on the fixture, where there is a command line. */
  report?: () => Promise<{ total: { error: { output: number } } }>;
  /** Engines that have to run, beside those that run everywhere; `webgpu` where there is a GPU. */
  engines?: readonly ("webgpu" | "relaxed")[];
}

const ALL = ["webgpu", "relaxed"] as const;
const workerd = join(installed, ".bin/workerd");

const { root, remove } = installPackage([
  "check.js",
  "contexts.js",
  "main.js",
  "worker.js",
  "workerd.js",
  "workerd.capnp",
]);
symlinkSync(resolve("node_modules/webgpu"), join(root, "node_modules/webgpu"));
// Neither workers nor workerd look for packages.
await esbuild.build({
  absWorkingDir: root,
  entryPoints: ["contexts.js", "worker.js", "workerd.js"],
  external: ["kvarn/kvarn.wasm"],
  bundle: true,
  format: "esm",
  outdir: "bundles",
});
writeFileSync(join(root, "bundles/index.html"), '<!doctype html><link rel="icon" href="data:," />');
const server = await serveFolder(join(root, "bundles"));
const opened = new Map<string, Promise<Browser>>();

afterAll(async () => {
  for (const browser of opened.values()) await (await browser).close();
  await server.close();
  remove();
});

/** Runs an executable, which has to exit by itself and to say nothing but its report, in JSON. */
async function runProgram<T>(executable: string, args: readonly string[], expected = /^$/): Promise<T> {
  const { stdout, stderr } = await promisify(execFile)(executable, args, { cwd: root, timeout: 200_000 });
  expect(stderr).toMatch(expected);
  return JSON.parse(stdout) as T;
}

const FIXTURE = resolve("fixtures/smollm2-135m.kv.safetensors");
const REPORT = ["node_modules/kvarn/dist/cli/main.js", "report", FIXTURE, "--backend", "wasm", "--json"];

/** A runtime with a command line. Permissions are what Deno needs for each. */
function program(name: string, executable: string, run: string[] = [], runFreely = run): Runtime {
  if (!existsSync(executable)) return { name, run: undefined };
  return {
    name,
    run: () => runProgram(executable, [...run, "main.js"]),
    report: () => runProgram(executable, [...runFreely, ...REPORT]),
    engines: ALL,
  };
}

/** Runs one of `contexts.js` in a page of its own. */
async function runInBrowser(name: string, open: () => Promise<Browser>, context: string): Promise<Report> {
  if (!opened.has(name)) opened.set(name, open());
  const page = await (await opened.get(name)!).newPage();
  const noise = listenTo(page);
  await page.goto(server.url);
  const report = await page.evaluate(
    `import("./contexts.js").then(({ contexts }) => contexts["${context}"]())`,
  );
  expect(noise).toEqual([]);
  await page.close();
  return report as Report;
}

const runtimes: Runtime[] = [
  // Older ones have no relaxed instructions. Other tests see to its command line.
  { ...program("Node", process.execPath), engines: ["webgpu"], report: undefined },
  program("Node 24", join(installed, "node24/bin/node")),
  program("Node 26", join(installed, "node26/bin/node")),
  program("Deno", join(installed, ".bin/deno"), ["run", "--no-prompt"], ["run", "--allow-all"]),
  program("Bun", join(installed, ".bin/bun")),
  {
    name: "workerd",
    run: existsSync(workerd)
      ? () => runProgram(workerd, ["test", "workerd.capnp"], /^.*TEST.*\n.*PASS.*\n$/)
      : undefined,
  },
  ...["chromium", "firefox"].flatMap((browser) => {
    const [, open] = browsers.find(([name]) => name === browser) ?? [];
    return ["page", "worker", "shared worker", "service worker"].map((context): Runtime => {
      // Firefox has no WebGPU in service workers.
      const hasGpu = browser !== "firefox" || context !== "service worker";
      return {
        name: `${browser}, ${context}`,
        run: open && (() => runInBrowser(browser, open, context)),
        engines: hasGpu ? ALL : ["relaxed"],
      };
    });
  }),
];

/** What the README says of the fixture. */
const OUTPUT_ERROR =
  Number(/attention output error ([\d.]+) %/.exec(readFileSync("README.md", "utf8"))![1]) / 100;

const reports = new Map<Runtime, Report>();

describe("the package as a user installs it", () => {
  for (const runtime of runtimes) {
    const { name, run, report: reportFixture, engines = [] } = runtime;
    if (!run && !process.env.KVARN_REQUIRE) console.warn(`${name} is absent, it is left out`);
    it.skipIf(!run && !process.env.KVARN_REQUIRE).concurrent(name, async () => {
      if (!run) throw new Error(`${name} is absent`);
      const report = await run();
      reports.set(runtime, report);
      expectReport(report);
      const found = enginesOf(report);
      expect(found).toEqual(expect.arrayContaining(["wasm strict", "wasm strict-f32", "reference f64"]));
      if (engines.includes("relaxed")) expect(found).toContain("wasm relaxed");
      if (engines.includes("webgpu") && process.env.KVARN_REQUIRE) expect(found).toContain("webgpu f32");
    });
    if (reportFixture) {
      it.concurrent(`${name}: kvarn report`, async () => {
        const { total } = await reportFixture();
        expect(total.error.output).toBeCloseTo(OUTPUT_ERROR, 4);
      });
    }
  }
});

afterAll(async () => {
  const text = `${INTRODUCTION}\n\n${table()}\n`;
  writeFileSync(KVARN_RUNTIMES_TABLE, await format(text, { parser: "markdown", printWidth: 110 }));
});

const INTRODUCTION = `# Where it runs

The packed package, installed as a user does, in the runtimes of the machine where \`npm run test:runtimes\` last wrote this
page. Under an engine stands how far its attention is from the reference backend's over the same records, as a relative
difference; a dash: the engine does not run there. \`auto\` is what \`openKvarn()\` takes; GPUs of software it does not.`;

function table(): string {
  const engines = ["webgpu f32", "wasm strict", "wasm strict-f32", "wasm relaxed"];
  const header = ["runtime", "version", "auto", ...engines, "Float16Array"];
  const rows = runtimes.map((runtime) => {
    const report = reports.get(runtime);
    if (!report) return [runtime.name, runtime.run ? "failed" : "absent", ...header.slice(2).map(() => "")];
    const { version, float16Array } = report.runtime;
    const { kind, variant } = report.auto;
    const outputs = engines.map((name) => {
      const engine = report.engines.find((one) => `${one.kind} ${one.variant}` === name);
      return engine?.output.toExponential(1) ?? "-";
    });
    return [runtime.name, shorten(version), `${kind} ${variant}`, ...outputs, float16Array ? "yes" : "no"];
  });
  return [header, header.map(() => "-"), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
}

/** Of what a runtime calls itself, its version; workerd keeps it to itself. */
function shorten(version: string): string {
  return /(?:^|Chrome\/|Firefox\/)(\d[\d.]*)/.exec(version)?.[1] ?? "-";
}
