/** Does an engine compute here what it should? A small cache, checked against the reference backend. */
import type { Kvarn } from "../kvarn.js";

/** Two tiles, the sink and one that is encoded, and a few tokens of a third. */
const TOKENS = 135;
const ENCODED = { start: 64, end: 128 };
const SHAPE = { preset: "k4v2_g64", queryHeads: 2, kvHeads: 1, headDim: 64 };

/** Attention over the same records may differ so much, relatively; 16-bit integer dots need it. */
const OUTPUT_LIMIT = 1e-3;
/** Encoders may round a few codes differently; the error may not grow by more than this. */
const ERROR_GROWTH_LIMIT = 1.05;

/** The result of a check. */
export interface SelfCheck {
  passed: boolean;
  /** Relative L2 difference of the attention outputs over the same records. */
  outputDifference: number;
  /** Relative L2 error of the encoded keys and values over that of the reference backend's. */
  errorGrowth: number;
}

/**
 * Encodes and attends on both engines.
 * @throws {KvarnError} whatever the engine throws
 */
export async function selfCheck(engine: Kvarn, reference: Kvarn): Promise<SelfCheck> {
  const draw = generator(0x6b76);
  // Tokens that stand out: what the normalization is there for.
  const scaleOf = (i: number): number => (Math.floor(i / SHAPE.headDim) % 5 === 1 ? 4 : 1);
  const k = Float32Array.from({ length: TOKENS * SHAPE.headDim }, (_, i) => draw() * scaleOf(i));
  const v = Float32Array.from(k, (_, i) => draw() * scaleOf(i));
  const q = Float32Array.from({ length: SHAPE.queryHeads * SHAPE.headDim }, draw);

  const cache = engine.createCache({ ...SHAPE, layers: 1 });
  await cache.append(0, k, v);
  await cache.flush();
  const twin = await reference.restoreCache(await cache.serialize());
  const outputs = await Promise.all([cache.attend(0, q), twin.attend(0, q)]);
  const records = await cache.exportRecords(0);
  cache.dispose();
  twin.dispose();

  const [from, to] = [ENCODED.start * SHAPE.headDim, ENCODED.end * SHAPE.headDim];
  const tile = { k: k.subarray(from, to), v: v.subarray(from, to) };
  const ideal = await reference.decode(await reference.encode(tile.k, tile.v, SHAPE), SHAPE);
  const actual = await engine.decode(records, SHAPE);
  const outputDifference = difference(outputs[0], outputs[1]);
  const errorGrowth = Math.max(
    difference(actual.k, tile.k) / difference(ideal.k, tile.k),
    difference(actual.v, tile.v) / difference(ideal.v, tile.v),
  );
  const passed = outputDifference <= OUTPUT_LIMIT && errorGrowth <= ERROR_GROWTH_LIMIT;
  return { passed, outputDifference, errorGrowth };
}

function difference(actual: Float32Array, expected: Float32Array): number {
  let error = 0;
  let energy = 0;
  for (let i = 0; i < expected.length; i++) {
    error += (actual[i] - expected[i]) ** 2;
    energy += expected[i] ** 2;
  }
  return Math.sqrt(error / energy);
}

/** Repeatable numbers, about normal: sums of four xorshift32 draws. */
function generator(seed: number): () => number {
  let state = seed;
  const next = (): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
  return () => 2 * (next() + next() + next() + next() - 2);
}
