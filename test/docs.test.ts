/** What documents say holds: their code is that of the examples, which run, and their figures are those of the package. */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { PassThrough } from "node:stream";
import { describe, expect, it } from "vitest";
import { openKvarn, parsePreset, recordLayout } from "../src/index.js";
import { runCli } from "../src/cli/cli.js";
import { readDump } from "../src/cli/dump.js";
import type { Report } from "../src/cli/report.js";
import { formatFactor, formatPercent } from "../src/cli/text.js";
import { countChecks } from "./packaging/report.js";
import { blocksOf, documents } from "./support/documents.js";
import { dumpFile, randomTensor } from "./support/dump.js";
import { quotableTexts } from "./support/examples.js";
import { goldenCases } from "./support/golden.js";

/** Languages of which every block is an example. */
const CODE = ["js", "ts", "html", "toml"];

/** Others: test/commands.test.ts runs the commands, which print the blocks without a language; of JSON see below. */
const OTHERS = ["sh", "", "json"];

/** What GitHub makes of a heading for links to it. */
function anchorsOf(document: string): string[] {
  const headings = readFileSync(document, "utf8").matchAll(/^#+ (.*)$/gm);
  return [...headings].map(([, text]) => {
    return text
      .toLowerCase()
      .replace(/[^\w\- ]/g, "")
      .replaceAll(" ", "-");
  });
}

describe.each(documents)("%s", (document) => {
  const blocks = blocksOf(document);

  it("has no fence that these tests do not see", () => {
    const fences = readFileSync(document, "utf8").match(/^\s*(```|~~~)/gm) ?? [];
    expect(fences).toHaveLength(2 * blocks.length);
  });

  it("quotes examples word for word", () => {
    const texts = quotableTexts();
    for (const { language, text } of blocks) {
      if (OTHERS.includes(language)) continue;
      expect(CODE).toContain(language);
      expect(texts, `not in examples/:\n${text}`).toContain(text);
    }
  });

  it("links to what there is", () => {
    const links = readFileSync(document, "utf8").matchAll(/\]\(([^)#\s]*)(?:#([^)]*))?\)|src="([^"]+)"/g);
    for (const [, link, anchor, source] of links) {
      const target = link ?? source;
      if (/^https?:/.test(target)) continue;
      const file = target === "" ? document : join(dirname(document), target);
      expect(existsSync(file), target).toBe(true);
      if (anchor !== undefined) expect(anchorsOf(file), target).toContain(anchor);
    }
  });
});

it("documents quote examples at all", () => {
  const blocks = documents.flatMap(blocksOf);
  expect(blocks.filter(({ language }) => CODE.includes(language)).length).toBeGreaterThan(10);
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

describe("docs/report.md", () => {
  const rows = [
    ...readFileSync("docs/report.md", "utf8").matchAll(/^\| `(layers\.\{i\}\.[kvq])` +\| `\[(.*)\]`/gm),
  ];

  it("names the tensors and the sizes that the reader knows", () => {
    const sizes = { tokens: 7, queryTokens: 5, queryHeads: 6, kvHeads: 3, headDim: 16 };
    const tensors = rows.map(([, name, shape]) => {
      const [a, b, c] = shape.split(", ").map((size) => sizes[size as keyof typeof sizes]);
      return [name.replace("{i}", "4"), randomTensor(1, a, b, c)] as const;
    });
    expect(tensors).toHaveLength(3);
    const { layers, ignored } = readDump(dumpFile(Object.fromEntries(tensors)));
    expect(ignored).toEqual([]);
    expect(layers).toMatchObject([{ number: 4, ...sizes }]);
  });

  it("points to a script whose file the reader reads, every number in its place", () => {
    const script = readFileSync("tools/save_dump.py", "utf8");
    expect(readFileSync("docs/report.md", "utf8")).toContain('`save_dump("model.kv.safetensors", layers)`');
    expect(script).toContain("def save_dump(path: str | Path, layers: Iterable[Layer],");
    const { layers, ignored } = readDump(readFileSync("fixtures/heads-first.kv.safetensors"));
    expect(ignored).toEqual([]);
    const shape = { tokens: 5, queryTokens: 3, queryHeads: 4, kvHeads: 2, headDim: 16 };
    expect(layers).toMatchObject([0, 1].map((number) => ({ number, ...shape })));
    for (const layer of layers) {
      const sign = layer.number === 0 ? 1 : -1;
      const expected = (first: number, tokens: number, heads: number, more: number): Float32Array =>
        Float32Array.from({ length: tokens * heads * 16 }, (_, i) => {
          const [token, head] = [first + Math.floor(i / 16 / heads), Math.floor(i / 16) % heads];
          return sign * (128 * head + 16 * token + (i % 16) + 1 + more);
        });
      expect(layer.keys(0, 5)).toEqual(expected(0, 5, 2, 0));
      expect(layer.values(0, 5)).toEqual(expected(0, 5, 2, 512));
      expect(layer.queries(0, 3)).toEqual(expected(2, 3, 4, 0));
    }
  });
});

it("docs/saved-cache.md shows a header as it is written", async () => {
  const [json, ...others] = documents.flatMap(blocksOf).filter(({ language }) => language === "json");
  expect(others).toEqual([]);
  expect(blocksOf("docs/saved-cache.md")).toContainEqual(json);
  const kvarn = await openKvarn({ backend: "wasm" });
  const cache = kvarn.createCache({ layers: 1, queryHeads: 32, kvHeads: 8, headDim: 128 });
  const zeros = new Float32Array(2304 * 8 * 128);
  await cache.append(0, zeros, zeros);
  await cache.flush();
  const saved = Buffer.from(await cache.serialize());
  kvarn.dispose();
  const header: unknown = JSON.parse(saved.toString("utf8", 16, 16 + saved.readUInt32LE(12)));
  expect(JSON.stringify(header)).toBe(JSON.stringify(JSON.parse(json.text)));
});

it("tools/README.md has the sizes and the hashes of what was made", () => {
  const text = readFileSync("tools/README.md", "utf8");
  const made = [...text.matchAll(/`(fixtures\/\S+)`[^`]*?([\d,]+)[^`]*`([0-9a-f]{64})`/g)];
  expect(made.length).toBeGreaterThan(2);
  for (const [, file, bytes, hash] of made) {
    const data = readFileSync(file);
    expect(data.length, file).toBe(Number(bytes.replaceAll(",", "")));
    expect(createHash("sha256").update(data).digest("hex"), file).toBe(hash);
  }
});

it("sizes and counts in sentences hold", () => {
  const limits = JSON.parse(readFileSync(".size-limit.json", "utf8")) as { name: string; limit: string }[];
  const { limit } = limits.find(({ name }) => name === "kvarn")!;
  expect(readFileSync("README.md", "utf8").replace(/\s+/g, " ")).toContain(`All of it is below ${limit},`);
  expect(readFileSync("conformance/README.md", "utf8")).toContain(` ${goldenCases.length} cases of records,`);
  expect(readFileSync("docs/runtimes.md", "utf8")).toContain(` ${countChecks()} are all of it.`);
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
