/**
 * One real tile of keys and queries, which SQuat's repository holds: the figures that its notebook prints, and those of other
 * methods on the same tile, from an independent implementation in f64. The tile is not part of this repository;
 * `KVARN_SQUAT_TILE` names its file, by default that of a folder `shared` beside it. Without it these tests are left out.
 */
import { existsSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import {
  affine,
  codebook,
  lloydMaxLevels,
  OutlierPool,
  type Quantizer,
  queryAware,
  rotated,
  squat,
} from "../../src/methods/index.js";

const FILE = process.env.KVARN_SQUAT_TILE ?? "../shared/golden/squat-tile.json";
const TOKENS = 32;
const D = 128;

const isThere = existsSync(FILE);
if (!isThere) console.warn(`${FILE} is absent, the tests on SQuat's tile are left out`);

interface Tile {
  keys: Float32Array;
  queries: Float32Array;
}

function readTile(): Tile {
  const { keys, queries } = JSON.parse(readFileSync(FILE, "utf8")) as Record<"keys" | "queries", string>;
  const decode = (base64: string): Float32Array =>
    new Float32Array(Uint8Array.from(Buffer.from(base64, "base64")).buffer);
  return { keys: decode(keys), queries: decode(queries) };
}

/** Causal attention weights of each query, in f64. */
function weights({ keys, queries }: Tile): number[] {
  return Array.from({ length: TOKENS }, (_, query) => {
    const exponentials = Array.from({ length: query + 1 }, (_, token) => {
      let score = 0;
      for (let i = 0; i < D; i++) score += queries[query * D + i] * keys[token * D + i];
      return Math.exp(score / Math.sqrt(D));
    });
    const sum = exponentials.reduce((a, b) => a + b, 0);
    return exponentials.map((x) => x / sum);
  }).flat();
}

describe.skipIf(!isThere)("SQuat's tile", () => {
  const tile = isThere ? readTile() : { keys: new Float32Array(0), queries: new Float32Array(0) };
  const expected = weights(tile);
  const error = (keys: Float32Array): number =>
    weights({ ...tile, keys }).reduce((sum, weight, i) => sum + Math.abs(weight - expected[i]), 0);
  const errorOf = (quantizer: Quantizer): number => error(quantizer(tile.keys, D).rows);
  const perChannel = (bits: number): Quantizer => affine({ bits, axis: "channel", group: 32, scaleBits: 32 });
  const aware = (bits: number, rank: number, channels: number, lambda: number): Quantizer =>
    queryAware(tile.queries, { rank, lambda, channels, inner: perChannel(bits) });

  it("is what the repository holds", () => {
    const sum = (rows: Float32Array) => rows.reduce((a, b) => a + b, 0);
    expect(sum(tile.keys)).toBeCloseTo(362.8218, 3);
    expect(sum(tile.queries)).toBeCloseTo(-196.3806, 3);
  });

  it("has the notebook's summed softmax error: 5.1405 with KIVI, 1.5488 with SQuat", () => {
    expect(errorOf(perChannel(2))).toBeCloseTo(5.1405, 4);
    expect(errorOf(aware(2, 30, 2, 0.1))).toBeCloseTo(1.5488, 4);
  });

  it("has the same errors to more digits, and at more bits", () => {
    expect([2, 3, 4].map((bits) => errorOf(aware(bits, 30, 2, 0.1)).toFixed(6))).toEqual([
      "1.548847",
      "0.618424",
      "0.310078",
    ]);
    expect([2, 3, 4].map((bits) => errorOf(aware(bits, 30, 1, 0.1)).toFixed(5))).toEqual([
      "1.56558",
      "0.58847",
      "0.30497",
    ]);
  });

  it.each([
    ["KIVI", perChannel, [5.14053, 1.959021, 0.826411]],
    [
      "SQuat as its README has it",
      (bits: number) => aware(bits, 5, 64, 0.001),
      [5.487226, 1.564504, 0.733304],
    ],
    ["rotated, per channel", (bits: number) => rotated(perChannel(bits)), [4.223, 1.976, 0.84]],
    [
      "rotated, per token",
      (bits: number) => rotated(affine({ bits, axis: "token", group: D, scaleBits: 32 })),
      [7.584, 4.149, 1.612],
    ],
    [
      "per token",
      (bits: number) => affine({ bits, axis: "token", group: D, scaleBits: 32 }),
      [9.546, 4.55, 2.299],
    ],
    [
      "TurboQuant",
      (bits: number) => rotated(codebook({ levels: lloydMaxLevels(bits), scale: "rms" })),
      [3.86, 3.168, 1.382],
    ],
    [
      "KIVI with a pool of two",
      (bits: number): Quantizer =>
        (rows) => {
          const pool = new OutlierPool({ tokens: 2, displaced: 0, exemptLayers: 0 });
          const held = pool.hold(rows, rows, D, TOKENS);
          const stored = perChannel(bits)(held.k, D);
          held.restore(stored.rows, held.v);
          return stored;
        },
      [3.199, 1.314, 0.57],
    ],
  ])("has about the errors of an implementation in f64: %s", (_, quantizer, [two, three, four]) => {
    // Some elements lie half-way between two codes, where f32 may take the other.
    expect(errorOf(quantizer(2)) / two).toBeCloseTo(1, 2);
    expect(errorOf(quantizer(3)) / three).toBeGreaterThan(0.96);
    expect(errorOf(quantizer(3)) / three).toBeLessThan(1.04);
    expect(errorOf(quantizer(4)) / four).toBeGreaterThan(0.98);
    expect(errorOf(quantizer(4)) / four).toBeLessThan(1.02);
  });

  it("is helped by SQuat as a method, scales in binary16 and all", () => {
    const method = squat({ rank: 30, lambda: 0.1, channels: 2 });
    const stored = method.open({ headDim: D, queries: tile.queries }).compress(tile.keys, tile.keys);
    expect(error(stored.k)).toBeCloseTo(1.5488, 1);
  });
});
