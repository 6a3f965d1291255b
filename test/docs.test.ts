/** What documents say holds: their code is that of the examples, which run, and their figures are those of the package. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { PassThrough } from "node:stream";
import { describe, expect, it } from "vitest";
import { parsePreset, recordLayout } from "../src/index.js";
import { runCli } from "../src/cli/cli.js";
import type { Report } from "../src/cli/report.js";
import { formatFactor, formatPercent } from "../src/cli/text.js";
import { quotableTexts } from "./support/examples.js";

const documents = [
  "README.md",
  "conformance/README.md",
  ...readdirSync("docs")
    .filter((name) => name.endsWith(".md"))
    .map((name) => `docs/${name}`),
];

interface Block {
  readonly language: string;
  readonly text: string;
}

/** The fenced blocks of a document. */
function blocksOf(document: string): Block[] {
  const blocks = readFileSync(document, "utf8").matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm);
  return [...blocks].map(([, language, text]) => ({ language, text }));
}

/** Languages of which every block is an example. */
const CODE = ["js", "ts", "html", "toml"];

describe.each(documents)("%s", (document) => {
  const blocks = blocksOf(document);

  it("quotes examples word for word", () => {
    const texts = quotableTexts();
    for (const { text } of blocks.filter(({ language }) => CODE.includes(language))) {
      expect(texts, `not in examples/:\n${text}`).toContain(text);
    }
  });

  it("shows what `kvarn size` prints", async () => {
    for (const [i, { text }] of blocks.entries()) {
      const [, args] = /^npx kvarn (size [^\n]*)\n$/.exec(text) ?? [];
      if (args === undefined) continue;
      let output = "";
      const streams = { stdout: { write: (part: string) => (output += part) }, stderr: new PassThrough() };
      expect(await runCli(args.split(" "), streams)).toBe(0);
      expect(blocks[i + 1]).toEqual({ language: "", text: output });
    }
  });

  it("links to what there is", () => {
    const links = readFileSync(document, "utf8").matchAll(/\]\(([^)#\s]+)(#[^)]*)?\)|src="([^"]+)"/g);
    for (const [, link, , source] of links) {
      const target = link ?? source;
      if (/^https?:/.test(target)) continue;
      expect(existsSync(join(dirname(document), target)), target).toBe(true);
    }
  });
});

it("documents quote examples at all", () => {
  const blocks = documents.flatMap(blocksOf);
  expect(blocks.filter(({ language }) => CODE.includes(language)).length).toBeGreaterThan(10);
  expect(blocks.filter(({ text }) => text.startsWith("npx kvarn size")).length).toBeGreaterThan(0);
});

describe("docs/presets.md", () => {
  const text = readFileSync("docs/presets.md", "utf8");
  const rows = [...text.matchAll(/^\| `(k\dv\d_g\d+)` +\| ([\d.]+x) +\| (.*) \|$/gm)];
  const measure = async (...args: string[]): Promise<Report["total"]> => {
    const file = "fixtures/smollm2-135m.kv.safetensors";
    let output = "";
    const streams = { stdout: { write: (part: string) => (output += part) }, stderr: new PassThrough() };
    expect(await runCli(["report", file, "--backend", "wasm", "--json", ...args], streams)).toBe(0);
    return (JSON.parse(output) as Report).total;
  };

  it.each(rows.map(([, preset, smaller, errors]) => [preset, smaller, errors.split("|")] as const))(
    "has the figures of %s",
    async (preset, smaller, errors) => {
      const { size, error } = await measure("--preset", preset);
      expect(formatFactor(size.longContextRatio)).toBe(smaller);
      const measured = [error.key, error.value, error.score, error.output].map(formatPercent);
      expect(errors.map((cell) => cell.trim())).toEqual(measured);
    },
  );

  it("has the figures of an exact window", async () => {
    expect(rows.map(([, preset]) => preset)).toContain("k4v2_g128");
    const { size, error } = await measure("--exact-window", "512");
    const [, output, ratio] = /from 7\.58 to ([\d.]+) %, for a size of ([\d.]+x)\s/.exec(text)!;
    expect([output, ratio]).toEqual([formatPercent(error.output), formatFactor(size.longContextRatio)]);
  });
});

it("the README gives sizes that recordLayout gives", () => {
  const readme = readFileSync("README.md", "utf8");
  const rows = readme.matchAll(/^\| `(k\dv\d_g\d+)` +\| ([\d.]+) +\| ([\d,]+) B +\| ([\d.]+)x/gm);
  const seen = [...rows].map(([, preset, bits, bytes, ratio]) => {
    const layout = recordLayout(parsePreset(preset), 128);
    expect(Number(bytes.replace(",", ""))).toBe(layout.bytes);
    expect(Number(bits)).toBe((layout.bytes * 8) / (2 * 128 * layout.group));
    expect(ratio).toBe((16 / Number(bits)).toFixed(1));
    return preset;
  });
  expect(seen).toContain("k4v2_g128");
});
