/** Where queries look: attention weights over keys as they are, and over keys that went through records. */
import type { Kvarn } from "../src/index.js";
import { scoreTokens, softmax } from "../src/cli/attention.js";
import type { DumpLayer } from "../src/cli/dump.js";
import { oneHead } from "./heads.js";
import { presetName, type Settings } from "./settings.js";

/** Newest query tokens that are shown. */
const MOST_QUERIES = 48;
/** Tokens share columns where there are more of them. */
const MOST_COLUMNS = 256;

export interface AttentionMap {
  /** Rows: the newest query tokens. */
  readonly queries: number;
  /** Position of the first of them. */
  readonly position: number;
  /** Columns, each the sum over `tokensPerColumn` tokens. */
  readonly columns: number;
  readonly tokensPerColumn: number;
  /** Shares of a query's attention, `[queries, columns]`; NaN where all tokens come after the query. */
  readonly exact: Float32Array;
  readonly compressed: Float32Array;
  /** Compressed minus exact. */
  readonly difference: Float32Array;
  /** The share of its attention that a query gives to other tokens than before: the mean, and the most. */
  readonly moved: { readonly mean: number; readonly most: number };
  /** The tokens, from `start` to before `end`, whose keys come from records; the others are exact, as in a cache. */
  readonly encoded: { readonly start: number; readonly end: number };
}

/** The map of one query head; null for a layer without queries. */
export async function mapAttention(
  kvarn: Kvarn,
  layer: DumpLayer,
  head: number,
  settings: Settings,
): Promise<AttentionMap | null> {
  const { tokens, headDim, queryTokens, queryHeads, kvHeads } = layer;
  if (queryTokens === 0) return null;
  const kvHead = Math.floor(head / (queryHeads / kvHeads));
  const exactKeys = oneHead(layer.keys(0, tokens), layer, kvHead);
  const encoded = encodedTokens(layer, settings.group);
  const compressedKeys = exactKeys.slice();
  if (encoded.end > encoded.start) {
    const [from, to] = [encoded.start * headDim, encoded.end * headDim];
    const values = oneHead(layer.values(encoded.start, encoded.end), layer, kvHead);
    const record = { preset: presetName(settings), kvHeads: 1, headDim };
    const { iterations } = settings;
    const records = await kvarn.encode(exactKeys.subarray(from, to), values, { ...record, iterations });
    compressedKeys.set((await kvarn.decode(records, record)).k, from);
  }

  const queries = Math.min(MOST_QUERIES, queryTokens);
  const position = tokens - queries;
  const tokensPerColumn = Math.ceil(tokens / MOST_COLUMNS);
  const columns = Math.ceil(tokens / tokensPerColumn);
  const exact = new Float32Array(queries * columns).fill(NaN);
  const compressed = exact.slice();
  const difference = exact.slice();
  const moved = { mean: 0, most: 0 };
  for (let query = 0; query < queries; query++) {
    const first = queryTokens - queries + query;
    const q = layer.queries(first, first + 1).subarray(head * headDim, (head + 1) * headDim);
    const visible = position + query + 1;
    const before = weigh(q, exactKeys, headDim, visible);
    const after = weigh(q, compressedKeys, headDim, visible);
    let share = 0;
    for (let token = 0; token < visible; token++) {
      const at = query * columns + Math.floor(token / tokensPerColumn);
      exact[at] = (exact[at] || 0) + before[token];
      compressed[at] = (compressed[at] || 0) + after[token];
      difference[at] = (difference[at] || 0) + after[token] - before[token];
      // What one token gains another one loses.
      share += Math.abs(after[token] - before[token]) / 2;
    }
    moved.mean += share / queries;
    moved.most = Math.max(moved.most, share);
  }
  return { queries, position, columns, tokensPerColumn, exact, compressed, difference, moved, encoded };
}

/** What a cache has encoded when the first query comes: whole tiles of the prompt, but the sink. */
function encodedTokens({ tokens, queryTokens }: DumpLayer, group: number): { start: number; end: number } {
  const end = Math.floor((tokens - queryTokens) / group) * group;
  return { start: group, end: Math.max(group, end) };
}

function weigh(q: Float32Array, keys: Float32Array, headDim: number, visible: number): Float64Array {
  const weights = new Float64Array(visible);
  scoreTokens(q, { data: keys, heads: 1, headDim }, 0, 1 / Math.sqrt(headDim), weights);
  softmax(weights);
  return weights;
}
