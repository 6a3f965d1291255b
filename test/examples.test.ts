/** Every example runs as it is written, on the built package, and comes to what its guide says. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { promisify } from "node:util";
import type { Browser } from "puppeteer-core";
import { describe, expect, it } from "vitest";
import { bytesFor } from "../src/index.js";
import { METHOD_NAMES } from "../src/methods/index.js";
import { browsers, listenTo } from "./support/browsers.js";
import { hasGpu } from "./support/engines.js";
import { exampleFiles } from "./support/examples.js";

/** Runs an example and returns what it prints. */
async function run(name: string): Promise<string> {
  const { stdout } = await promisify(execFile)(process.execPath, [`examples/${name}`]);
  return stdout;
}

/** The numbers that a pattern's groups find in a text. */
function numbersIn(text: string, pattern: RegExp): number[] {
  const found = pattern.exec(text);
  if (!found) expect.unreachable(`${pattern} is not in:\n${text}`);
  return found.slice(1).map((number) => Number(number.replaceAll(",", "")));
}

/** `npm run transformers` has been run. */
const hasTransformers = existsSync("examples/node_modules/@huggingface/transformers");
if (!hasTransformers) {
  const absent =
    "@huggingface/transformers is absent, its example is not run: `npm run transformers` installs it";
  if (process.env.KVARN_REQUIRE) throw new Error(absent);
  console.warn(absent);
}

const tests: Record<string, () => Promise<void>> = {
  "quick-start.mjs": async () => {
    const output = await run("quick-start.mjs");
    expect(output).toMatch(/kind: '(wasm|webgpu)'/);
    expect(output).toMatch(/recordRatio: 4\.49/);
  },

  "cpu-only.mjs": async () => {
    const output = await run("cpu-only.mjs");
    expect(output).toMatch(/^wasm \w+\n/);
    const [tokens, bytes, ratio] = numbersIn(output, /^(\d+) tokens, (\d+) bytes, ([\d.]+)$/m);
    expect(tokens).toBe(1024);
    const foretold = bytesFor({ layers: 2, queryHeads: 8, kvHeads: 2, headDim: 64 }, 1024);
    // And a header.
    expect(bytes).toBeGreaterThan(foretold.totalBytes);
    expect(bytes).toBeLessThan(foretold.totalBytes + 1000);
    expect(ratio).toBeCloseTo(foretold.ratio, 2);
  },

  "conformance.mjs": async () => {
    const output = await run("conformance.mjs");
    expect(output).toMatch(/^true \{ passed: \d+, failed: 0, notCovered: [1-9]\d* \}$/m);
  },

  "methods.mjs": async () => {
    const output = await run("methods.mjs");
    const figures = [...output.matchAll(/^(\S+) ([\d.]+) bits, output error ([\d.]+) %$/gm)];
    expect(figures.map(([, name]) => name)).toEqual(METHOD_NAMES);
    for (const [, name, bits, error] of figures) {
      if (name === "f16") expect([bits, error]).toEqual(["16.00", "0.0"]);
      else {
        expect(Number(bits), name).toBeLessThan(8);
        expect(Number(error), name).toBeGreaterThan(1);
        expect(Number(error), name).toBeLessThan(80);
      }
    }
  },

  "vllm-records.mjs": async () => {
    const output = await run("vllm-records.mjs");
    expect(output).toContain("tokens 128 to 384: 26880 of 32768 bytes a record\n");
    expect(output).toContain("padding is zero: true\n");
    expect(output).toContain("with the sink: 0\n");
    const [without] = numbersIn(output, /^without: ([\d.]+)$/m);
    expect(without).toBeGreaterThan(0.01);
    expect(without).toBeLessThan(0.5);
  },
};

describe("examples", () => {
  it.each(Object.keys(tests))("%s", (name) => tests[name]());

  it.skipIf(!hasGpu)("webgpu-engine.mjs", async () => {
    const output = await run("webgpu-engine.mjs");
    expect(output).toContain("webgpu 303 { start: 128, end: 256 }\n");
    const [difference] = numbersIn(output, /^difference from the CPU: ([\d.e+-]+)$/m);
    expect(difference).toBeGreaterThan(0);
    expect(difference).toBeLessThan(1e-3);
  });

  it.skipIf(!hasTransformers)("transformers-js.mjs", async () => {
    const output = await run("transformers-js.mjs");
    const [tokens, ratio] = numbersIn(output, /^(\d+) tokens in \d+ bytes, ([\d.]+)x smaller/m);
    expect(tokens).toBeGreaterThan(600);
    expect(ratio).toBeGreaterThan(2.5);
    const errors = [...output.matchAll(/^past_key_values\.\d\.(key|value) off by ([\d.]+) %$/gm)];
    expect(errors).toHaveLength(4);
    // What 4 and 2 bits cost on keys and values as even as random weights make them.
    for (const [, part, error] of errors) {
      expect(Number(error), part).toBeGreaterThan(2);
      expect(Number(error), part).toBeLessThan(part === "key" ? 10 : 45);
    }
    // No more of the logits is off than of what they are computed from.
    const [logits] = numbersIn(output, /^logits off by ([\d.]+) %$/m);
    expect(logits).toBeGreaterThan(0.1);
    expect(logits).toBeLessThan(Math.max(...errors.map(([, , error]) => Number(error))));
  });

  describe.each(browsers)("strict-csp in %s", (_, open) => {
    it.each([
      ["as it is", (policy: string) => policy, /^300 tokens on wasm: SIMD/],
      [
        "without 'wasm-unsafe-eval'",
        (policy: string) => policy.replace(" 'wasm-unsafe-eval'", ""),
        /^300 tokens on reference: .*'wasm-unsafe-eval'/,
      ],
    ])("%s", async (_name, change, expected) => {
      const server = spawn(process.execPath, ["examples/strict-csp/server.mjs"]);
      const browser = await open({ gpu: false });
      try {
        expect(await readPage(browser, await addressOf(server), change)).toMatch(expected);
      } finally {
        await browser.close();
        server.kill();
      }
    });
  });

  it("are all tested", () => {
    const elsewhere = ["cloudflare/worker.js", "cloudflare/wrangler.toml"]; // test/packaging/runtimes.ts
    const page = ["index.html", "main.js", "server.mjs"].map((name) => `strict-csp/${name}`);
    const tested = [...Object.keys(tests), "webgpu-engine.mjs", "transformers-js.mjs", ...page, ...elsewhere];
    // What is in llama/ has tests of its own: test/llama.
    expect(exampleFiles.filter((name) => !name.startsWith("llama/"))).toEqual(tested.toSorted());
  });
});

/** The line that a server prints first. */
async function addressOf(server: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    server.stdout!.once("data", (data: Buffer) => resolve(data.toString().trim()));
    server.once("exit", (status) => reject(new Error(`the server exited with ${status}`)));
  });
}

/** What the page says in the end, behind a proxy that changes the policy. */
async function readPage(
  browser: Browser,
  origin: string,
  change: (policy: string) => string,
): Promise<string> {
  const proxy = createServer((request, response) => {
    void (async () => {
      const answer = await fetch(new URL(request.url!, origin));
      for (const name of ["content-type", "content-security-policy"]) {
        const value = answer.headers.get(name);
        if (value !== null) response.setHeader(name, change(value));
      }
      response.writeHead(answer.status).end(Buffer.from(await answer.arrayBuffer()));
    })();
  });
  await new Promise<void>((resolve) => void proxy.listen(0, "127.0.0.1", resolve));
  const page = await browser.newPage();
  const noise = listenTo(page);
  try {
    await page.goto(`http://127.0.0.1:${(proxy.address() as AddressInfo).port}/`);
    const read = () => page.$eval("output", (output) => output.textContent);
    await expect.poll(read, { message: noise.join("\n") }).not.toBe("");
    return await read();
  } finally {
    await page.close();
    proxy.close();
  }
}
