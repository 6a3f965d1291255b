/** Leads a cache through a life that the data describes. */
import type { CacheUnderTest, ConformanceAdapter, TokenArrays } from "./adapter.js";
import { exactTokens } from "./checks/attend.js";
import { expectFunction, expectRefused, expectThat, messageOf, NotCovered } from "./checks/check.js";
import type { CacheCase, Step } from "./data.js";
import { drawArray } from "./input.js";

/** What queries of caches are multiplied by, so that they attend to many tokens. */
const QUERY_SCALE = 0.125;

/** Methods that a step needs and a cache may lack. */
const NEEDS: Partial<Record<Step["do"], keyof CacheUnderTest>> = {
  records: "exportRecords",
  flush: "flush",
  truncate: "truncate",
  "refuse-truncate": "truncate",
  fork: "fork",
  save: "serialize",
};

/** Where the results of a life go: to be compared, or to be kept. */
export interface Observer {
  attended(step: Extract<Step, { do: "attend" }>, out: Float32Array): void;
  exported(step: Extract<Step, { do: "records" }>, records: Uint8Array): void;
  counted(step: Extract<Step, { do: "length" }>, length: number): void;
  saved(step: Extract<Step, { do: "save" }>, bytes: Uint8Array): void;
}

/**
 * Runs the steps in order.
 * @throws {NotCovered} where adapter or cache lack a function; otherwise with the number of the step that failed
 */
export async function runScript(
  adapter: ConformanceAdapter,
  script: CacheCase,
  observer: Observer,
): Promise<void> {
  expectFunction(adapter, "createCache");
  if (script.steps.some((step) => step.do === "save")) expectFunction(adapter, "restoreCache");
  const caches = new Map([["main", await adapter.createCache(script.config)]]);
  try {
    const needed = new Set(script.steps.flatMap((step) => NEEDS[step.do] ?? []));
    const lacking = [...needed].filter((method) => typeof caches.get("main")![method] !== "function");
    if (lacking.length > 0) throw new NotCovered(`lacking: the cache's ${lacking.join(", ")}`);
    for (const [i, step] of script.steps.entries()) {
      try {
        await runStep(adapter, script, caches, step, observer);
      } catch (error) {
        throw new Error(`step ${i} (${step.do}): ${messageOf(error)}`, { cause: error });
      }
    }
  } finally {
    for (const cache of caches.values()) await cache.dispose?.();
  }
}

async function runStep(
  adapter: ConformanceAdapter,
  { config, tokens }: CacheCase,
  caches: Map<string, CacheUnderTest>,
  step: Step,
  observer: Observer,
): Promise<void> {
  const cache = caches.get(step.cache)!;
  const slice = (layer: number, name: string, from: number, count: number): TokenArrays => {
    const width = config.layers[layer].kvHeads * config.layers[layer].headDim;
    const all = exactTokens(tokens[name], width);
    const [start, end] = [from * width, (from + count) * width];
    return { k: all.k.slice(start, end), v: all.v.slice(start, end) };
  };
  switch (step.do) {
    case "append": {
      for (let done = 0; done < step.count; done += step.chunk) {
        const count = Math.min(step.chunk, step.count - done);
        const { k, v } = slice(step.layer, step.tokens, step.from + done, count);
        await cache.append(step.layer, k, v);
        // The cache has its own copy.
        k.fill(NaN);
        v.fill(NaN);
      }
      return;
    }
    case "refuse-append": {
      const { k, v } = slice(step.layer, step.tokens, step.from, step.count);
      v[v.length - 1] = NaN;
      return expectRefused("a NaN", () => cache.append(step.layer, k, v));
    }
    case "attend": {
      const { queryHeads, headDim } = config.layers[step.layer];
      const q = drawArray(step.count * queryHeads * headDim, step.seed, QUERY_SCALE);
      return observer.attended(step, await cache.attend(step.layer, q));
    }
    case "records":
      return observer.exported(step, await cache.exportRecords!(step.layer));
    case "length":
      return observer.counted(step, await cache.length(step.layer));
    case "flush":
      await cache.flush!();
      return;
    case "truncate":
      await cache.truncate!(step.length);
      return;
    case "refuse-truncate":
      return expectRefused(`a cut to ${step.length}`, () => cache.truncate!(step.length));
    case "fork":
      caches.set(step.as, await cache.fork!());
      return;
    case "save": {
      const bytes = await cache.serialize!();
      expectThat(bytes instanceof Uint8Array, "serialize returned no Uint8Array");
      observer.saved(step, bytes);
      caches.set(step.as, await adapter.restoreCache!(bytes));
      return;
    }
    case "dispose":
      caches.delete(step.cache);
      await cache.dispose?.();
  }
}
