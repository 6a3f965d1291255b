/** Runs the benchmarks in a page of a browser. */
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { build } from "esbuild";
import { KvarnError } from "../src/index.js";
import { type BrowserName, openChromium, openFirefox, serveFolder } from "../test/support/open-browser.js";
import type { Report } from "./report.js";
import type { RunOptions } from "./run.js";

/** The page: files have the same paths as in the repository. */
const FOLDER = "build/bench-page";

/** @throws {KvarnError} as `openKvarn` in that page */
export async function runInBrowser(name: BrowserName, options: RunOptions): Promise<Report> {
  rmSync(FOLDER, { recursive: true, force: true });
  mkdirSync(`${FOLDER}/build`, { recursive: true });
  mkdirSync(`${FOLDER}/bench`);
  symlinkSync(resolve("build/peers"), `${FOLDER}/build/peers`);
  symlinkSync(resolve("bench/webgpu"), `${FOLDER}/bench/webgpu`);
  writeFileSync(`${FOLDER}/index.html`, '<!doctype html><link rel="icon" href="data:," />');
  await build({
    ...{ entryPoints: ["bench/page.ts"], bundle: true, format: "esm", outdir: FOLDER },
    external: ["node:*", "webgpu"],
    logLevel: "error",
  });
  const server = await serveFolder(FOLDER);
  const browser = await (name === "chromium" ? openChromium() : openFirefox());
  try {
    const page = await browser.newPage();
    await page.goto(server.url);
    const run = `import("./page.js").then(({ run }) => run(${JSON.stringify(options)}))`;
    const result = (await page.evaluate(run)) as Report | { error: string };
    if ("error" in result) throw new KvarnError("backend-unavailable", `in ${name}: ${result.error}`);
    return { ...result, title: `${await browser.version()}: ${result.title}` };
  } finally {
    await browser.close();
    await server.close();
  }
}
