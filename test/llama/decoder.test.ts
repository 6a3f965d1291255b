/** The example's decoder against transformers, with exact and with compressed caches. */
import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { type Attention, KvarnAttention } from "../../examples/llama/attention.js";
import type { Decoder } from "../../examples/llama/decoder.js";
import { F32Attention } from "../../examples/llama/f32-attention.js";
import { generate } from "../../examples/llama/generate.js";
import { compileKernels, loadLlama } from "../../examples/llama/node.js";
import { greedy } from "../../examples/llama/sampling.js";
import { readDump } from "../../src/cli/dump.js";
import { openKvarn } from "../../src/index.js";
import { readReference, type Reference, SMOLLM2, TINY } from "../support/llama.js";

const kvarn = await openKvarn({ backend: "wasm" });

/** Caches that lose nothing: plain f32, and ours as long as it encodes nothing, in binary16. */
const exact = {
  f32: async ({ config }: Decoder) => F32Attention.open(await compileKernels(), config, 1024),
  "binary16 of this package": async (decoder: Decoder) => ours(decoder, { exactWindow: 1024 }),
};

function ours({ config }: Decoder, options: { preset?: string; exactWindow?: number }): KvarnAttention {
  const { layers, queryHeads, kvHeads, headDim } = config;
  return new KvarnAttention(kvarn.createCache({ layers, queryHeads, kvHeads, headDim, ...options }));
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);
}

/** How far logits are off, by the root of the mean square, in units of how much they differ among themselves. */
function relativeError(logits: Float32Array, right: Float32Array): number {
  const mean = right.reduce((sum, value) => sum + value, 0) / right.length;
  const of = (values: (i: number) => number): number =>
    Math.sqrt(right.reduce((sum, _, i) => sum + values(i) ** 2, 0));
  return of((i) => logits[i] - right[i]) / of((i) => right[i] - mean);
}

/** How far the logits after a text are from the reference's, at most. */
function referenceError(
  logits: Float32Array,
  { logits: all, largest }: Reference,
  vocabulary: number,
): number {
  const row = (position: number): Float32Array =>
    logits.subarray(position * vocabulary, (position + 1) * vocabulary);
  const atPositions = [...all].map(([position, right]) => largestDifference(row(position), right));
  const ofLargest = largest.flatMap((right, position) => {
    return [...right].map(([token, value]) => Math.abs(row(position)[token] - value));
  });
  return Math.max(...atPositions, ...ofLargest);
}

async function answer(decoder: Decoder, cache: Attention, prompt: readonly number[], tokens: number) {
  const found: number[] = [];
  // Goes on behind ends, as the reference does.
  for await (const token of generate(decoder, cache, prompt, { sampler: greedy, end: -1 })) {
    found.push(token);
    if (found.length === tokens) break;
  }
  return found;
}

/** What every model has to come to. `limits`: of f32 and of binary16. */
function testModel(file: string, reference: Reference, limits: Record<keyof typeof exact, number>): void {
  let decoder: Decoder;
  const { text, prompt } = reference;
  beforeAll(async () => {
    ({ decoder } = await loadLlama(file));
  });

  describe.each(Object.keys(exact) as (keyof typeof exact)[])("over %s", (name) => {
    it("has the logits of transformers", async () => {
      const logits = await decoder.forward(text, await exact[name](decoder), { logits: "all" });
      const error = referenceError(logits, reference, decoder.config.vocabulary);
      console.log(`${file}, ${name}: logits off by ${error.toPrecision(2)} at most`);
      expect(error).toBeLessThan(limits[name]);
    });

    it("answers with the same tokens", async () => {
      const right = reference.greedy;
      expect(await answer(decoder, await exact[name](decoder), prompt, right.length)).toEqual([...right]);
    });
  });

  it("comes to the same in one call, token by token, and in pieces", async () => {
    const tokens = text.slice(0, 133);
    const whole = await decoder.forward(tokens, await exact.f32(decoder), { logits: "all" });
    const { vocabulary } = decoder.config;
    for (const size of [1, 7, 66]) {
      const cache = await exact.f32(decoder);
      for (let from = 0; from < tokens.length; from += size) {
        const piece = tokens.slice(from, from + size);
        const logits = await decoder.forward(piece, cache, { logits: "last" });
        const last = from + piece.length - 1;
        const right = whole.subarray(last * vocabulary, (last + 1) * vocabulary);
        expect(largestDifference(logits, right), `${size} tokens at ${from}`).toBeLessThan(2e-4);
      }
      expect(cache.length).toBe(tokens.length);
    }
  });
}

describe("the tiny model", () => {
  const reference = readReference("tiny");
  testModel(TINY, reference, { f32: 1e-3, "binary16 of this package": 2e-2 });

  it("stays close with a compressed cache, closer with more bits", async () => {
    const { decoder } = await loadLlama(TINY);
    // Where most of the tokens seen are encoded.
    const late = async (cache: Attention): Promise<Float32Array> => {
      const logits = await decoder.forward(reference.text, cache, { logits: "all" });
      return logits.subarray(200 * decoder.config.vocabulary);
    };
    const right = await late(await exact.f32(decoder));
    const errors: number[] = [];
    for (const preset of ["k2v2_g64", "k4v4_g64", "k8v8_g64"]) {
      const attention = ours(decoder, { preset });
      errors.push(relativeError(await late(attention), right));
      expect(attention.cache.memory().recordBytes).toBeGreaterThan(0);
    }
    console.log(`k2v2, k4v4, k8v8: logits off by ${errors.map((error) => error.toPrecision(2)).join(", ")}`);
    const [two, four, eight] = errors;
    expect(eight).toBeLessThan(0.02);
    expect(eight).toBeLessThan(four / 4);
    expect(four).toBeLessThan(two / 2);
    expect(four).toBeLessThan(0.25);
  });

  it("refuses tokens that it has not, none at all, and more than its context", async () => {
    const { decoder } = await loadLlama(TINY);
    const cache = ours(decoder, {});
    const { vocabulary, context } = decoder.config;
    for (const token of [-1, 0.5, vocabulary]) {
      const run = decoder.forward([1, token], cache, { logits: "last" });
      await expect(run).rejects.toThrow(`the model has no token ${token}, only ${vocabulary}`);
    }
    await expect(decoder.forward([], cache, { logits: "all" })).rejects.toThrow("no tokens to run");
    const many = new Array<number>(context + 1).fill(1);
    await expect(decoder.forward(many, cache, { logits: "last" })).rejects.toThrow(
      `made for ${context} tokens`,
    );
    expect(cache.length).toBe(0);
  });

  it("ends its answer with its end token, or where its context ends", async () => {
    const { decoder } = await loadLlama(TINY);
    const { prompt, greedy: right } = reference;
    const end = right[40];
    const found: number[] = [];
    const options = { sampler: greedy, end };
    for await (const token of generate(decoder, await exact.f32(decoder), prompt, options)) found.push(token);
    expect(found).toEqual(right.slice(0, right.indexOf(end)));

    const long = Array.from({ length: decoder.config.context - 3 }, (_, i) => i % 200);
    expect(await answer(decoder, ours(decoder, {}), long, 100)).toHaveLength(4);
  });
});

describe.skipIf(SMOLLM2 === undefined)("SmolLM2-135M-Instruct, where KVARN_SMOLLM2 names its file", () => {
  const reference = readReference("smollm2");
  testModel(SMOLLM2 ?? "", reference, { f32: 1e-3, "binary16 of this package": 1e-2 });

  it("caches the keys and values of the fixture", async () => {
    const { decoder } = await loadLlama(SMOLLM2!);
    const { layers } = readDump(readFileSync("fixtures/smollm2-135m.kv.safetensors"));
    const inner = await exact.f32(decoder);
    const errors: number[] = [];
    const watching: Attention = {
      get length() {
        return inner.length;
      },
      append(index, k, v) {
        const layer = layers.find(({ number }) => number === index);
        const tokens = k.length / (decoder.config.kvHeads * decoder.config.headDim);
        const first = inner.length - (index === 0 ? 0 : tokens);
        if (layer) errors.push(relativeError(k, layer.keys(first, first + tokens)));
        if (layer) errors.push(relativeError(v, layer.values(first, first + tokens)));
        inner.append(index, k, v);
      },
      attend: (index, q) => inner.attend(index, q),
    };
    await decoder.forward(reference.text.slice(0, 128), watching, { logits: "last" });
    expect(errors).toHaveLength(2 * 2 * layers.length);
    expect(Math.max(...errors)).toBeLessThan(3e-4);
  });

  it("mostly has the same next token with a compressed cache", async () => {
    const { decoder } = await loadLlama(SMOLLM2!);
    const { vocabulary } = decoder.config;
    const logits = await decoder.forward(reference.text, ours(decoder, {}), { logits: "all" });
    const same = reference.largest.filter((right, position) => {
      const [likeliest] = right.keys();
      return greedy(logits.subarray(position * vocabulary, (position + 1) * vocabulary)) === likeliest;
    });
    console.log(`${same.length} of ${reference.text.length} next tokens are the same`);
    expect(same.length).toBeGreaterThan(0.9 * reference.text.length);
  });
});
