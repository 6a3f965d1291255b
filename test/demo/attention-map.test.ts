import { describe, expect, it } from "vitest";
import { openKvarn } from "../../src/index.js";
import { readDump } from "../../src/cli/dump.js";
import { type AttentionMap, mapAttention } from "../../demo/attention-map.js";
import { layerOf, sampleLayer } from "../../demo/sample.js";
import { DEFAULT_SETTINGS } from "../../demo/settings.js";
import { dumpFile, randomTensor } from "../support/dump.js";

const kvarn = await openKvarn({ backend: "reference" });
const [tokens, queryTokens, queryHeads, kvHeads, headDim] = [700, 60, 4, 2, 16];
const k = randomTensor(1, tokens, kvHeads, headDim);
const v = randomTensor(2, tokens, kvHeads, headDim);
const q = randomTensor(3, queryTokens, queryHeads, headDim);
const file = dumpFile({ "layers.0.k": k, "layers.0.v": v, "layers.0.q": q });
const [layer] = readDump(file).layers;

/** Weights of one query over the keys of a KV head, one token after another. */
function weights(query: number, head: number, keys: Float32Array): number[] {
  const kvHead = Math.floor(head / (queryHeads / kvHeads));
  const visible = tokens - queryTokens + query + 1;
  const scores = Array.from({ length: visible }, (_, token) => {
    let dot = 0;
    for (let i = 0; i < headDim; i++) {
      dot +=
        q.data[(query * queryHeads + head) * headDim + i] * keys[(token * kvHeads + kvHead) * headDim + i];
    }
    return Math.exp(dot / Math.sqrt(headDim));
  });
  const sum = scores.reduce((total, score) => total + score, 0);
  return scores.map((score) => score / sum);
}

/** Expects one row's columns, and nothing where all tokens come after the query. */
function expectRow(map: AttentionMap, values: Float32Array, query: number, expected: number[]): void {
  const actual = [...values.subarray(query * map.columns, (query + 1) * map.columns)];
  expect(actual.map(Number.isNaN)).toEqual(expected.map(Number.isNaN));
  const apart = actual.map((value, i) => Math.abs(value - expected[i]) || 0);
  expect(Math.max(...apart)).toBeLessThan(1e-6);
}

describe("mapAttention", () => {
  it("sums up the weights of exact and of compressed keys in columns of tokens", async () => {
    const head = 3;
    const map = (await mapAttention(kvarn, layer, head, DEFAULT_SETTINGS))!;
    expect(map).toMatchObject({
      ...{ queries: 48, position: 652, columns: 234, tokensPerColumn: 3 },
      encoded: { start: 128, end: 640 },
    });
    // Keys of tokens 128 to 639 as a record of both heads holds them.
    const width = kvHeads * headDim;
    const compressed = k.data.slice();
    const shape = { kvHeads, headDim };
    const part = [128 * width, 640 * width] as const;
    const records = await kvarn.encode(k.data.slice(...part), v.data.slice(...part), shape);
    compressed.set((await kvarn.decode(records, shape)).k, 128 * width);

    let most = 0;
    let sum = 0;
    for (let query = 0; query < map.queries; query++) {
      const exact = weights(queryTokens - map.queries + query, head, k.data);
      const after = weights(queryTokens - map.queries + query, head, compressed);
      const share = exact.reduce((total, weight, i) => total + Math.abs(after[i] - weight), 0) / 2;
      most = Math.max(most, share);
      sum += share;
      const columns = (all: number[]): number[] => {
        return Array.from({ length: map.columns }, (_, column) => {
          const some = all.slice(3 * column, 3 * column + 3);
          return some.length === 0 ? NaN : some.reduce((total, weight) => total + weight, 0);
        });
      };
      const [before, then] = [columns(exact), columns(after)];
      expectRow(map, map.exact, query, before);
      expectRow(map, map.compressed, query, then);
      expectRow(
        map,
        map.difference,
        query,
        then.map((share, i) => share - before[i]),
      );
    }
    expect(map.moved.most).toBeCloseTo(most, 5);
    expect(map.moved.mean).toBeCloseTo(sum / map.queries, 5);
    expect(map.moved.mean).toBeGreaterThan(0.001);
  });

  it("moves nothing while no tile is encoded, and is absent without queries", async () => {
    const short = layerOf({ ...sampleLayer(layer), tokens: 100, k: k.data, v: v.data });
    const map = (await mapAttention(kvarn, short, 0, DEFAULT_SETTINGS))!;
    expect(map.encoded).toEqual({ start: 128, end: 128 });
    expect(map.moved).toEqual({ mean: 0, most: 0 });
    const [without] = readDump(dumpFile({ "layers.0.k": k, "layers.0.v": v })).layers;
    expect(await mapAttention(kvarn, without, 0, DEFAULT_SETTINGS)).toBeNull();
  });
});

describe("sampleLayer", () => {
  it("takes the newest tokens and queries, as a layer of its own", () => {
    const long = readDump(
      dumpFile({
        "layers.7.k": randomTensor(4, 4100, 1, 16),
        "layers.7.v": randomTensor(5, 4100, 1, 16),
        "layers.7.q": randomTensor(6, 20, 2, 16),
      }),
    ).layers[0];
    const sample = layerOf(sampleLayer(long));
    expect(sample).toMatchObject({ number: 7, tokens: 4096, queryTokens: 16, queryHeads: 2, kvHeads: 1 });
    expect(sample.keys(4000, 4096)).toEqual(long.keys(4004, 4100));
    expect(sample.values(0, 5)).toEqual(long.values(4, 9));
    expect(sample.queries(15, 16)).toEqual(long.queries(19, 20));
  });
});
