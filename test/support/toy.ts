/**
 * The method as an implementer elsewhere may write it first: a codec and a cache in plain code, with every part open to be
 * replaced by a wrong one. It takes the arithmetic from the reference backend and shares nothing with the caches here.
 */
import type {
  AttendCall,
  CacheCall,
  CacheUnderTest,
  ConformanceAdapter,
  TokenArrays,
} from "../../src/conformance/index.js";
import { type LayerConfig, parsePreset, recordLayout, type RecordLayout } from "../../src/index.js";
import { fromHalf, toHalf } from "../../src/half.js";
import {
  decodeRecord,
  encodeBalanced,
  normalize,
  type NormalizedTile,
  packCodes,
  quantize,
  type Quantized,
  rotate,
} from "../../src/reference/index.js";
import { transpose } from "./tiles.js";

/** Some tokens of one head, rotated: `[tokens, headDim]` each. */
export interface Rows {
  readonly keys: Float32Array | Float64Array;
  readonly values: Float32Array | Float64Array;
}

/** A tile as attention sees it. */
export interface SeenTile {
  /** Position of its first token. */
  readonly start: number;
  readonly tokens: number;
  /** By KV head. */
  readonly rows: readonly Rows[];
  /** By KV head, `[headDim]`; of exact tiles absent. */
  readonly keyScales?: readonly Float64Array[];
}

/** One attention. */
export interface AttentionTask {
  readonly layer: LayerConfig;
  /** Position of the first query. */
  readonly position: number;
  readonly q: Float32Array;
  readonly tiles: readonly SeenTile[];
}

/** The parts of the toy. What is planted replaces one. */
export class Toy {
  rotate(x: Float32Array, headDim: number): Float32Array {
    return rotate(x, headDim);
  }

  normalize(tile: Float32Array, rows: number, columns: number, iterations: number): NormalizedTile {
    return normalize(tile, rows, columns, iterations);
  }

  quantize(tile: Float32Array, rows: number, columns: number, bits: number): Quantized {
    return quantize(tile, rows, columns, bits);
  }

  /** @param rows exact, of one tile and head */
  encodeTile({ keys, values }: Rows, layout: RecordLayout, iterations: number): Uint8Array {
    const { headDim, group } = layout;
    const keyTile = transpose(Float32Array.from(keys), group, headDim);
    return encodeBalanced(
      this.normalize(keyTile, headDim, group, iterations),
      this.normalize(Float32Array.from(values), group, headDim, iterations),
      layout,
    );
  }

  decodeTile(record: Uint8Array, layout: RecordLayout): Rows {
    return decodeRecord(record, layout);
  }

  kvHeadOf(head: number, { queryHeads, kvHeads }: LayerConfig): number {
    return Math.floor(head / (queryHeads / kvHeads));
  }

  /** First position that a query sees. */
  visibleFrom(position: number, { slidingWindow = Infinity }: LayerConfig): number {
    return Math.max(0, position - slidingWindow + 1);
  }

  cap(score: number, softCap: number | undefined): number {
    return softCap === undefined ? score : softCap * Math.tanh(score / softCap);
  }

  /** One element of a query that meets records with this scale of K. */
  fold(q: number, _keyScale: number): number {
    return q;
  }

  /** A sum of weighted values. */
  sum(total: number): number {
    return total;
  }

  attention({ layer, position, q, tiles }: AttentionTask): Float32Array {
    const { queryHeads, headDim, softCap, sinkLogits, softmaxScale = 1 / Math.sqrt(headDim) } = layer;
    const rotated = this.rotate(q, headDim);
    const out = new Float32Array(q.length);
    for (let at = 0; at < q.length; at += headDim) {
      const row = at / headDim;
      const head = row % queryHeads;
      const kvHead = this.kvHeadOf(head, layer);
      const here = position + Math.floor(row / queryHeads);
      const from = this.visibleFrom(here, layer);
      let weights = sinkLogits === undefined ? 0 : Math.exp(sinkLogits[head]);
      const sums = new Float64Array(headDim);
      for (const { start, tokens, rows, keyScales } of tiles) {
        const { keys, values } = rows[kvHead];
        const query = rotated.subarray(at, at + headDim).map((x, channel) => {
          return keyScales ? this.fold(x, keyScales[kvHead][channel]) : x;
        });
        for (let token = Math.max(0, from - start); token < Math.min(tokens, here + 1 - start); token++) {
          let score = 0;
          query.forEach((x, channel) => (score += x * keys[token * headDim + channel]));
          const weight = Math.exp(this.cap(score * softmaxScale, softCap));
          weights += weight;
          sums.forEach((sum, channel) => {
            sums[channel] = this.sum(sum + weight * values[token * headDim + channel]);
          });
        }
      }
      out.set(
        sums.map((sum) => sum / weights),
        at,
      );
    }
    return this.rotate(out, headDim);
  }
}

/** A token of one layer: rotated and rounded, `[kvHeads, headDim]` each. */
export interface ToyToken {
  readonly k: Float32Array;
  readonly v: Float32Array;
}

/** Tokens and records of one layer. */
export class ToyLayer {
  /** By position; undefined once encoded. */
  tokens: (ToyToken | undefined)[] = [];
  /** By tile: the records of all heads. */
  records = new Map<number, Uint8Array>();

  constructor(readonly config: LayerConfig) {}
}

/** A cache. */
export class ToyCache implements CacheUnderTest {
  readonly toy: Toy;
  readonly config: CacheCall;
  readonly group: number;
  layers: ToyLayer[];

  constructor(toy: Toy, config: CacheCall) {
    this.toy = toy;
    this.config = config;
    this.group = parsePreset(config.preset).group;
    this.layers = config.layers.map((layer) => new ToyLayer(layer));
  }

  append(layer: number, k: Float32Array, v: Float32Array): void {
    const state = this.layers[layer];
    const added = exactTokens(this.toy, { k, v }, state.config);
    this.encodeDue(state);
    state.tokens.push(...added);
  }

  length(layer: number): number {
    return this.layers[layer].tokens.length;
  }

  flush(): void {
    for (const layer of this.layers) this.encodeDue(layer);
  }

  encodeDue(layer: ToyLayer): void {
    const { group } = this;
    const due = Math.floor((layer.tokens.length - this.config.exactWindow) / group);
    for (let tile = 1; tile < due; tile++) {
      if (!layer.records.has(tile)) this.encodeTile(layer, tile);
    }
  }

  encodeTile(layer: ToyLayer, tile: number): void {
    const { group } = this;
    const { kvHeads } = layer.config;
    const tokens = layer.tokens.slice(tile * group, (tile + 1) * group) as ToyToken[];
    const layout = this.layout(layer);
    const records = new Uint8Array(kvHeads * layout.bytes);
    for (let head = 0; head < kvHeads; head++) {
      const record = this.toy.encodeTile(
        headRows(tokens, head, layer.config),
        layout,
        this.config.iterations,
      );
      records.set(record, head * layout.bytes);
    }
    layer.records.set(tile, records);
    layer.tokens.fill(undefined, tile * group, (tile + 1) * group);
  }

  truncate(length: number): void {
    for (const layer of this.layers) {
      const whole = Math.floor(length / this.group);
      if (length > layer.tokens.length) throw new Error(`shorter than ${length}`);
      if (length % this.group !== 0 && layer.records.has(whole)) throw new Error(`${length} is in a record`);
    }
    for (const layer of this.layers) {
      layer.tokens.length = length;
      for (const tile of layer.records.keys()) {
        if (tile * this.group >= length) layer.records.delete(tile);
      }
    }
  }

  attend(layer: number, q: Float32Array): Float32Array {
    const { config, tokens } = this.layers[layer];
    const queries = q.length / (config.queryHeads * config.headDim);
    const task = { layer: config, position: tokens.length - queries, q };
    return this.toy.attention({ ...task, tiles: this.seen(this.layers[layer]) });
  }

  /** All tiles, the last as long as it is. */
  seen(layer: ToyLayer): SeenTile[] {
    const { group } = this;
    const count = Math.ceil(layer.tokens.length / group);
    return Array.from({ length: count }, (_, tile) => {
      const records = layer.records.get(tile);
      if (records) return recordTile(this.toy, records, tile * group, this.layout(layer), layer.config);
      const tokens = layer.tokens.slice(tile * group, (tile + 1) * group) as ToyToken[];
      return exactTile(tokens, tile * group, layer.config);
    });
  }

  exportRecords(layer: number): Uint8Array {
    const records = [...this.layers[layer].records].sort(([a], [b]) => a - b);
    return concat(records.map(([, bytes]) => bytes));
  }

  fork(): ToyCache {
    const fork = new (this.constructor as typeof ToyCache)(this.toy, this.config);
    this.layers.forEach((layer, i) => {
      fork.layers[i].tokens = [...layer.tokens];
      fork.layers[i].records = new Map(layer.records);
    });
    return fork;
  }

  /** What a saved cache of it takes, and a key to find it again by. */
  serialize(): Uint8Array {
    const bytes = new Uint8Array(8 + this.storedBytes());
    new DataView(bytes.buffer).setFloat64(0, saved.length);
    saved.push(this.fork());
    return bytes;
  }

  storedBytes(): number {
    return this.layers.reduce((sum, { tokens, records, config }) => {
      const exact =
        tokens.filter((token) => token !== undefined).length * 4 * config.kvHeads * config.headDim;
      return sum + exact + concat([...records.values()]).length;
    }, 0);
  }

  layout(layer: ToyLayer): RecordLayout {
    return recordLayout(parsePreset(this.config.preset), layer.config.headDim);
  }
}

/** What has been saved; bytes on a disk in a real implementation. */
const saved: ToyCache[] = [];

/**
 * The toy for the suite.
 * @param toy the codec and the kernels
 * @param Cache the cache
 */
export function toyAdapter(toy: Toy = new Toy(), Cache: typeof ToyCache = ToyCache): ConformanceAdapter {
  return {
    f32Attention: true,
    rotate: (x, { headDim }) => toy.rotate(x, headDim),
    normalize: (tile, { rows, columns, iterations }) => toy.normalize(tile, rows, columns, iterations),
    pack: (tile, { rows, columns, bits }) => {
      const { codes, scale, zero } = toy.quantize(tile, rows, columns, bits);
      return { codes: packCodes(codes, bits), scale, zero };
    },
    encode(k, v, { preset, iterations, ...heads }) {
      const layer = { ...heads, queryHeads: heads.kvHeads };
      const cache = new Cache(toy, { preset, iterations, exactWindow: 0, layers: [layer] });
      const { group } = recordLayout(parsePreset(preset), heads.headDim);
      const exact = exactTokens(toy, { k, v }, layer);
      const tiles = exact.length / group;
      // A sink before them is never encoded.
      cache.layers[0].tokens = [...exact.slice(0, group), ...exact];
      for (let tile = 1; tile <= tiles; tile++) cache.encodeTile(cache.layers[0], tile);
      return cache.exportRecords(0);
    },
    decode: (records, { preset, kvHeads, headDim }) => decode(toy, records, preset, kvHeads, headDim),
    attend: (call) => attend(toy, call),
    createCache: (config) => new Cache(toy, config),
    restoreCache: (bytes) => saved[new DataView(bytes.buffer).getFloat64(0)],
  };
}

function attend(toy: Toy, { preset, sink, records, tail, q, ...layer }: AttendCall): Float32Array {
  const layout = recordLayout(parsePreset(preset), layer.headDim);
  const perTile = layer.kvHeads * layout.bytes;
  const tiles: SeenTile[] = [];
  let position = 0;
  const add = (tile: SeenTile) => {
    if (tile.tokens > 0) tiles.push(tile);
    position += tile.tokens;
  };
  add(exactTile(exactTokens(toy, sink, layer), position, layer));
  for (let at = 0; at < records.length; at += perTile) {
    add(recordTile(toy, records.subarray(at, at + perTile), position, layout, layer));
  }
  add(exactTile(exactTokens(toy, tail, layer), position, layer));
  const queries = q.length / (layer.queryHeads * layer.headDim);
  return toy.attention({ layer, position: position - queries, q, tiles });
}

function decode(
  toy: Toy,
  records: Uint8Array,
  preset: string,
  kvHeads: number,
  headDim: number,
): TokenArrays {
  const layout = recordLayout(parsePreset(preset), headDim);
  const length = (records.length / layout.bytes) * layout.group * headDim;
  const [k, v] = [new Float32Array(length), new Float32Array(length)];
  for (let i = 0; i < records.length / layout.bytes; i++) {
    const rows = toy.decodeTile(records.subarray(i * layout.bytes, (i + 1) * layout.bytes), layout);
    for (const [from, to] of [
      [rows.keys, k],
      [rows.values, v],
    ] as const) {
      if (!from.every(Number.isFinite)) throw new Error("a scale is not finite");
      const back = toy.rotate(Float32Array.from(from), headDim);
      for (let token = 0; token < layout.group; token++) {
        const row = (Math.floor(i / kvHeads) * layout.group + token) * kvHeads + (i % kvHeads);
        to.set(back.subarray(token * headDim, (token + 1) * headDim), row * headDim);
      }
    }
  }
  return { k, v };
}

/** Rotates and rounds tokens. Throws where they are not finite then. */
function exactTokens(toy: Toy, { k, v }: TokenArrays, { kvHeads, headDim }: LayerConfig): ToyToken[] {
  const [keys, values] = [k, v].map((x) => {
    const rounded = toy.rotate(x, headDim).map((value) => fromHalf(toHalf(value)));
    if (!rounded.every(Number.isFinite)) throw new Error("a token is not finite");
    return rounded;
  });
  const width = kvHeads * headDim;
  return Array.from({ length: k.length / width }, (_, token) => ({
    k: keys.slice(token * width, (token + 1) * width),
    v: values.slice(token * width, (token + 1) * width),
  }));
}

function headRows(tokens: readonly ToyToken[], head: number, { headDim }: LayerConfig): Rows {
  const keys = new Float32Array(tokens.length * headDim);
  const values = new Float32Array(tokens.length * headDim);
  tokens.forEach(({ k, v }, i) => {
    keys.set(k.subarray(head * headDim, (head + 1) * headDim), i * headDim);
    values.set(v.subarray(head * headDim, (head + 1) * headDim), i * headDim);
  });
  return { keys, values };
}

function exactTile(tokens: readonly ToyToken[], start: number, layer: LayerConfig): SeenTile {
  const rows = Array.from({ length: layer.kvHeads }, (_, head) => headRows(tokens, head, layer));
  return { start, tokens: tokens.length, rows };
}

function recordTile(
  toy: Toy,
  records: Uint8Array,
  start: number,
  layout: RecordLayout,
  { kvHeads, headDim }: LayerConfig,
): SeenTile {
  const each = Array.from({ length: kvHeads }, (_, head) =>
    records.subarray(head * layout.bytes, (head + 1) * layout.bytes),
  );
  const keyScales = each.map((record) =>
    Float64Array.from({ length: headDim }, (_, i) => {
      const at = layout.kScale + 2 * i;
      return fromHalf(record[at] + 256 * record[at + 1]);
    }),
  );
  return {
    start,
    tokens: layout.group,
    rows: each.map((record) => toy.decodeTile(record, layout)),
    keyScales,
  };
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
