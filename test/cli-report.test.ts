import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { runCli } from "../src/cli/cli.js";
import { startProgress } from "../src/cli/progress.js";
import { openKvarn } from "../src/index.js";
import type { Report } from "../src/cli/report.js";
import { type Dtype, dumpFile, randomTensor, type Tensor } from "./support/dump.js";

const folder = mkdtempSync(join(tmpdir(), "kvarn-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Writes a safetensors file and returns its path. */
function writeDump(name: string, tensors: Record<string, Tensor>, dtype: Dtype | "I8" = "F32"): string {
  const file = join(folder, `${name}.safetensors`);
  writeFileSync(file, dumpFile(tensors, dtype));
  return file;
}

/** Two layers of different shapes, the second with fewer tokens. */
function twoLayers(): Record<string, Tensor> {
  return {
    "layers.2.k": randomTensor(1, 300, 2, 32),
    "layers.2.v": randomTensor(2, 300, 2, 32),
    "layers.2.q": randomTensor(3, 7, 4, 32),
    "layers.11.k": randomTensor(4, 210, 1, 16),
    "layers.11.v": randomTensor(5, 210, 1, 16),
    "layers.11.q": randomTensor(6, 70, 3, 16),
  };
}

function without(tensors: Record<string, Tensor>, ...names: string[]): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(tensors).filter(([name]) => !names.includes(name)));
}

async function run(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const stderr = new PassThrough();
  let text = "";
  const status = await runCli(args, { stdout: { write: (part) => (text += part) }, stderr });
  return { status, stdout: text, stderr: (stderr.read() as Buffer | null)?.toString() ?? "" };
}

async function report(...args: string[]): Promise<Report> {
  const { status, stdout, stderr } = await run("report", "--json", ...args);
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  return JSON.parse(stdout) as Report;
}

const G64 = ["--preset", "k4v2_g64", "--backend", "reference"];

function expectRatio(actual: number | null, expected: number, tolerance: number): void {
  expect(actual! / expected).toBeGreaterThan(1 - tolerance);
  expect(actual! / expected).toBeLessThan(1 + tolerance);
}

/** Plain sums over two arrays. */
function squaredDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return sum;
}

function relativeL2(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  return Math.sqrt(
    squaredDifference(actual, expected) / squaredDifference(expected, new Float64Array(expected.length)),
  );
}

/** What a record keeps of tokens `[from, to)`, which are whole tiles, in place of these tokens. */
async function throughRecords(
  k: Tensor,
  v: Tensor,
  from: number,
  to: number,
): Promise<{ k: Tensor; v: Tensor }> {
  const [, kvHeads, headDim] = k.shape;
  const width = kvHeads * headDim;
  const options = { preset: "k4v2_g64", kvHeads, headDim };
  const kvarn = await openKvarn({ backend: "reference" });
  const part = ({ data }: Tensor): Float32Array => data.slice(from * width, to * width);
  const decoded = await kvarn.decode(await kvarn.encode(part(k), part(v), options), options);
  const replaced = ({ shape, data }: Tensor, by: Float32Array): Tensor => {
    const copy = data.slice();
    copy.set(by, from * width);
    return { shape, data: copy };
  };
  return { k: replaced(k, decoded.k), v: replaced(v, decoded.v) };
}

/** A row of one token and head. */
function row({ shape, data }: Tensor, token: number, head: number): Float32Array {
  const from = (token * shape[1] + head) * shape[2];
  return data.subarray(from, from + shape[2]);
}

function dot(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

/** Logits of query row `token`, `head` with keys `[from, to)`; `pick` says which tensor has a token. */
function logits(
  q: Float32Array,
  pick: (token: number) => Tensor,
  head: number,
  from: number,
  to: number,
): number[] {
  return Array.from(
    { length: to - from },
    (_, i) => dot(q, row(pick(from + i), from + i, head)) / Math.sqrt(q.length),
  );
}

/** Softmax attention by the definition. */
function attention(weights: number[], pick: (token: number) => Tensor, head: number): number[] {
  const exponentials = weights.map((weight) => Math.exp(weight - Math.max(...weights)));
  const sum = exponentials.reduce((a, b) => a + b);
  const headDim = pick(0).shape[2];
  return Array.from({ length: headDim }, (_, channel) => {
    return exponentials.reduce(
      (total, e, token) => total + (e / sum) * row(pick(token), token, head)[channel],
      0,
    );
  });
}

/** The errors of a layer by their definitions, without the cache: what is encoded when follows from SPEC alone. */
async function expectedErrors(k: Tensor, v: Tensor, q: Tensor, start: number, end: number) {
  const tokens = k.shape[0];
  const coded = await throughRecords(k, v, start, end);
  const width = k.shape[1] * k.shape[2];
  const part = ({ data }: Tensor): Float32Array => data.subarray(start * width, end * width);

  const norms: number[] = [];
  let magnitude = 0;
  for (let token = start; token < end; token++) {
    for (let head = 0; head < k.shape[1]; head++) {
      const [before, after] = [k, coded.k].map((tensor) => Math.hypot(...row(tensor, token, head)));
      norms.push(Math.abs(after - before) / before);
      magnitude += (after - before) ** 2;
    }
  }
  const worst = norms.sort((a, b) => b - a).slice(0, Math.ceil(norms.length / 100));

  const scores: number[][] = [[], []];
  const outputs: number[][] = [[], []];
  for (let query = 0; query < q.shape[0]; query++) {
    const position = tokens - q.shape[0] + query;
    // Appending this token found `position` tokens, so whole tiles up to there were encoded, the first one aside.
    const pick = (what: "k" | "v") => (token: number) => {
      const isCoded = token >= 64 && token < 64 * Math.floor(position / 64);
      return isCoded ? coded[what] : { k, v }[what];
    };
    for (let head = 0; head < q.shape[1]; head++) {
      const kvHead = Math.floor((head * k.shape[1]) / q.shape[1]);
      const row_ = row(q, query, head);
      const seen = Math.min(end, position + 1);
      scores[0].push(...logits(row_, () => coded.k, kvHead, start, seen));
      scores[1].push(...logits(row_, () => k, kvHead, start, seen));
      outputs[0].push(...attention(logits(row_, pick("k"), kvHead, 0, position + 1), pick("v"), kvHead));
      outputs[1].push(
        ...attention(
          logits(row_, () => k, kvHead, 0, position + 1),
          () => v,
          kvHead,
        ),
      );
    }
  }
  return {
    key: relativeL2(part(coded.k), part(k)),
    value: relativeL2(part(coded.v), part(v)),
    score: relativeL2(scores[0], scores[1]),
    output: relativeL2(outputs[0], outputs[1]),
    worstKeyNorm: worst.reduce((a, b) => a + b) / worst.length,
    keyMagnitudeShare: magnitude / squaredDifference(part(coded.k), part(k)),
  };
}

describe("kvarn report --json", () => {
  let two: Report;
  beforeAll(async () => {
    two = await report(writeDump("two", twoLayers()), ...G64);
  });

  it("tells sizes", () => {
    expect(two.layers.map(({ encoded }) => encoded)).toEqual([
      { start: 64, end: 256 },
      { start: 64, end: 192 },
    ]);
    // D=32: 256 bytes a token and a record of 1,024 + 64 + 64 + 128 + 512 + 64 + 128 + 128 = 2,112 bytes; three tiles.
    const first = { sink: 64 * 256, tail: 44 * 256, records: 3 * 2 * 2112, tile: 2 * 2112 };
    // D=16: 64 bytes a token and a record of 512 + 32 + 32 + 128 + 256 + 32 + 128 + 128 = 1,248 bytes; two tiles.
    const second = { sink: 64 * 64, tail: 18 * 64, records: 2 * 1248, tile: 1248 };
    [first, second].forEach(({ sink, tail, records, tile }, i) => {
      const { tokens, size } = two.layers[i];
      const f16 = tokens * (sink / 64);
      const total = sink + tail + records;
      expect(size).toEqual({
        f16Bytes: f16,
        cacheBytes: total,
        sinkBytes: sink,
        tailBytes: tail,
        recordBytes: records,
        ratio: f16 / total,
        recordRatio: sink / tile,
        longContextRatio: (512 * sink) / (sink + 511 * tile),
        bitsPerValue: (16 * total) / f16,
        recordBitsPerValue: (16 * tile) / sink,
      });
    });
    const all = two.total.size;
    expect(all.f16Bytes).toBe(300 * 256 + 210 * 64);
    expect(all.cacheBytes).toBe(
      first.sink + first.tail + first.records + second.sink + second.tail + second.records,
    );
    expect(all.ratio).toBe(all.f16Bytes / all.cacheBytes);
    expect(all.recordRatio).toBe((first.sink + second.sink) / (first.tile + second.tile));
    expect(all.bitsPerValue).toBeCloseTo(16 / all.ratio, 10);
  });

  it("tells errors as their definitions have them", async () => {
    const tensors = twoLayers();
    for (const { layer, encoded, error } of two.layers) {
      const [k, v, q] = ["k", "v", "q"].map((name) => tensors[`layers.${layer}.${name}`]);
      const expected = await expectedErrors(k, v, q, encoded.start, encoded.end);
      expectRatio(error.key, expected.key, 1e-5);
      expectRatio(error.value, expected.value, 1e-5);
      expectRatio(error.score, expected.score, 1e-5);
      expectRatio(error.worstKeyNorm, expected.worstKeyNorm, 1e-4);
      expectRatio(error.keyMagnitudeShare, expected.keyMagnitudeShare, 1e-4);
      // The cache rounds the tokens that it does not encode to binary16 too.
      expectRatio(error.output, expected.output, 1e-2);
    }
  });

  it("adds the layers up", () => {
    const [first, second] = two.layers;
    const { error, speed } = two.total;
    for (const name of ["key", "value", "score", "output", "keyMagnitudeShare"] as const) {
      const [least, most] = [first.error[name]!, second.error[name]!].sort((a, b) => a - b);
      expect(error[name]).toBeGreaterThanOrEqual(least);
      expect(error[name]).toBeLessThanOrEqual(most);
    }
    const sums = (pick: (figures: Report["total"]["speed"]) => number | null): void => {
      expect(pick(speed)).toBeCloseTo(pick(first.speed)! + pick(second.speed)!, 6);
    };
    sums(({ appendMicroseconds }) => appendMicroseconds.kvarn);
    sums(({ appendMicroseconds }) => appendMicroseconds.uncompressed);
    sums(({ attendMicroseconds }) => attendMicroseconds!.kvarn);
    sums(({ attendMicroseconds }) => attendMicroseconds!.uncompressed);
  });

  it("has the fields that docs/report.md describes", () => {
    const comparison = { kvarn: "number", uncompressed: "number", ratio: "number" };
    const figures = {
      size: {
        f16Bytes: "number",
        cacheBytes: "number",
        sinkBytes: "number",
        tailBytes: "number",
        recordBytes: "number",
        ratio: "number",
        recordRatio: "number",
        longContextRatio: "number",
        bitsPerValue: "number",
        recordBitsPerValue: "number",
      },
      error: {
        key: "number",
        value: "number",
        score: "number",
        output: "number",
        worstKeyNorm: "number",
        keyMagnitudeShare: "number",
      },
      speed: { appendMicroseconds: comparison, attendMicroseconds: comparison },
    };
    const layer = {
      layer: "number",
      tokens: "number",
      queryTokens: "number",
      queryHeads: "number",
      kvHeads: "number",
      headDim: "number",
      encoded: { start: "number", end: "number" },
      ...figures,
    };
    expect(typesOf(two)).toEqual({
      kvarn: "string",
      file: "string",
      ignoredTensors: [],
      backend: { kind: "string", variant: "string", reason: "string" },
      preset: "string",
      iterations: "number",
      exactWindow: "number",
      promptChunk: "number",
      longContext: "number",
      layers: [layer, layer],
      total: figures,
      notCompared: "null",
    });
    const documented = readFileSync(new URL("../docs/report.md", import.meta.url), "utf8");
    for (const name of namesIn(two)) expect(documented).toMatch(new RegExp(`[\`. ]${name}\\b`));
    expect(two).toMatchObject({ preset: "k4v2_g64", iterations: 8, exactWindow: 0, promptChunk: 512 });
    expect(two.backend).toMatchObject({ kind: "reference", variant: "f64" });
    expect(two.layers).toMatchObject([
      { layer: 2, tokens: 300, queryTokens: 7, queryHeads: 4, kvHeads: 2, headDim: 32 },
      { layer: 11, tokens: 210, queryTokens: 70, queryHeads: 3, kvHeads: 1, headDim: 16 },
    ]);
  });

  it.each(["F16", "BF16"] as const)("reads %s as it reads the same values in F32", async (dtype) => {
    const same = await report(writeDump(dtype, twoLayers(), dtype), ...G64);
    const figures = ({ layers, total }: Report): unknown[] =>
      [...layers, total].map(({ size, error }) => [size, error]);
    expect(figures(same)).toEqual(figures(two));
  });

  it("takes the preset, the iterations and the exact window", async () => {
    const file = writeDump("options", twoLayers());
    const plain = await report(file, "--preset", "k4v4_g64", "--iterations", "0", "--backend", "reference");
    expect(plain.layers[0].error.value).toBeLessThan(two.layers[0].error.value! / 2);
    expect(plain.layers[0].error.key).not.toBe(two.layers[0].error.key);
    expect(plain.layers[0].size.recordBytes).toBe(3 * 2 * (2112 + 512));
    const window = await report(file, ...G64, "--exact-window", "100");
    expect(window.layers.map(({ encoded }) => encoded.end)).toEqual([192, 64]);
    expect(window.layers[0].size.tailBytes).toBe((300 - 192) * 256);
  });

  it("feeds a prompt longer than a chunk", async () => {
    const long = {
      "layers.0.k": randomTensor(1, 1200, 1, 16),
      "layers.0.v": randomTensor(2, 1200, 1, 16),
      "layers.0.q": randomTensor(3, 1, 1, 16),
    };
    const { layers } = await report(writeDump("long", long), ...G64);
    expect(layers[0].encoded).toEqual({ start: 64, end: 1152 });
    expect(layers[0].error.output).toBeGreaterThan(0);
    expect(layers[0].error.output).toBeLessThan(1);
  });

  it("leaves attention out where there are no queries", async () => {
    const none = await report(writeDump("no-q", without(twoLayers(), "layers.2.q", "layers.11.q")), ...G64);
    for (const { error, speed } of [...none.layers, none.total]) {
      expect(error).toMatchObject({ score: null, output: null });
      expect(speed.attendMicroseconds).toBeNull();
    }
    expect(none.layers[0]).toMatchObject({ queryTokens: 0, queryHeads: 2, kvHeads: 2 });
    // Token by token at the end all the same, so the sizes are those of the dump with queries.
    expect(none.layers.map(({ size }) => size)).toEqual(two.layers.map(({ size }) => size));
    const one = await report(writeDump("one-q", without(twoLayers(), "layers.2.q")), ...G64);
    expect(one.layers[0].error.output).toBeNull();
    expect(one.total.error.output).toBe(one.layers[1].error.output);
    expect(one.total.speed.attendMicroseconds).toEqual(one.layers[1].speed.attendMicroseconds);
  });

  it("leaves the errors of records out where nothing is encoded", async () => {
    const short = {
      "layers.0.k": randomTensor(1, 100, 1, 16),
      "layers.0.v": randomTensor(2, 100, 1, 16),
      "layers.0.q": randomTensor(3, 100, 1, 16),
    };
    const { layers } = await report(writeDump("short", short), ...G64);
    expect(layers[0].error).toMatchObject({ key: null, value: null, score: null, worstKeyNorm: null });
    // binary16 is all that is between the cache and f64.
    expect(layers[0].error.output).toBeLessThan(1e-3);
    expect(layers[0].size).toMatchObject({
      ratio: 1,
      recordBytes: 0,
      sinkBytes: 64 * 64,
      tailBytes: 36 * 64,
    });
  });

  it("finds on the real model what this method is known for", { timeout: 120_000 }, async () => {
    const fixture = fileURLToPath(new URL("../fixtures/smollm2-135m.kv.safetensors", import.meta.url));
    const { layers, total, backend } = await report(fixture);
    expect(backend.kind).toBe("wasm");
    expect(layers.map(({ layer }) => layer)).toEqual([0, 10, 20, 29]);
    expect(total.size.recordRatio).toBeCloseTo(4.49, 2);
    expect(total.size.longContextRatio).toBeGreaterThan(4.4);
    for (const { error } of layers) {
      expect(error.key).toBeLessThan(0.07);
      expect(error.value).toBeLessThan(0.46);
      expect(error.score).toBeLessThan(0.04);
      expect(error.output).toBeLessThan(0.2);
      expect(error.worstKeyNorm).toBeLessThan(0.03);
      expect(error.keyMagnitudeShare).toBeLessThan(0.02);
    }
  });
});

/** A value with `typeof` in place of its leaves. */
function typesOf(value: unknown): unknown {
  if (value === null) return "null";
  if (Array.isArray(value)) return value.map(typesOf);
  if (typeof value !== "object") return typeof value;
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, typesOf(part)]));
}

/** The names of all fields. */
function namesIn(value: unknown): string[] {
  if (typeof value !== "object" || value === null) return [];
  const own = Array.isArray(value) ? [] : Object.keys(value);
  return [...own, ...Object.values(value).flatMap(namesIn)];
}

describe("kvarn report", () => {
  it("prints a headline and two tables of one line for each layer and one for all", async () => {
    const { status, stdout } = await run("report", writeDump("text", twoLayers()), ...G64);
    expect(status).toBe(0);
    const lines = stdout.split("\n");
    expect(lines[0]).toMatch(/^cache 1\.88x smaller than f16 at 210 to 300 tokens, 3\.\d\dx at 32,768$/);
    expect(lines[1]).toMatch(/^attention output error [\d.]+ %, in the worst layer [\d.]+ %$/);
    expect(stdout).toMatch(/text\.safetensors: 2 layers; k4v2_g64, 8 iterations\n/);
    expect(stdout).toContain("\nbackend reference f64: asked for by name\n");
    expect(lines.filter((line) => /^ +2 /.test(line))).toHaveLength(2);
    expect(lines.filter((line) => /^ +11 /.test(line))).toHaveLength(2);
    expect(lines.filter((line) => /^ +all /.test(line))).toHaveLength(2);
    expect(stdout).toContain("relative error, %");
    expect(stdout).not.toMatch(/NaN|undefined|null|Infinity/);
    for (const line of lines.filter((text) => !text.startsWith(folder))) {
      expect(line.length).toBeLessThanOrEqual(100);
      expect(line).toBe(line.trimEnd());
    }
  });

  it("says what is left out and why", async () => {
    const extra = { ...without(twoLayers(), "layers.2.q"), "model.norm": randomTensor(9, 1, 1, 16) };
    const { stdout } = await run("report", writeDump("extra", extra), ...G64);
    expect(stdout).toContain("No figures about attention for layer 2: the file has no q there.");
    expect(stdout).toContain("Tensors ignored: 1.");
    const short = { "layers.0.k": randomTensor(1, 100, 1, 16), "layers.0.v": randomTensor(2, 100, 1, 16) };
    const none = await run("report", writeDump("shortest", short), ...G64);
    expect(none.stdout.split("\n")[0]).toBe("cache 1.00x smaller than f16 at 100 tokens, 3.27x at 32,768");
    expect(none.stdout).toContain("No figures about attention for all layers");
    expect(none.stdout).toContain("No errors of K, V and scores for all layers: too short");
  });

  it("says in one line what is wrong with the input", async () => {
    const k = randomTensor(1, 130, 2, 16);
    const layer = { "layers.3.k": k, "layers.3.v": k };
    const spoiled = (at: number, value: number): Tensor => ({ ...k, data: k.data.with(at, value) });
    const cases: [string, Record<string, Tensor>, RegExp][] = [
      ["empty", {}, /holds no tensor named layers\.\{i\}\.k$/],
      ["foreign", { "blk.0.k": k }, /no tensor named layers\.\{i\}\.k, but "blk\.0\.k"$/],
      ["no-v", { "layers.3.k": k }, /layers\.3\.v is missing/],
      ["no-k", { "layers.3.q": k }, /layers\.3\.k is missing/],
      [
        "v",
        { ...layer, "layers.3.v": randomTensor(1, 130, 1, 16) },
        /layers\.3\.v must have the shape of layers\.3\.k/,
      ],
      [
        "flat",
        { "layers.3.k": { ...k, shape: [130, 32] }, "layers.3.v": k },
        /layers\.3\.k must be \[tokens, kvHeads/,
      ],
      [
        "zero",
        { "layers.3.k": randomTensor(1, 0, 2, 16), "layers.3.v": k },
        /none of them 0, got \[0, 2, 16\]/,
      ],
      [
        "dim",
        { "layers.3.k": randomTensor(1, 9, 1, 24), "layers.3.v": k },
        /last size of layers\.3\.k must be a mult/,
      ],
      [
        "q-long",
        { ...layer, "layers.3.q": randomTensor(1, 131, 2, 16) },
        /q must have at most as many tokens as/,
      ],
      [
        "q-heads",
        { ...layer, "layers.3.q": randomTensor(1, 1, 3, 16) },
        /q must have a multiple of the heads of/,
      ],
      ["q-dim", { ...layer, "layers.3.q": randomTensor(1, 1, 2, 32) }, /q must have the head size of/],
      [
        "nan",
        { ...layer, "layers.3.k": spoiled(129 * 32 + 16 + 5, NaN) },
        /^kvarn: layers\.3\.k is NaN at token 129, head 1, channel 5$/,
      ],
      [
        "inf",
        { ...layer, "layers.3.v": spoiled(7, Infinity) },
        /^kvarn: layers\.3\.v is Infinity at token 0, head 0, channel 7$/,
      ],
      [
        "long",
        { ...layer, "layers.3.k": spoiled(64, 3e5) },
        /^kvarn: layers\.3, tokens counted from 0: k at token 2, head 0 is too long/,
      ],
    ];
    for (const [name, tensors, message] of cases) {
      const { status, stdout, stderr } = await run("report", writeDump(name, tensors), ...G64);
      expect({ name, status, stdout }).toEqual({ name, status: 1, stdout: "" });
      expect(stderr).toMatch(/^kvarn: .*\n$/);
      expect(stderr.trimEnd()).toMatch(message);
    }
    const integers = await run("report", writeDump("i8", layer, "I8"), ...G64);
    expect(integers.stderr).toBe('kvarn: tensor "layers.3.k" is of type I8, not F32, F16 or BF16\n');
  });

  it("says in one line what is wrong with the file or an option's value", async () => {
    const file = writeDump("good", twoLayers());
    const text = join(folder, "text.txt");
    writeFileSync(text, "no tensors in here");
    const cases: [string[], RegExp][] = [
      [[join(folder, "none")], /cannot read .*none: no such file or directory$/],
      [[folder], /cannot read .*: illegal operation on a directory$/],
      [[text], /not a safetensors file/],
      [[file, "--preset", "k4"], /preset must be .*got "k4"$/],
      [[file, "--backend", "gpu"], /backend must be .*got "gpu"$/],
      [[file, "--backend", "reference", "--variant", "f16"], /has one variant, "f64", not "f16"$/],
      [[file, "--iterations", "65"], /iterations must be an integer from 0 to 64, got 65$/],
    ];
    for (const [args, message] of cases) {
      const { status, stdout, stderr } = await run("report", ...args);
      expect({ args, status, stdout }).toEqual({ args, status: 1, stdout: "" });
      expect(stderr).toMatch(/^kvarn: .*\n$/);
      expect(stderr.trimEnd()).toMatch(message);
    }
  });

  it("refuses a command line that it does not understand", async () => {
    const cases: [string[], string][] = [
      [[], "report takes one FILE, got 0"],
      [["a", "b"], "report takes one FILE, got 2"],
      [["a", "--iterations", "-1"], "Option '--iterations' argument is ambiguous"],
      [["a", "--iterations", "1.5"], "--iterations takes a whole number, got '1.5'"],
      [["a", "--exact-window="], "--exact-window takes a whole number, got ''"],
      [["a", "--colour"], "Unknown option '--colour'"],
    ];
    for (const [args, message] of cases) {
      const { status, stdout, stderr } = await run("report", ...args);
      expect({ args, status, stdout }).toEqual({ args, status: 2, stdout: "" });
      expect(stderr.split("\n")).toEqual([
        expect.stringContaining(`kvarn: ${message}`),
        "",
        "Usage: kvarn report FILE [options]",
        "kvarn report --help says more.",
        "",
      ]);
    }
  });
});

describe("the progress bar", () => {
  afterEach(() => {
    vi.useRealTimers();
  });

  function terminal(isTTY: boolean): { stream: PassThrough & { isTTY: boolean }; written: () => string } {
    const stream = Object.assign(new PassThrough(), { isTTY });
    return { stream, written: () => (stream.read() as Buffer | null)?.toString() ?? "" };
  }

  function work(isTTY: boolean, millisecondsPerStep: number): string {
    vi.useFakeTimers();
    const { stream, written } = terminal(isTTY);
    const progress = startProgress({ stdout: stream, stderr: stream }, 10);
    for (let i = 0; i < 10; i++) {
      vi.advanceTimersByTime(millisecondsPerStep);
      progress.step();
    }
    progress.stop();
    expect(vi.getTimerCount()).toBe(0);
    return written();
  }

  it("shows on a terminal when the work takes long, and goes away", () => {
    const text = work(true, 300);
    expect(text).toMatch(/measuring \[==/);
    expect(text).toContain("100 %");
    // Column 1, clear the line.
    expect(text.endsWith("\u001b[1G\u001b[2K")).toBe(true);
  });

  it("does not show for short work or without a terminal", () => {
    expect(work(true, 10)).toBe("");
    expect(work(false, 300)).toBe("");
  });
});
