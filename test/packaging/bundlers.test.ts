/** One page, built by every bundler and by none, runs in a browser, without a warning anywhere. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { nodeResolve } from "@rollup/plugin-node-resolve";
import * as esbuild from "esbuild";
import { rollup } from "rollup";
import * as vite from "vite";
import { afterAll, describe, expect, it } from "vitest";
import webpack from "webpack";
import { browsers, ISOLATING, listenTo, serveFolder } from "../support/browsers.js";
import { installPackage } from "./install.js";
import { type CheckOptions, enginesOf, expectReport, expectThreads, type Report } from "./report.js";

const { root, remove } = installPackage(["check.js", "page.js", "index.html"]);
const [, openChromium] = browsers.find(([name]) => name === "chromium") ?? [];
const browser = await openChromium?.();
afterAll(async () => {
  await browser?.close();
  remove();
});

/** GPUs, and the rest of the suite, have tests of their own. */
const SUBJECTS = ["rotate", "pack", "decode"] as const;
const OPTIONS: CheckOptions = { gpu: false, subjects: { wasm: SUBJECTS, reference: SUBJECTS } };

/** Builds the page at `root` into `out` and returns what the bundler complains of. */
const bundlers: Record<string, (out: string) => Promise<unknown[]>> = {
  esbuild: async (out) => {
    const { warnings } = await esbuild.build({
      absWorkingDir: root,
      entryPoints: ["page.js"],
      bundle: true,
      minify: true,
      format: "esm",
      outdir: out,
      logLevel: "silent",
    });
    return warnings;
  },

  rollup: async (out) => {
    const warnings: unknown[] = [];
    const bundle = await rollup({
      input: join(root, "page.js"),
      plugins: [nodeResolve({ browser: true })],
      onwarn: (warning) => void warnings.push(warning.message),
    });
    await bundle.write({ dir: out, format: "es" });
    await bundle.close();
    return warnings;
  },

  vite: async (out) => {
    const warnings: unknown[] = [];
    const warn = (message: string): void => void warnings.push(message);
    const customLogger = { ...vite.createLogger("silent"), warn, warnOnce: warn, error: warn };
    // The data of the suite is large, and has a budget of its own.
    const build = { outDir: out, chunkSizeWarningLimit: 1000 };
    await vite.build({ root, configFile: false, logLevel: "warn", customLogger, build });
    return warnings;
  },

  webpack: (out) =>
    new Promise((resolve, reject) => {
      const compiler = webpack({
        mode: "production",
        context: root,
        entry: "./page.js",
        output: { path: out, filename: "page.js" },
        // Others minify here, in a tenth of the time.
        optimization: { minimize: false },
        // What inlined modules weigh is known, and has a budget of its own.
        performance: { hints: false },
      });
      compiler.run((error, stats) => {
        if (error || !stats) return reject(error ?? new Error("webpack gave no result"));
        const { errors = [], warnings = [] } = stats.toJson({ all: false, errors: true, warnings: true });
        compiler.close(() => resolve([...errors, ...warnings]));
      });
    }),
};

/** Opens `folder/index.html` and returns what the page found; it has to say nothing. */
async function runPage(folder: string, options = OPTIONS, headers = {}): Promise<Report> {
  const server = await serveFolder(folder, headers);
  const page = await browser!.newPage();
  const noise = listenTo(page);
  try {
    await page.goto(server.url);
    const report = (await page.evaluate(`check(${JSON.stringify(options)})`)) as Report;
    expect(noise).toEqual([]);
    return report;
  } finally {
    await page.close();
    await server.close();
  }
}

function expectPage(report: Report): void {
  expectReport(report, OPTIONS);
  expect(enginesOf(report)).toEqual(["wasm strict", "wasm strict-f32", "wasm relaxed", "reference f64"]);
  expect(report.auto.kind).toBe("wasm");
  expect(report.auto.reason).toContain("not WebGPU: ");
}

describe.skipIf(!browser)("a page in Chromium", () => {
  it.each(Object.keys(bundlers))("built by %s", async (name) => {
    const out = join(root, name);
    mkdirSync(out);
    copyFileSync(join(root, "index.html"), join(out, "index.html"));
    expect(await bundlers[name](out)).toEqual([]);
    const report = await runPage(out, OPTIONS, ISOLATING);
    expectPage(report);
    expectThreads(report);
  });

  it.each([
    ["script-src 'self'", "reference", /'wasm-unsafe-eval' in script-src/],
    ["script-src 'self' 'wasm-unsafe-eval'; worker-src blob:", "wasm", /^SIMD/],
  ])("under the policy %s", async (policy, kind, reason) => {
    const out = join(root, kind);
    mkdirSync(out);
    const html = readFileSync(join(root, "index.html"), "utf8");
    const meta = `<meta http-equiv="Content-Security-Policy" content="${policy}" />`;
    writeFileSync(join(out, "index.html"), html.replace("<script", `${meta}$&`));
    await bundlers.esbuild(out);
    const report = await runPage(out, { ...OPTIONS, threads: policy.includes("worker-src") }, ISOLATING);
    expectReport(report, OPTIONS);
    if (policy.includes("worker-src")) expectThreads(report);
    expect(report.auto.kind).toBe(kind);
    expect(report.auto.reason).toMatch(reason);
  });

  it("built by none, with an import map", async () => {
    const imports = {
      kvarn: "/node_modules/kvarn/dist/index.js",
      "kvarn/conformance": "/node_modules/kvarn/dist/conformance/index.js",
      "kvarn/reference": "/node_modules/kvarn/dist/reference/index.js",
    };
    const html = readFileSync(join(root, "index.html"), "utf8");
    const map = `<script type="importmap">${JSON.stringify({ imports })}</script>`;
    writeFileSync(join(root, "index.html"), html.replace("<script", `${map}$&`));
    const report = await runPage(root);
    expectPage(report);
    // The page is not isolated.
    expect(report.threads).toEqual({
      absent: expect.stringMatching(/^threads need SharedArrayBuffer, .* cross-origin isolated/) as string,
    });
  });
});
