/** What compression does to a layer: errors of K, V, attention scores and outputs against the uncompressed tensors. */
import { scoreTokens, softmax, type TokenRows, weighTokens } from "./attention.js";
import type { DumpLayer } from "./dump.js";

/** Sums for a relative L2 error: `|actual - expected|^2` and `|expected|^2`. */
export interface Deviation {
  error: number;
  energy: number;
}

/** A layer's errors as sums, so that those of several layers can be added. */
export interface Errors {
  key: Deviation;
  value: Deviation;
  score: Deviation;
  output: Deviation;
  /** The part of `key.error` that is magnitude: `(|k'| - |k|)^2`, token by token and head by head. */
  keyMagnitude: number;
  /** `||k'| - |k|| / |k|` of each token and head, the zero vectors left out. */
  keyNorms: Float64Array;
}

/** What a cache made of a layer. */
export interface CompressedLayer {
  /** The tokens, `[start, end)`, that are encoded. */
  readonly encoded: { start: number; end: number };
  /** What their records decode to, `[tokens, kvHeads, headDim]`. */
  readonly k: Float32Array;
  readonly v: Float32Array;
  /** Attention outputs, `[queryTokens, queryHeads, headDim]`. */
  readonly outputs: Float32Array;
}

/**
 * Compares a layer with what a cache made of it.
 * @param onQuery called after each query token, the costly part
 */
export function measureErrors(layer: DumpLayer, compressed: CompressedLayer, onQuery: () => void): Errors {
  const { start, end } = compressed.encoded;
  const keys = layer.keys(start, end);
  const key = deviation(compressed.k, keys);
  const value = deviation(compressed.v, layer.values(start, end));
  const norms = compareNorms(compressed.k, keys, layer.headDim);
  const attention = compareAttention(layer, compressed, onQuery);
  return { key, value, ...norms, ...attention };
}

/** Errors over several layers: each element counts once, wherever it is. */
export function addErrors(layers: readonly Errors[]): Errors {
  const add = (part: "key" | "value" | "score" | "output"): Deviation => ({
    error: sum(layers.map((errors) => errors[part].error)),
    energy: sum(layers.map((errors) => errors[part].energy)),
  });
  return {
    key: add("key"),
    value: add("value"),
    score: add("score"),
    output: add("output"),
    keyMagnitude: sum(layers.map(({ keyMagnitude }) => keyMagnitude)),
    keyNorms: Float64Array.from(layers.flatMap(({ keyNorms }) => [...keyNorms])),
  };
}

/** `|actual - expected| / |expected|`; null where there is nothing to compare with. */
export function relativeError({ error, energy }: Deviation): number | null {
  return energy === 0 ? null : Math.sqrt(error / energy);
}

/** The mean of the largest hundredth, at least one; null of nothing. */
export function meanOfWorst1Percent(values: Float64Array): number | null {
  if (values.length === 0) return null;
  const worst = values
    .slice()
    .sort()
    .subarray(-Math.ceil(values.length / 100));
  return sum(worst) / worst.length;
}

/** Sums up by how much `actual` differs from `expected`. */
export function deviation(actual: ArrayLike<number>, expected: ArrayLike<number>): Deviation {
  const result = { error: 0, energy: 0 };
  for (let i = 0; i < expected.length; i++) {
    result.error += (actual[i] - expected[i]) ** 2;
    result.energy += expected[i] ** 2;
  }
  return result;
}

function compareNorms(
  actual: Float32Array,
  expected: Float32Array,
  headDim: number,
): Pick<Errors, "keyMagnitude" | "keyNorms"> {
  const keyNorms: number[] = [];
  let keyMagnitude = 0;
  for (let row = 0; row < expected.length; row += headDim) {
    const norm = length(expected, row, headDim);
    const change = Math.abs(length(actual, row, headDim) - norm);
    keyMagnitude += change ** 2;
    if (norm > 0) keyNorms.push(change / norm);
  }
  return { keyMagnitude, keyNorms: Float64Array.from(keyNorms) };
}

function length(rows: Float32Array, from: number, headDim: number): number {
  let squares = 0;
  for (let i = from; i < from + headDim; i++) squares += rows[i] ** 2;
  return Math.sqrt(squares);
}

/**
 * Scores: of each query with the encoded tokens it sees. Outputs: of each query over all tokens it sees, against f64
 * attention on the tensors as they were.
 */
function compareAttention(
  layer: DumpLayer,
  { encoded, k, outputs }: CompressedLayer,
  onQuery: () => void,
): Pick<Errors, "score" | "output"> {
  const score = { error: 0, energy: 0 };
  const output = { error: 0, energy: 0 };
  const { tokens, queryTokens, queryHeads, kvHeads, headDim } = layer;
  if (queryTokens === 0) return { score, output };
  const rows = (data: Float32Array): TokenRows => ({ data, heads: kvHeads, headDim });
  const keys = rows(layer.keys(0, tokens));
  const values = rows(layer.values(0, tokens));
  // Scores are linear in K, so those of its error are the error of the scores.
  const original = layer.keys(encoded.start, encoded.end);
  const keyErrors = rows(k.map((value, i) => value - original[i]));
  const scale = 1 / Math.sqrt(headDim);
  for (let query = 0; query < queryTokens; query++) {
    const visible = tokens - queryTokens + query + 1;
    const visibleEncoded = Math.max(0, Math.min(encoded.end, visible) - encoded.start);
    const weights = new Float64Array(visible);
    const errors = new Float64Array(visibleEncoded);
    const q = layer.queries(query, query + 1);
    for (let head = 0; head < queryHeads; head++) {
      const kvHead = Math.floor(head / (queryHeads / kvHeads));
      const row = q.subarray(head * headDim, (head + 1) * headDim);
      scoreTokens(row, keys, kvHead, scale, weights);
      scoreTokens(row, keyErrors, kvHead, scale, errors);
      score.error += squares(errors);
      score.energy += squares(weights.subarray(encoded.start, encoded.start + visibleEncoded));
      softmax(weights);
      const at = (query * queryHeads + head) * headDim;
      const compared = deviation(outputs.subarray(at, at + headDim), weighTokens(weights, values, kvHead));
      output.error += compared.error;
      output.energy += compared.energy;
    }
    onQuery();
  }
  return { score, output };
}

function squares(values: Float64Array): number {
  let total = 0;
  for (const value of values) total += value ** 2;
  return total;
}

function sum(values: ArrayLike<number>): number {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += values[i];
  return total;
}
