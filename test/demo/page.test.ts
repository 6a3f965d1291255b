/** What a user sees of the demo page, in real browsers. `npm run build:demo` makes what is tested. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { AxeResults } from "axe-core";
import type { Browser, ElementHandle, Page } from "puppeteer-core";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { openKvarn, parsePreset, recordLayout } from "../../src/index.js";
import { type DumpLayer, readDump } from "../../src/cli/dump.js";
import { measure } from "../../src/cli/measure.js";
import { sizeCells, sizesOf, USUAL_PRESETS } from "../../src/cli/sizes.js";
import { formatFactor, formatInteger, formatNumber, formatPercent } from "../../src/cli/text.js";
import { mapAttention } from "../../demo/attention-map.js";
import { oneHead } from "../../demo/heads.js";
import { layerOf, sampleLayer } from "../../demo/sample.js";
import { DEFAULT_SETTINGS, presetName, type Settings } from "../../demo/settings.js";
import { computeStages, type Part } from "../../demo/stages.js";
import { browsers, type Server, serveFolder } from "../support/browsers.js";
import { dumpFile, randomTensor } from "../support/dump.js";

const fixture = readDump(readFileSync("fixtures/smollm2-135m.kv.safetensors")).layers;
const kvarn = await openKvarn({ backend: "wasm" });
const folder = mkdtempSync(join(tmpdir(), "kvarn-demo-"));
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
let server: Server;

beforeAll(async () => {
  server = await serveFolder("build/demo");
});
afterAll(async () => {
  await server.close();
  rmSync(folder, { recursive: true });
});

/** A page that remembers what it should not have to say. */
interface Watched {
  readonly page: Page;
  /** Messages in the console, errors, and requests that failed or went elsewhere. */
  readonly noise: string[];
}

async function openPage(browser: Browser, width: number): Promise<Watched> {
  const page = await browser.newPage();
  const noise: string[] = [];
  page.on("console", (message) => noise.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => noise.push(`error: ${String(error)}`));
  page.on("requestfailed", (request) => noise.push(`failed: ${request.url()}`));
  page.on("request", (request) => {
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(server.url))
      noise.push(request.url());
  });
  page.on("response", (response) => {
    if (response.status() >= 400) noise.push(`${response.status()}: ${response.url()}`);
  });
  await page.setViewport({ width, height: 1100 });
  await page.goto(server.url);
  await vi.waitFor(async () => expect(await pictures(page)).toHaveLength(7), {
    timeout: 60_000,
    interval: 100,
  });
  return { page, noise };
}

/** What is read out for each picture that is drawn. */
async function pictures(page: Page): Promise<string[]> {
  const labels = await page.$$eval("canvas[role=img]", (all) =>
    all.map((one) => one.getAttribute("aria-label")!),
  );
  return labels.filter((label) => label !== "not drawn yet");
}

async function text(page: Page, selector: string): Promise<string> {
  return page.$eval(selector, (element) => (element as HTMLElement).innerText.replace(/\s+/g, " ").trim());
}

/** Large figures by what they are. */
async function figures(page: Page, selector: string): Promise<Record<string, string>> {
  const pairs = await page.$$eval(`${selector} div`, (all) => {
    return all.map((one) => [one.querySelector("dt")!.textContent, one.querySelector("dd")!.textContent]);
  });
  return Object.fromEntries(pairs) as Record<string, string>;
}

/** The figures and the pictures' texts that one tile should have. */
async function expected(
  layer: DumpLayer,
  part: Part,
  tile: number,
  settings: Settings,
): Promise<{ figures: Record<string, string>; pictures: string[] }> {
  const { headDim } = layer;
  const { group } = settings;
  const rows = (data: Float32Array): Float32Array => oneHead(data, layer, 0);
  const k = rows(layer.keys(tile * group, (tile + 1) * group));
  const v = rows(layer.values(tile * group, (tile + 1) * group));
  const stages = await computeStages(kvarn, { k, v, headDim }, part, settings);
  const { bytes } = recordLayout(parsePreset(presetName(settings)), headDim);
  const range = (values: ArrayLike<number>): string => {
    const sorted = Array.from(values).sort((a, b) => a - b);
    return `${formatNumber(sorted[0])} to ${formatNumber(sorted.at(-1)!)}`;
  };
  const names = {
    cache: "1. Cache",
    rotated: "2. Rotated",
    normalized: "3. Normalized",
    quantized: "4. Quantized",
  };
  const values = 2 * group * headDim;
  return {
    figures: {
      "error of keys": `${formatPercent(stages.error.k)} %`,
      "error of values": `${formatPercent(stages.error.v)} %`,
      record: `${formatInteger(bytes)} B`,
      "bits per value": formatNumber((8 * bytes) / values),
      "smaller than binary16": formatFactor((2 * values) / bytes),
    },
    pictures: (Object.keys(names) as (keyof typeof names)[]).map((name) => {
      const { values, channels, tokens } = stages[name];
      const apart = (all: Float64Array): string => formatFactor(Math.max(...all) / Math.min(...all));
      return (
        `Heat map ${names[name]}: ${headDim} channels by ${group} tokens, values from ${range(values)}. Standard ` +
        `deviations of channels: ${range(channels)}, ${apart(channels)}; ` +
        `of tokens: ${range(tokens)}, ${apart(tokens)}.`
      );
    }),
  };
}

/** Waits until the page shows this tile. */
async function expectTile(page: Page, ...tile: Parameters<typeof expected>): Promise<void> {
  const shown = async (): ReturnType<typeof expected> => {
    return { figures: await figures(page, "#tile-figures"), pictures: (await pictures(page)).slice(0, 4) };
  };
  await expect.poll(shown).toEqual(await expected(...tile));
}

/** Waits until the page shows how the attention of this query head changes. */
async function expectAttention(
  page: Page,
  layer: DumpLayer,
  head: number,
  settings: Settings,
): Promise<void> {
  const { moved } = (await mapAttention(kvarn, layer, head, settings))!;
  await expect
    .poll(() => figures(page, "#attention-figures"))
    .toEqual({
      "of attention moves": `${formatPercent(moved.mean)} %`,
      "in the worst query": `${formatPercent(moved.most)} %`,
    });
}

/**
 * Presses a key in a slider and waits for what it should read then: a busy browser may handle a key after the next
 * one's element has the focus.
 */
async function press(
  page: Page,
  slider: string,
  key: "Home" | "End" | "ArrowRight",
  reads: string,
): Promise<void> {
  await page.focus(`#${slider}`);
  await page.keyboard.press(key);
  await expect.poll(() => text(page, `#${slider}-value`)).toBe(reads);
}

/** How many colours a picture has; 0 and 1 where nothing is drawn. */
async function countColors(page: Page): Promise<number[]> {
  return page.$$eval("canvas", (all) => {
    return all.map((canvas) => {
      if (canvas.width === 0 || canvas.height === 0) return 0;
      const { data } = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    });
  });
}

/** Mean lightness, 0 to 255, of the pixels that a picture paints. */
async function brightness(page: Page): Promise<number> {
  return page.$eval("canvas", (canvas) => {
    const { data } = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height);
    const painted = Array.from({ length: data.length / 4 }, (_, i) => 4 * i).filter(
      (i) => data[i + 3] === 255,
    );
    return painted.reduce((sum, i) => sum + (data[i] + data[i + 1] + data[i + 2]) / 3, 0) / painted.length;
  });
}

async function expectAccessible(page: Page): Promise<void> {
  await page.evaluate(axe);
  const violations = await page.evaluate(async () => {
    const { axe } = globalThis as unknown as { axe: { run(): Promise<AxeResults> } };
    const results = await axe.run();
    return results.violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  });
  expect(violations).toEqual([]);
}

/** Lets a file fall on the page, as a drop from the desktop does. */
async function dropFile(page: Page, name: string, bytes: Buffer): Promise<void> {
  await page.$eval(
    "#drop",
    (zone, name, base64) => {
      const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], name));
      for (const type of ["dragover", "drop"])
        zone.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
    },
    name,
    bytes.toString("base64"),
  );
}

/** Measured: cells of the table by backend. */
async function table(page: Page): Promise<Record<string, string[]>> {
  const rows = await page.$$eval("#backends tbody tr", (all) =>
    all.map((row) => [...row.children].map((cell) => (cell as HTMLElement).innerText.trim())),
  );
  return Object.fromEntries(rows.map(([name, ...cells]) => [name.split("\n")[0], cells]));
}

async function expectMeasured(page: Page): Promise<void> {
  const done = "All backends of this browser are measured.";
  await expect.poll(() => text(page, "#backends-status"), { timeout: 200_000, interval: 500 }).toBe(done);
}

it.skipIf(browsers.length === 0 && !process.env.KVARN_REQUIRE)("has a browser to run in", () => {
  expect(browsers.length).toBeGreaterThan(0);
});

describe.each(browsers)("the demo in %s", (name, openBrowser) => {
  let browser: Browser;
  let page: Page;
  let noise: string[];

  beforeAll(async () => {
    browser = await openBrowser();
    ({ page, noise } = await openPage(browser, 1200));
  });
  afterAll(() => browser.close());

  it("shows a tile of the cache that comes with it at its four stages", async () => {
    expect(await text(page, "#source")).toBe(
      "SmolLM2-135M-Instruct: 4 layers; 2,304 tokens, 9 query and 3 KV heads of 64.",
    );
    await expectTile(page, fixture[0], "k", 1, DEFAULT_SETTINGS);
    for (const colors of await countColors(page)) expect(colors).toBeGreaterThan(60);
  });

  it("maps attention", async () => {
    await expectAttention(page, fixture[0], 0, DEFAULT_SETTINGS);
    await page.select("#query-head", "7");
    await expectAttention(page, fixture[0], 7, DEFAULT_SETTINGS);
  });

  it("lets the keyboard reach every control", async () => {
    await page.evaluate(() => (document.activeElement as HTMLElement | null)?.blur());
    const focused = (): Promise<string> =>
      page.evaluate(() => {
        const element = document.activeElement!;
        const { outlineStyle } = getComputedStyle(element);
        return `${element.id}${outlineStyle === "none" ? " without outline" : ""}`;
      });
    const controls = [
      ...["file", "fixture", "layer", "head", "part-k", "tile"],
      ...["key-bits", "value-bits", "group", "iterations", "query-head"],
    ];
    for (const control of controls) {
      await page.keyboard.press("Tab");
      await expect.poll(focused).toBe(control);
    }
  });

  it("follows the sliders: fewer errors with more bits, and larger records", async () => {
    const errors: number[] = [];
    for (const keyBits of [2, 3, 4, 5, 6, 8] as const) {
      await press(page, "key-bits", keyBits === 2 ? "Home" : "ArrowRight", `${keyBits} bits`);
      await expectTile(page, fixture[0], "k", 1, { ...DEFAULT_SETTINGS, keyBits });
      expect(await page.$eval("#key-bits", (slider) => slider.getAttribute("aria-valuetext"))).toBe(
        `${keyBits} bits`,
      );
      errors.push(parseFloat((await figures(page, "#tile-figures"))["error of keys"]));
    }
    expect(errors).toEqual(errors.toSorted((a, b) => b - a));
    expect(errors[0]).toBeGreaterThan(10 * errors[5]);
    await press(page, "value-bits", "ArrowRight", "3 bits");
    await expectTile(page, fixture[0], "k", 1, { ...DEFAULT_SETTINGS, keyBits: 8, valueBits: 3 });
  });

  it("follows tile, group, iterations, and the choice of layer and of values", async () => {
    await press(page, "group", "Home", "64 tokens");
    await press(page, "iterations", "Home", "0");
    await press(page, "tile", "End", "2,240 to 2,303");
    await page.select("#layer", "2");
    await page.locator("#part-v").click();
    const settings = { keyBits: 8, valueBits: 3, group: 64, iterations: 0 } as const;
    await expectTile(page, fixture[2], "v", 35, settings);
    // Of larger tiles there are fewer.
    await press(page, "group", "End", "128 tokens");
    await expectTile(page, fixture[2], "v", 17, { ...settings, group: 128 });
  });

  it("calculates memory as the command line does", async () => {
    const shown = async (): Promise<string[][]> =>
      page.$$eval("#memory tbody tr", (rows) =>
        rows.map((row) => [...row.children].map((cell) => cell.textContent)),
      );
    const question = { layers: 32, kvHeads: 8, headDim: 128, tokens: 32768, exactWindow: 0 };
    expect(await shown()).toEqual(sizesOf(question, USUAL_PRESETS).map(sizeCells));
    expect(await text(page, "#memory-note")).toBe("4,096 MiB in binary16.");
    const before = await pictures(page);
    await page.$eval("#model-head-dim", (input) => ((input as HTMLInputElement).value = "6"));
    await page.focus("#model-head-dim");
    await page.keyboard.press("End");
    await page.keyboard.type("4");
    await expect.poll(shown).toEqual(sizesOf({ ...question, headDim: 64 }, USUAL_PRESETS).map(sizeCells));
    await page.keyboard.type("1");
    await expect.poll(() => text(page, "#memory-note")).toContain("headDim must be a multiple of 16");
    expect(await shown()).toEqual([]);
    expect(await pictures(page)).toEqual(before);
  });

  it("refuses files that are no dumps, says why, and stays as it was", async () => {
    const settings = { keyBits: 8, valueBits: 3, group: 128, iterations: 0 } as const;
    await expectAttention(page, fixture[2], 7, settings);
    const before = { source: await text(page, "#source"), pictures: await pictures(page) };
    const good = { "layers.0.k": randomTensor(1, 200, 1, 32), "layers.0.v": randomTensor(2, 200, 1, 32) };
    const k = { ...good["layers.0.k"], data: good["layers.0.k"].data.slice() };
    k.data[150 * 32 + 7] = NaN;
    const broken: [string, Buffer, string][] = [
      ["short.safetensors", Buffer.from([1, 2, 3]), "not a safetensors file: it has 3 bytes"],
      ["notes.txt", Buffer.from("not numbers at all"), "not a safetensors file: its header would have"],
      ["cut.safetensors", dumpFile(good).subarray(0, -8), "the file is cut short"],
      [
        "nan.safetensors",
        dumpFile({ ...good, "layers.0.k": k }),
        "layers.0.k is NaN at token 150, head 0, channel 7",
      ],
    ];
    for (const [file, bytes, message] of broken) {
      await dropFile(page, file, bytes);
      await expect.poll(() => text(page, "#error")).toContain(`${file}: ${message}`);
      expect(await page.$eval("#error", (element) => element.getAttribute("role"))).toBe("alert");
      expect(await text(page, "#source")).toBe(before.source);
      expect(await pictures(page)).toEqual(before.pictures);
    }
    // And goes on working.
    await press(page, "tile", "Home", "0 to 127");
    await expectTile(page, fixture[2], "v", 0, settings);
    expect(await text(page, "#stages-note")).toContain("its first one, exact: the sink");
    expect(await text(page, "#error")).toBe("");
  });

  it("opens a dump that is dropped, or chosen", async () => {
    const layers = {
      "layers.3.k": randomTensor(3, 300, 2, 32),
      "layers.3.v": randomTensor(4, 300, 2, 32),
      "other.weight": randomTensor(5, 1, 1, 16),
    };
    const small = dumpFile(layers, "F16");
    await dropFile(page, "small.safetensors", small);
    const description =
      "small.safetensors: one layer; 300 tokens, 2 KV heads, no queries of 32. 1 other tensors";
    await expect.poll(() => text(page, "#source")).toContain(description.slice(0, 60));
    const settings = { keyBits: 8, valueBits: 3, group: 128, iterations: 0 } as const;
    await expectTile(page, readDump(small).layers[0], "v", 1, settings);
    expect(await text(page, "#attention-note")).toBe("The dump has no queries for this layer.");

    const path = join(folder, "tiny.safetensors");
    writeFileSync(
      path,
      dumpFile({ "layers.0.k": randomTensor(6, 50, 1, 16), "layers.0.v": randomTensor(7, 50, 1, 16) }),
    );
    const input = (await page.$("#file")) as ElementHandle<HTMLInputElement>;
    await input.uploadFile(path);
    await expect.poll(() => text(page, "#source")).toContain("tiny.safetensors: one layer; 50 tokens");
    await expect.poll(() => text(page, "#stages-note")).toBe("The layer has fewer tokens than a tile: 128.");

    await page.locator("#fixture").click();
    await expect.poll(() => text(page, "#source")).toContain("SmolLM2-135M-Instruct");
  });

  it("measures every backend of the browser", async () => {
    await page.reload();
    await expectMeasured(page);
    const rows = await table(page);
    expect(Object.keys(rows)).toEqual(["wasm strict", "wasm relaxed", "webgpu f32", "reference f64"]);
    const options = { preset: "k4v2_g128", iterations: 8, exactWindow: 0 };
    const sample = layerOf(sampleLayer(fixture[0]));
    const { total } = await measure(kvarn, [sample], options, () => undefined);
    for (const [backend, cells] of Object.entries(rows)) {
      if (backend === "webgpu f32" && cells.length === 1 && !process.env.KVARN_REQUIRE) {
        console.warn(`webgpu is absent in ${name}, its figures are not tested: ${cells[0]}`);
        continue;
      }
      expect(cells, backend).toHaveLength(7);
      const errors = cells.slice(0, 3).map(parseFloat);
      [total.error.key, total.error.value, total.error.output].forEach((error, i) => {
        expect(errors[i] / (100 * error!), backend).toBeCloseTo(1, 2);
      });
      expect(cells.slice(3, 5)).toEqual(["7,296", "4.49x"]);
      for (const cell of cells.slice(5)) expect(cell, backend).toMatch(/^<?[\d.,]+x\n[\d.,]+ [µm]s$/);
    }
    // Attention over records is about as fast as over f32 in SIMD WebAssembly, and far from it in plain TypeScript.
    const attend = (backend: string): number => parseFloat(rows[backend][6]);
    expect(attend("wasm strict")).toBeGreaterThan(10 * attend("reference f64"));
  });

  it("has nothing for axe to find, and says nothing in the console", async () => {
    await expectAccessible(page);
    expect(noise).toEqual([]);
  });

  it("fits a narrow screen, in dark colours, and names a backend that is absent", async () => {
    const dark = await openBrowser({ dark: true, gpu: false });
    try {
      const { page, noise } = await openPage(dark, 360);
      await expectMeasured(page);
      const { "webgpu f32": absent, ...others } = await table(page);
      expect(absent).toEqual([expect.stringMatching(/^Not here: .*(navigator\.gpu|adapter)/)]);
      for (const cells of Object.values(others)) expect(cells).toHaveLength(7);
      const widths = await page.evaluate(() => {
        const right = Math.max(
          ...[...document.querySelectorAll("main :not(thead, thead *)")].map(
            (one) => one.getBoundingClientRect().right,
          ),
        );
        return { view: innerWidth, page: document.documentElement.scrollWidth, right: Math.round(right) };
      });
      expect(widths.view).toBe(360);
      expect(widths.page).toBeLessThanOrEqual(360);
      expect(widths.right).toBeLessThanOrEqual(360);
      expect(await page.evaluate(() => getComputedStyle(document.body).backgroundColor)).toBe(
        "rgb(32, 32, 32)",
      );
      expect(await brightness(page)).toBeLessThan(100);
      await expectAccessible(page);
      expect(noise).toEqual([]);
    } finally {
      await dark.close();
    }
  });

  // Only Chromium's protocol can change the colours of an open page.
  if (name === "chromium") {
    it("draws again when the colours change", async () => {
      const light = await brightness(page);
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
      await expect.poll(() => brightness(page)).toBeLessThan(100);
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
      await expect.poll(() => brightness(page)).toBe(light);
      expect(light).toBeGreaterThan(150);
    });
  }
});
