/** The part of a layer that backends are measured on, as plain data that can go to another worker. */
import type { DumpLayer } from "../src/cli/dump.js";

/** So that a phone is done in seconds. */
const MOST_TOKENS = 4096;
const MOST_QUERIES = 16;

export interface LayerSample {
  readonly number: number;
  readonly tokens: number;
  readonly queryTokens: number;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly q: Float32Array;
}

/** Takes the newest tokens and queries of a layer. */
export function sampleLayer(layer: DumpLayer): LayerSample {
  const { number, queryHeads, kvHeads, headDim } = layer;
  const tokens = Math.min(MOST_TOKENS, layer.tokens);
  const queryTokens = Math.min(MOST_QUERIES, layer.queryTokens);
  return {
    ...{ number, tokens, queryTokens, queryHeads, kvHeads, headDim },
    k: layer.keys(layer.tokens - tokens, layer.tokens),
    v: layer.values(layer.tokens - tokens, layer.tokens),
    q: layer.queries(layer.queryTokens - queryTokens, layer.queryTokens),
  };
}

/** The sample as a layer of a dump. */
export function layerOf({ k, v, q, ...shape }: LayerSample): DumpLayer {
  const rows = (data: Float32Array, heads: number) => {
    const width = heads * shape.headDim;
    return (from: number, to: number) => data.subarray(from * width, to * width);
  };
  return {
    ...shape,
    keys: rows(k, shape.kvHeads),
    values: rows(v, shape.kvHeads),
    queries: rows(q, shape.queryHeads),
  };
}
