/** What the page asks of the open dump, computed in a worker so that sliders never wait. */
import { openKvarn } from "../src/index.js";
import { type Dump, type DumpLayer, readDump } from "../src/cli/dump.js";
import { type AttentionMap, mapAttention } from "./attention-map.js";
import { oneHead } from "./heads.js";
import { type LayerSample, sampleLayer } from "./sample.js";
import type { Settings } from "./settings.js";
import { computeStages, type Part, type Stages } from "./stages.js";

/** A layer's number and shape. */
export type LayerShape = Omit<DumpLayer, "keys" | "values" | "queries">;

export interface OpenedDump {
  readonly layers: LayerShape[];
  /** Tensors that are no layer's. */
  readonly ignored: number;
}

/** A tile that is asked for; the layer counts from 0 in the order of the dump. */
export interface TileChoice {
  readonly layer: number;
  readonly head: number;
  readonly part: Part;
  readonly tile: number;
  readonly settings: Settings;
}

/** Tokens that are checked at a time, so that a large dump needs no copy. */
const CHECKED_AT_ONCE = 1024;

const kvarn = openKvarn();
let dump: Dump | undefined;

/**
 * Opens a file, or what an address has. All of it is checked first: where it throws, the dump that was open stays.
 * @throws {KvarnError} as `readDump`
 */
export async function open(source: File | string): Promise<OpenedDump> {
  const opened = readDump(await readBytes(source));
  opened.layers.forEach(checkLayer);
  dump = opened;
  const layers = opened.layers.map(({ number, tokens, queryTokens, queryHeads, kvHeads, headDim }) => {
    return { number, tokens, queryTokens, queryHeads, kvHeads, headDim };
  });
  return { layers, ignored: opened.ignored.length };
}

function checkLayer(layer: DumpLayer): void {
  const { tokens, queryTokens } = layer;
  for (let from = 0; from < tokens; from += CHECKED_AT_ONCE) {
    const to = Math.min(from + CHECKED_AT_ONCE, tokens);
    layer.keys(from, to);
    layer.values(from, to);
    if (from < queryTokens) layer.queries(from, Math.min(to, queryTokens));
  }
}

async function readBytes(source: File | string): Promise<Uint8Array> {
  if (typeof source !== "string") return new Uint8Array(await source.arrayBuffer());
  const response = await fetch(source);
  if (!response.ok) throw new Error(`${source}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** One tile at its four stages. */
export async function stages({ layer, head, part, tile, settings }: TileChoice): Promise<Stages> {
  const source = layerAt(layer);
  const { group } = settings;
  const [from, to] = [tile * group, (tile + 1) * group];
  const pair = {
    k: oneHead(source.keys(from, to), source, head),
    v: oneHead(source.values(from, to), source, head),
    headDim: source.headDim,
  };
  return computeStages(await kvarn, pair, part, settings);
}

/** The attention map of a query head. */
export async function attention(choice: {
  layer: number;
  head: number;
  settings: Settings;
}): Promise<AttentionMap | null> {
  return mapAttention(await kvarn, layerAt(choice.layer), choice.head, choice.settings);
}

/** A layer to measure backends on. */
export function sample(layer: number): LayerSample {
  return sampleLayer(layerAt(layer));
}

function layerAt(index: number): DumpLayer {
  if (!dump) throw new Error("no dump is open");
  return dump.layers[index];
}
