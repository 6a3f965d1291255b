/**
 * The runtime matrix: the packed package, installed as a user does, checked by one program in every JavaScript runtime. Run
 * by `npm run test:runtimes`; `npm run runtimes` installs those that npm has. One that is absent is named and left out,
 * unless `KVARN_REQUIRE` is set.
 */
import { execFile, spawn } from "node:child_process";
import { copyFileSync, existsSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Readable } from "node:stream";
import { promisify } from "node:util";
import * as esbuild from "esbuild";
import { format } from "prettier";
import type { Browser } from "puppeteer-core";
import { afterAll, describe, expect, it } from "vitest";
import { openKvarn } from "../../src/index.js";
import { browsers, ISOLATING, listenTo, serveFolder } from "../support/browsers.js";
import { installPackage } from "./install.js";
import type { DoctorReport } from "../../src/cli/doctor.js";
import type { Report as FixtureReport } from "../../src/cli/report.js";
import type { Subject } from "../../src/conformance/index.js";
import {
  type CheckOptions,
  countChecks,
  enginesOf,
  expectReport,
  expectThreads,
  nameOf,
  type Report,
} from "./report.js";

/** Where the runtimes from npm are installed, and where the table goes. */
const { KVARN_RUNTIMES = "build/runtimes", KVARN_RUNTIMES_TABLE = "docs/runtimes.md" } = process.env;
const installed = resolve(KVARN_RUNTIMES, "node_modules");

/** Milliseconds for one program. */
const PATIENCE = 400_000;

/** What `check.js` finds, and the relative error of attention on the fixture. */
interface Found extends Report {
  outputError: number;
  /** What a worker said. */
  noise?: string[];
}

interface Runtime {
  name: string;
  /** Runs everything there; undefined where the runtime is absent. */
  run: ((options: CheckOptions) => Promise<Found>) | undefined;
  /** Whether it has WebGPU. */
  gpu: boolean;
  /** Whether it has relaxed SIMD. */
  relaxed: boolean;
  /** Whether it has shared memory and workers. */
  threads: boolean;
}

/**
 * On a GPU of software the whole suite takes a core for the better part of a minute. With `KVARN_BRIEF` set, WebGPU engines run
 * these subjects alone, but for Firefox's page: CI has the whole suite on Dawn, which Chromium has, too, in Node, and records
 * on Deno, among its other tests.
 */
const BRIEF: readonly Subject[] = ["rotate", "normalize", "pack"];

const workerd = join(installed, ".bin/workerd");
const fixture = resolve("fixtures/smollm2-135m.kv.safetensors");

const { root, remove } = installPackage([
  "check.js",
  "check-all.js",
  "contexts.js",
  "main.js",
  "worker.js",
  "workerd.js",
  "workerd.capnp",
  "cloudflare.capnp",
]);
copyFileSync("examples/cloudflare/worker.js", join(root, "cloudflare.js"));
symlinkSync(resolve("node_modules/webgpu"), join(root, "node_modules/webgpu"));
await esbuild.build({
  entryPoints: [join(import.meta.dirname, "fixture.ts")],
  bundle: true,
  format: "esm",
  outdir: root,
});
// Neither workers nor workerd look for packages.
await esbuild.build({
  absWorkingDir: root,
  entryPoints: ["contexts.js", "worker.js", "workerd.js", "cloudflare.js"],
  external: ["kvarn/kvarn.wasm", "fixture.safetensors"],
  bundle: true,
  format: "esm",
  outdir: "bundles",
});
copyFileSync(fixture, join(root, "bundles/fixture.safetensors"));
writeFileSync(join(root, "bundles/index.html"), '<!doctype html><link rel="icon" href="data:," />');
const server = await serveFolder(join(root, "bundles"), ISOLATING);
const opened = new Map<string, Promise<Browser>>();

afterAll(async () => {
  for (const browser of opened.values()) await (await browser).close();
  await server.close();
  remove();
});

/** Runs an executable, which has to exit by itself and to say nothing but its report, in JSON. */
async function runProgram<T>(executable: string, args: readonly string[], expected = /^$/): Promise<T> {
  const { stdout, stderr } = await promisify(execFile)(executable, args, { cwd: root, timeout: PATIENCE });
  expect(stderr).toMatch(expected);
  return JSON.parse(stdout) as T;
}

/** How to run things with an executable. Permissions are what Deno needs for each. */
function program(executable: string, run: string[] = [], runFreely = run): Runtime["run"] {
  if (!existsSync(executable)) return undefined;
  const command = <T>(...args: string[]): Promise<T> =>
    runProgram<T>(executable, [...runFreely, "node_modules/kvarn/dist/cli/main.js", ...args, "--json"]);
  return async (options) => {
    const report = await runProgram<Report>(executable, [...run, "main.js", JSON.stringify(options)]);
    const doctor = await command<DoctorReport>("doctor");
    const found = doctor.backends.filter(({ runs }) => runs).map((backend) => nameOf(backend));
    expect(found).toEqual(expect.arrayContaining(enginesOf(report)));
    expect(nameOf(doctor.auto)).toBe(nameOf(report.auto));
    const { total } = await command<FixtureReport>("report", fixture, "--backend", "wasm");
    return { ...report, outputError: total.error.output! };
  };
}

/** A version of Node: the one that runs this, or one that is installed. */
function node(major: number): Runtime {
  const isThis = process.versions.node.startsWith(`${major}.`);
  const run = program(isThis ? process.execPath : join(installed, `node${major}/bin/node`));
  return { name: `Node ${major}`, run, gpu: true, relaxed: major > 20, threads: true };
}

/** Runs one of `contexts.js` in a page of its own. */
async function runInBrowser(
  name: string,
  open: () => Promise<Browser>,
  context: string,
  options: CheckOptions,
): Promise<Found> {
  if (!opened.has(name)) opened.set(name, open());
  const page = await (await opened.get(name)!).newPage();
  const heard = listenTo(page);
  await page.goto(server.url);
  const { noise = [], ...report } = (await page.evaluate(
    `import("./contexts.js").then(({ contexts }) => contexts["${context}"](${JSON.stringify(options)}))`,
  )) as Found;
  expect([...heard, ...noise]).toEqual([]);
  await page.close();
  return report;
}

const runtimes: Runtime[] = [
  ...[20, 24, 26].map(node),
  {
    name: "Deno",
    run: program(join(installed, ".bin/deno"), ["run", "--no-prompt"], ["run", "--allow-all"]),
    gpu: true,
    relaxed: true,
    threads: true,
  },
  { name: "Bun", run: program(join(installed, ".bin/bun")), gpu: true, relaxed: true, threads: true },
  {
    name: "workerd",
    run: existsSync(workerd)
      ? () => runProgram(workerd, ["test", "workerd.capnp"], /^.*TEST.*\n.*PASS.*\n$/)
      : undefined,
    gpu: false,
    relaxed: false,
    threads: false,
  },
  ...["chromium", "firefox"].flatMap((browser) => {
    const [, open] = browsers.find(([name]) => name === browser) ?? [];
    return ["page", "worker", "shared worker", "service worker"].map((context): Runtime => {
      return {
        name: `${browser}, ${context}`,
        run: open && ((options) => runInBrowser(browser, open, context, options)),
        // Firefox has no WebGPU in service workers.
        gpu: browser !== "firefox" || context !== "service worker",
        relaxed: true,
        threads: context === "page" || context === "worker",
      };
    });
  }),
];

/** Serves the example in workerd while `use` runs. */
async function serveExample(use: (url: string) => Promise<void>): Promise<void> {
  const server = spawn(workerd, ["serve", "cloudflare.capnp", "--control-fd=3"], {
    cwd: root,
    stdio: ["ignore", "inherit", "inherit", "pipe"],
  });
  try {
    const port = await new Promise<number>((resolve, reject) => {
      server.once("error", reject);
      server.once("exit", (status) => reject(new Error(`workerd exited with ${status}`)));
      (server.stdio[3] as Readable).once("data", (data: Buffer) => {
        resolve((JSON.parse(data.toString().split("\n", 1)[0]) as { port: number }).port);
      });
    });
    await use(`http://127.0.0.1:${port}/`);
  } finally {
    server.kill();
  }
}

/** What the README says of the fixture. */
const OUTPUT_ERROR =
  Number(/attention output error ([\d.]+) %/.exec(readFileSync("README.md", "utf8"))![1]) / 100;

/** What came of those that were run; nothing where they failed. */
const reports = new Map<Runtime, Found | undefined>();

describe("the package as a user installs it", () => {
  for (const runtime of runtimes) {
    const { name, run, gpu, relaxed, threads } = runtime;
    const brief = process.env.KVARN_BRIEF && name !== "firefox, page";
    if (!run && !process.env.KVARN_REQUIRE) console.warn(`${name} is absent, it is left out`);
    it.skipIf(!run && !process.env.KVARN_REQUIRE).concurrent(name, async () => {
      if (!run) throw new Error(`${name} is absent`);
      reports.set(runtime, undefined);
      const options: CheckOptions = brief ? { subjects: { webgpu: BRIEF } } : {};
      const report = await run(options);
      expectReport(report, options);
      const found = enginesOf(report);
      expect(found).toEqual(expect.arrayContaining(["wasm strict", "wasm strict-f32", "reference f64"]));
      if (relaxed) expect(found).toContain("wasm relaxed");
      if (gpu && process.env.KVARN_REQUIRE) expect(found).toContain("webgpu f32");
      if (threads) expectThreads(report);
      expect(report.outputError).toBeCloseTo(OUTPUT_ERROR, 4);
      reports.set(runtime, report);
    });
  }
});

it.skipIf(!existsSync(workerd) && !process.env.KVARN_REQUIRE)("examples/cloudflare in workerd", async () => {
  const kvarn = await openKvarn({ backend: "wasm" });
  const cache = kvarn.createCache({ layers: 1, queryHeads: 4, kvHeads: 2, headDim: 64 });
  await cache.append(0, new Float32Array(300 * 128).fill(0.5), new Float32Array(300 * 128).fill(0.5));
  await cache.flush();
  const saved = Buffer.from(await cache.serialize());
  const { totalBytes } = cache.memory();
  kvarn.dispose();
  await serveExample(async (url) => {
    const post = (body: Buffer) => fetch(url, { method: "POST", body: new Uint8Array(body) });
    const answer = await post(saved);
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({ tokens: 300, totalBytes });
    const damaged = await post(saved.subarray(0, 100));
    expect(damaged.status).toBe(400);
    expect(await damaged.json()).toMatchObject({ code: "corrupt-data" });
    expect((await fetch(url)).status).toBe(405);
  });
});

afterAll(async () => {
  const text = `${INTRODUCTION}\n\n${table()}\n`;
  writeFileSync(KVARN_RUNTIMES_TABLE, await format(text, { parser: "markdown", printWidth: 110 }));
});

const INTRODUCTION = `# Where it runs

The packed package, installed as a user does, in the runtimes of the machine where \`npm run test:runtimes\` last wrote this
page. In each of them a program opens every engine, makes mistakes on purpose, which have to give the same \`KvarnError\`
codes everywhere, and disposes of everything. Nothing may be printed, and no process may stay.

- Under an engine stands how many checks of the [conformance suite](../conformance/README.md) passed, of those that
  ran: ${countChecks()} are all of it. A dash: the engine does not run there.
- CI runs ${countChecks(BRIEF)} of them on WebGPU outside of Firefox's page, those of ${BRIEF.join(", ")} (\`KVARN_BRIEF\`); among its
  other tests are all on Node 20, and those of records on Deno. GPUs of software take long.
- \`auto\` is what \`openKvarn()\` takes; GPUs of software it does not.
- \`fixture\` is the error of attention that \`kvarn report\` gives for the cache in \`fixtures/\`. Browsers and workerd have no
  command line: there the program itself measures the same, and stands in for \`kvarn doctor\`.`;

function table(): string {
  const engines = ["webgpu f32", "wasm strict", "wasm strict-f32", "wasm relaxed", "reference f64"];
  const header = ["runtime", "version", "auto", ...engines, "fixture", "Float16Array"];
  const rows = runtimes.map((runtime) => {
    const report = reports.get(runtime);
    if (!report) {
      const fate = !runtime.run ? "absent" : reports.has(runtime) ? "failed" : "not run";
      return [runtime.name, fate, ...header.slice(2).map(() => "")];
    }
    const { version, float16Array } = report.runtime;
    const counts = engines.map((name) => {
      const engine = report.engines.find((one) => nameOf(one) === name);
      if (!engine) return "-";
      const { passed, others } = engine.conformance;
      return `${passed}/${passed + others.length}`;
    });
    const error = `${(100 * report.outputError).toFixed(2)} %`;
    return [
      ...[runtime.name, shorten(version), nameOf(report.auto), ...counts],
      ...[error, float16Array ? "yes" : "no"],
    ];
  });
  return [header, header.map(() => "-"), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
}

/** Of what a runtime calls itself, its version; workerd keeps it to itself. */
function shorten(version: string): string {
  return /(?:^|Chrome\/|Firefox\/)(\d[\d.]*)/.exec(version)?.[1] ?? "-";
}
