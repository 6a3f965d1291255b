/** Methods on a real model's cache, a layer of SmolLM2-135M-Instruct. */
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { readDump } from "../../src/cli/dump.js";
import { formatPercent } from "../../src/cli/text.js";
import { relativeError } from "../../src/conformance/compare.js";
import { f16, kivi, kvarn, type Method, MethodCache, squat } from "../../src/methods/index.js";

const { layers } = readDump(readFileSync("fixtures/smollm2-135m.kv.safetensors"));
const layer = layers.find(({ number }) => number === 10)!;
const { tokens, queryTokens, queryHeads, kvHeads, headDim } = layer;
const q = layer.queries(0, queryTokens);

it("KVarN has the errors that the engines have", () => {
  // As the README shows them: of K and V where they are encoded, of scores, of outputs.
  const readme = readFileSync("README.md", "utf8");
  const figures = readme.slice(readme.indexOf("relative error, %"));
  const [, key, value, output] = /^ +10 +([\d.]+) +([\d.]+) +[\d.]+ +([\d.]+) /m.exec(figures)!;

  // The queries' own tokens come last and are exact.
  const before = tokens - queryTokens;
  const [exact, cache] = [f16(), kvarn()].map((method) => {
    const made = new MethodCache(method, { layers: 1, queryHeads, kvHeads, headDim });
    made.append(0, layer.keys(0, before), layer.values(0, before), before);
    made.append(0, layer.keys(before, tokens), layer.values(before, tokens), queryTokens);
    return made;
  });
  const { start, keyEnd, valueEnd } = cache.compressedRange(0);
  expect([start, keyEnd, valueEnd]).toEqual([128, before, before]);
  const { k, v } = cache.read(0);
  const encoded = (rows: Float32Array): Float32Array =>
    rows.subarray(start * kvHeads * headDim, before * kvHeads * headDim);
  expect(formatPercent(relativeError(encoded(k), layer.keys(start, before)))).toBe(key);
  expect(formatPercent(relativeError(encoded(v), layer.values(start, before)))).toBe(value);
  const outputs = [cache, exact].map((one) => one.attend(0, q, queryTokens));
  expect(formatPercent(relativeError(outputs[0], outputs[1]))).toBe(output);
});

it("SQuat errs less than KIVI in the scores of its queries, and more in keys", () => {
  const count = 512;
  const [perHead, head] = [queryHeads / kvHeads, 1];
  const ofHead = (rows: Float32Array, heads: number, first: number, width: number): Float32Array =>
    rows.filter((_, i) => {
      const one = Math.floor(i / headDim) % heads;
      return one >= first && one < first + width;
    });
  const k = ofHead(layer.keys(0, count), kvHeads, head, 1);
  const v = ofHead(layer.values(0, count), kvHeads, head, 1);
  const queries = ofHead(q, queryHeads, head * perHead, perHead);
  const errors = (method: Method): [number, number] => {
    const stored = method.open({ headDim, queries }).compress(k, v).k;
    const scores = (keys: Float32Array): Float64Array => {
      const result = new Float64Array((queries.length / headDim) * count);
      for (let row = 0, at = 0; row < queries.length; row += headDim) {
        for (let key = 0; key < keys.length; key += headDim, at++) {
          for (let i = 0; i < headDim; i++) result[at] += queries[row + i] * keys[key + i];
        }
      }
      return result;
    };
    return [relativeError(scores(stored), scores(k)), relativeError(stored, k)];
  };
  const [plain, plainKeys] = errors(kivi());
  const [aware, awareKeys] = errors(squat());
  const [finer] = errors(squat({ channels: 2 }));
  expect(aware).toBeLessThan(0.85 * plain);
  expect(finer).toBeLessThan(0.95 * aware);
  expect(awareKeys).toBeGreaterThan(plainKeys);
});
