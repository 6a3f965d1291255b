/** Any sequence of calls on some caches and their forks against a model that knows no sharing. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type CacheConfig, type Kvarn, type KvarnCache, parsePreset, recordLayout } from "../../src/index.js";
import {
  appendChunks,
  expectError,
  expectSame,
  makeQueries,
  makeTokens,
  type Tokens,
  tokensOf,
  watchedEngines,
} from "../support/cache.js";

const GROUP = 64;
const LAYERS = [
  { queryHeads: 2, kvHeads: 1, headDim: 16 },
  { queryHeads: 2, kvHeads: 2, headDim: 16, slidingWindow: 90 },
];
const BASE: CacheConfig = { preset: "k4v2_g64", layers: LAYERS, iterations: 0 };

/** What a layer should hold: its tokens, how many tiles are done, how many of them the window let go. */
interface ModelLayer {
  readonly shape: (typeof LAYERS)[number];
  tokens: Tokens;
  firstTail: number;
  firstKept: number;
}

/** One cache as it should be. */
class Model {
  constructor(
    readonly exactWindow: number,
    readonly layers: ModelLayer[],
  ) {}

  static empty(exactWindow: number): Model {
    return new Model(
      exactWindow,
      LAYERS.map((shape) => ({ shape, tokens: makeTokens(shape, 0), firstTail: 1, firstKept: 1 })),
    );
  }

  get bytes(): number {
    const bytes = this.layers.map(({ shape, tokens, firstTail, firstKept }) => {
      const exact = Math.min(tokens.count, GROUP) + Math.max(0, tokens.count - firstTail * GROUP);
      const recordBytes = recordLayout(parsePreset(BASE.preset), shape.headDim).bytes;
      return shape.kvHeads * (exact * shape.headDim * 4 + (firstTail - firstKept) * recordBytes);
    });
    return bytes.reduce((sum, each) => sum + each);
  }

  copy(): Model {
    return new Model(
      this.exactWindow,
      this.layers.map((layer) => ({ ...layer })),
    );
  }

  encode(layer: ModelLayer): void {
    const exact = layer.tokens.count - this.exactWindow;
    layer.firstTail = Math.max(layer.firstTail, Math.floor(exact / GROUP));
    const passed = Math.floor((exact - (layer.shape.slidingWindow ?? Infinity)) / GROUP);
    layer.firstKept = Math.max(layer.firstKept, Math.min(layer.firstTail, passed));
  }

  append(index: number, added: Tokens): void {
    const layer = this.layers[index];
    this.encode(layer);
    const { k, v } = layer.tokens;
    const width = layer.shape.kvHeads * layer.shape.headDim;
    const joined = (a: Float32Array, b: Float32Array) => Float32Array.from([...a, ...b]);
    layer.tokens = tokensOf(joined(k, added.k), joined(v, added.v), width);
  }

  canTruncate(length: number): boolean {
    return this.layers.every(({ shape, tokens, firstTail, firstKept }) => {
      if (length > tokens.count) return false;
      if (length <= GROUP) return true;
      const held = firstKept === 1 || length - (shape.slidingWindow ?? 0) + 1 >= firstKept * GROUP;
      return (length >= firstTail * GROUP || length % GROUP === 0) && held;
    });
  }

  truncate(length: number): void {
    for (const layer of this.layers) {
      layer.tokens = layer.tokens.of(length);
      layer.firstTail = Math.max(1, Math.min(layer.firstTail, Math.ceil(length / GROUP)));
      layer.firstKept = Math.min(layer.firstKept, layer.firstTail);
    }
  }
}

/** A cache that got there the straight way: what is encoded in one append and a flush, then the rest. */
async function replay(kvarn: Kvarn, model: Model): Promise<KvarnCache> {
  const cache = kvarn.createCache(BASE);
  const encoded = model.layers.map(({ firstTail }) => (firstTail > 1 ? firstTail * GROUP : 0));
  for (const [layer, { tokens }] of model.layers.entries()) {
    if (encoded[layer] > 0) await appendChunks(cache, tokens, [encoded[layer]], { layer });
  }
  await cache.flush();
  for (const [layer, { tokens }] of model.layers.entries()) {
    const rest = tokens.count - encoded[layer];
    if (rest > 0) await appendChunks(cache, tokens, [rest], { layer, from: encoded[layer] });
  }
  return cache;
}

/** The caches of one run with their models. */
interface Run {
  readonly kvarn: Kvarn;
  readonly caches: { cache: KvarnCache; model: Model }[];
  /** Makes every append's tokens others. */
  seed: number;
}

/** A call on one of the caches there are, picked by `which`. */
class Call implements fc.AsyncCommand<object, Run> {
  constructor(
    readonly name: string,
    readonly which: number,
    readonly act: (run: Run, cache: KvarnCache, model: Model, index: number) => unknown,
  ) {}

  check(): boolean {
    return true;
  }

  async run(_: object, run: Run): Promise<void> {
    const index = this.which % run.caches.length;
    const { cache, model } = run.caches[index];
    await this.act(run, cache, model, index);
    for (const { cache, model } of run.caches) {
      model.layers.forEach(({ tokens, firstTail, firstKept }, layer) => {
        expect(cache.length(layer)).toBe(tokens.count);
        expect(cache.recordRange(layer)).toEqual({ start: firstKept * GROUP, end: firstTail * GROUP });
      });
      expect(cache.memory().totalBytes).toBe(model.bytes);
    }
  }

  toString(): string {
    return `${this.name} on cache ${this.which}`;
  }
}

async function truncate(cache: KvarnCache, model: Model, length: number): Promise<void> {
  if (model.canTruncate(length)) {
    model.truncate(length);
    cache.truncate(length);
  } else {
    await expectError(() => cache.truncate(length), "unsupported-length");
  }
}

const anyCache = fc.nat(3);
const anyLayer = fc.nat(LAYERS.length - 1);
const anySize = fc.oneof(
  { weight: 3, arbitrary: fc.integer({ min: 1, max: 20 }) },
  { weight: 2, arbitrary: fc.integer({ min: 21, max: 150 }) },
  { weight: 1, arbitrary: fc.constantFrom(63, 64, 65, 128) },
);

const calls = [
  fc.tuple(anyCache, anyLayer, anySize).map(
    ([which, layer, size]) =>
      new Call(`append ${size} tokens to layer ${layer}`, which, (run, cache, model) => {
        const added = makeTokens(LAYERS[layer], size, ++run.seed);
        model.append(layer, added);
        return cache.append(layer, added.k, added.v);
      }),
  ),
  // What engines do: all layers in turn.
  fc.tuple(anyCache, anySize).map(
    ([which, size]) =>
      new Call(`append ${size} tokens`, which, async (run, cache, model) => {
        for (const [layer, shape] of LAYERS.entries()) {
          const added = makeTokens(shape, size, ++run.seed);
          model.append(layer, added);
          await cache.append(layer, added.k, added.v);
        }
      }),
  ),
  fc.tuple(anyCache, fc.double({ min: 0, max: 1, noNaN: true }), fc.boolean()).map(
    ([which, part, atTile]) =>
      new Call(`truncate to ${part} of it${atTile ? ", at a tile" : ""}`, which, (_, cache, model) => {
        const least = Math.min(...model.layers.map(({ tokens }) => tokens.count));
        const length = Math.floor((part * least) / (atTile ? GROUP : 1)) * (atTile ? GROUP : 1);
        return truncate(cache, model, length);
      }),
  ),
  anyCache.map(
    (which) =>
      new Call("truncate by 3", which, (_, cache, model) => {
        const length = Math.min(...model.layers.map(({ tokens }) => tokens.count)) - 3;
        return truncate(cache, model, Math.max(0, length));
      }),
  ),
  anyCache.map(
    (which) =>
      new Call("fork", which, ({ caches }, cache, model) => {
        if (caches.length < 5) caches.push({ cache: cache.fork(), model: model.copy() });
      }),
  ),
  anyCache.map(
    (which) =>
      new Call("flush", which, async (_, cache, model) => {
        model.layers.forEach((layer) => model.encode(layer));
        await cache.flush();
      }),
  ),
  anyCache.map(
    (which) =>
      new Call("dispose", which, ({ caches }, cache, _, index) => {
        if (caches.length > 1) caches.splice(index, 1)[0].cache.dispose();
      }),
  ),
  anyCache.map(
    (which) =>
      new Call("save and restore", which, async ({ kvarn, caches }, cache, model, index) => {
        caches[index] = { cache: await kvarn.restoreCache(await cache.serialize()), model };
        cache.dispose();
      }),
  ),
];

describe.each(watchedEngines)("caches and forks, %s", (name, open) => {
  it("hold what their own calls put there", async () => {
    const property = fc.asyncProperty(
      fc.commands(calls, { maxCommands: 25, size: "max" }),
      fc.constantFrom(0, 5, 70),
      fc.constantFrom(0, 200),
      async (commands, exactWindow, capacity) => {
        const engine = await open();
        const { kvarn } = engine;
        const first = kvarn.createCache({ ...BASE, exactWindow, capacity });
        const run: Run = {
          kvarn,
          caches: [{ cache: first, model: Model.empty(exactWindow) }],
          seed: 0,
        };
        try {
          await fc.asyncModelRun(() => ({ model: {}, real: run }), commands);
          for (const { cache, model } of run.caches) await expectReplayed(kvarn, cache, model);
          for (const { cache } of run.caches) cache.dispose();
          // Nothing is left behind, and nothing was given back twice. WebAssembly's memory does not shrink.
          if (name === "reference") expect(engine.heldBytes()).toBe(0);
        } finally {
          kvarn.dispose();
        }
      },
    );
    // Each opens an engine of its own, for which a GPU of software has to compile everything again.
    await fc.assert(property, { numRuns: name === "webgpu" ? 12 : 120, seed: 20 });
  });
});

async function expectReplayed(kvarn: Kvarn, cache: KvarnCache, model: Model): Promise<void> {
  const straight = await replay(kvarn, model);
  for (const [layer, { shape, tokens }] of model.layers.entries()) {
    // The straight way may not have let go as many.
    const records = await cache.exportRecords(layer);
    const all = await straight.exportRecords(layer);
    expectSame(records, all.subarray(all.length - records.length));
    if (tokens.count === 0) continue;
    const q = makeQueries(shape, 1, 9);
    expectSame(await cache.attend(layer, q), await straight.attend(layer, q));
  }
  straight.dispose();
}
