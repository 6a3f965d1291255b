/** The WASM engine on several threads: the bytes of one, the same attention, and an end to everything. */
import { Worker } from "node:worker_threads";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { adapterOf, runConformance } from "../../src/conformance/index.js";
import { type CacheConfig, type Kvarn, KvarnError, openKvarn, type OpenOptions } from "../../src/index.js";
import { openThreads } from "../../src/wasm/threads.js";
import {
  expectAgrees,
  expectError,
  expectRefused,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
  readStored,
} from "../support/cache.js";
import { hasHardwareGpu } from "../support/engines.js";
import { relativeError } from "../../src/conformance/compare.js";

const open = (threads: number, variant = "strict"): Promise<Kvarn> =>
  openKvarn({ backend: "wasm", variant, threads });

const wait = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits so that no message arrives. */
const block = (ms: number): void => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
});

/** Opens an engine whose threads the test can reach. */
async function openWatched(threads: number): Promise<{ kvarn: Kvarn; workers: Worker[] }> {
  const unref = vi.spyOn(Worker.prototype, "unref");
  const kvarn = await open(threads);
  const workers = [...unref.mock.contexts] as Worker[];
  unref.mockRestore();
  expect(workers).toHaveLength(threads - 1);
  return { kvarn, workers };
}

/** Whether a thread ends within a second. */
const ends = (worker: Worker): Promise<boolean> =>
  Promise.race([
    new Promise<boolean>((resolve) => worker.once("exit", () => resolve(true))),
    wait(1000).then(() => false),
  ]);

const SHAPES = [
  { preset: "k4v2_g128", queryHeads: 32, kvHeads: 8, headDim: 64 },
  { preset: "k4v2_g128", queryHeads: 8, kvHeads: 1, headDim: 128 },
  { preset: "k3v5_g64", queryHeads: 9, kvHeads: 3, headDim: 80 },
  { preset: "k8v8_g64", queryHeads: 34, kvHeads: 17, headDim: 32 },
] as const;

describe.each([2, 3])("%i threads", (threads) => {
  let kvarn: Kvarn;
  let single: Kvarn;
  beforeAll(async () => {
    [kvarn, single] = await Promise.all([open(threads), open(1)]);
  });
  afterAll(() => [kvarn, single].forEach((engine) => engine.dispose()));

  it("say so", () => {
    const reason = `asked for by name; ${threads} threads`;
    expect(kvarn.backend).toEqual({ kind: "wasm", variant: "strict", reason });
  });

  it.each(SHAPES)("encode to the bytes of one: %o", async (shape) => {
    const { k, v } = makeTokens(shape, 1280, shape.headDim);
    const options = { ...shape, iterations: 3 };
    const records = await single.encode(k, v, options);
    expectSame(await kvarn.encode(k, v, options), records);
    const half = new Uint16Array(k.length).map((_, i) => 0x3000 + (i % 2000));
    expectSame(await kvarn.encode(half, v, options), await single.encode(half, v, options));
    const refined = { ...options, encoder: "refined" as const, queries: v, queryHeads: shape.kvHeads };
    expectSame(await kvarn.encode(k, v, refined), await single.encode(k, v, refined));
  });

  it.each(SHAPES)("keep the cache of one, and attend as it does: %o", async (shape) => {
    const tokens = makeTokens(shape, 1400, 7);
    const config: CacheConfig = { ...shape, layers: 1, iterations: 1 };
    const [ours, theirs] = await Promise.all(
      [kvarn, single].map((engine) => filledCache(engine, config, tokens, [1, 600, 130, 660, 1, 8])),
    );
    for (const queries of [1, 7, 60]) {
      const q = makeQueries(shape, queries);
      const [out, expected] = [await ours.attend(0, q), await theirs.attend(0, q)];
      expect(relativeError(out, expected)).toBeLessThan(1e-5);
      for (let i = 0; i < 5; i++) expectSame(await ours.attend(0, q), out);
    }
    await Promise.all([ours.flush(), theirs.flush()]);
    expectSame(await ours.serialize(), await theirs.serialize());
    ours.dispose();
    theirs.dispose();
  });

  const options: [string, Partial<CacheConfig>][] = [
    ["all tokens", {}],
    ["a window", { slidingWindow: 333 }],
    ["a soft cap", { softCap: 2 }],
    ["sink logits", { sinkLogits: [0.5, -1, 3, 0] }],
    ["all at once", { slidingWindow: 200, softCap: 3, sinkLogits: [80, -80, 1, 0], softmaxScale: 0.3 }],
  ];
  it.each(options)("agree with a textbook on %s, with one KV head and with several", async (_, option) => {
    for (const kvHeads of [1, 2, 4]) {
      const config: CacheConfig = {
        ...{ preset: "k4v2_g64", layers: 1, iterations: 1, queryHeads: 4, kvHeads, headDim: 64 },
        ...option,
      };
      const tokens = makeTokens(config as { kvHeads: number; headDim: number }, 500, 5);
      const cache = await filledCache(kvarn, config, tokens, [450, 40, 10]);
      const stored = await readStored(cache);
      for (const queries of [1, 3, 10]) {
        await expectAgrees(kvarn, cache, stored, makeQueries(stored.config, queries));
      }
      cache.dispose();
    }
  });

  it("attend to what a fork shares and to what it has of its own", async () => {
    const [shape] = SHAPES;
    const tokens = makeTokens(shape, 900, 3);
    const cache = await filledCache(kvarn, { ...shape, layers: 1, iterations: 1 }, tokens.of(700));
    const q = makeQueries(shape, 2);
    const before = await cache.attend(0, q);
    const fork = cache.fork();
    await fork.append(0, ...tokens.slice(700, 900));
    await fork.flush();
    await expectAgrees(kvarn, fork, await readStored(fork), q);
    expectSame(await cache.attend(0, q), before);
    fork.truncate(700 - (700 % 128));
    fork.dispose();
    cache.dispose();
  });

  it("do more tasks than fit at once", async () => {
    // 2 x 17 x 40 of them.
    const shape = { preset: "k2v2_g64", layers: 1, iterations: 0, queryHeads: 17, kvHeads: 17, headDim: 16 };
    const tokens = makeTokens(shape, 41 * 64, 1);
    const [ours, theirs] = await Promise.all([kvarn, single].map((one) => filledCache(one, shape, tokens)));
    await Promise.all([ours.flush(), theirs.flush()]);
    expect(ours.recordRange(0)).toEqual({ start: 64, end: 41 * 64 });
    expectSame(await ours.exportRecords(0), await theirs.exportRecords(0));

    // 160 a tile, of which several are put down at once.
    const many = { preset: "k2v2_g64", kvHeads: 160, headDim: 16 };
    const { k, v } = makeTokens(many, 12 * 64, 2);
    expectSame(await kvarn.encode(k, v, many), await single.encode(k, v, many));
  });

  it("say of bad tokens to encode what one says", async () => {
    const shape = { preset: "k4v2_g64", kvHeads: 3, headDim: 64 };
    for (const name of ["k", "v"] as const) {
      const tokens = makeTokens(shape, 10 * 64, 5);
      tokens[name][9 * 64 * 192 + 777] = name === "k" ? Infinity : 1e6;
      const [ours, theirs] = await Promise.all(
        [kvarn, single].map((engine) =>
          engine.encode(tokens.k, tokens.v, shape).catch((error: unknown) => error as KvarnError),
        ),
      );
      expect(ours).toMatchObject({ code: "non-finite", message: (theirs as KvarnError).message });
    }
  });

  it("say of bad tokens what one says, and change nothing", async () => {
    const shape = { layers: 1, queryHeads: 8, kvHeads: 8, headDim: 128 };
    const tokens = makeTokens(shape, 1000, 4);
    for (const [name, at] of [
      ["k", 999 * 1024 + 1023],
      ["v", 0],
      ["v", 640 * 1024 + 5],
    ] as const) {
      const [k, v] = tokens.slice(0, 1000);
      const bad = { k, v };
      bad[name][at] = name === "k" ? NaN : 1e6;
      const [ours, theirs] = await Promise.all(
        [kvarn, single].map((engine) => filledCache(engine, shape, tokens.of(300))),
      );
      const refuse = (cache: typeof ours) =>
        expectRefused(cache, () => cache.append(0, bad.k, bad.v), "non-finite");
      expect((await refuse(ours)).message).toBe((await refuse(theirs)).message);
      await ours.append(0, ...tokens.slice(300, 400));
      await theirs.append(0, ...tokens.slice(300, 400));
      expectSame(await ours.serialize(), await theirs.serialize());
    }
  });
});

it("attention on one, two and four threads is the same to the bit where heads divide evenly", async () => {
  const [shape] = SHAPES;
  const tokens = makeTokens(shape, 900, 3);
  const outs = [];
  for (const threads of [1, 2, 4]) {
    const kvarn = await open(threads);
    const cache = await filledCache(kvarn, { ...shape, layers: 1, iterations: 1 }, tokens, [800, 100]);
    outs.push(await cache.attend(0, makeQueries(shape, 3)));
    kvarn.dispose();
  }
  expectSame(outs[1], outs[0]);
  expectSame(outs[2], outs[0]);
});

it("the conformance suite is passed on two threads", async () => {
  const kvarn = await open(2);
  const { checks, passed } = await runConformance(adapterOf(kvarn));
  expect(checks.filter(({ status }) => status !== "passed")).toEqual([]);
  expect(passed).toBe(true);
  kvarn.dispose();
});

it("strict-f32 attends in f32 on threads too", async () => {
  const kvarn = await open(2, "strict-f32");
  const shape = { ...SHAPES[1], layers: 1, iterations: 1 };
  const cache = await filledCache(kvarn, shape, makeTokens(shape, 500, 2), [499, 1]);
  await expectAgrees(kvarn, cache, await readStored(cache), makeQueries(shape, 1));
  kvarn.dispose();
});

describe("threads end", () => {
  const shape = { preset: "k4v2_g64", layers: 1, queryHeads: 4, kvHeads: 2, headDim: 64 };

  it("with dispose", async () => {
    const { kvarn, workers } = await openWatched(4);
    const cache = await filledCache(kvarn, shape, makeTokens(shape, 300, 1));
    const ended = Promise.all(workers.map(ends));
    kvarn.dispose();
    kvarn.dispose();
    expect(await ended).toEqual([true, true, true]);
    await expectError(() => cache.attend(0, makeQueries(shape, 1)), "disposed");
  });

  it("by themselves: later calls say so, and caches can be saved and moved", async () => {
    const { kvarn, workers } = await openWatched(3);
    const tokens = makeTokens(shape, 400, 1);
    const cache = await filledCache(kvarn, shape, tokens.of(300));
    const q = makeQueries(shape, 1);
    const before = await cache.attend(0, q);
    const saved = await cache.serialize();
    const ended = ends(workers[0]);
    await workers[1].terminate();
    // One takes the others along.
    expect(await ended).toBe(true);
    const message =
      /^a thread has ended: it has ended; this engine computes no more, but its caches can be saved and moved to another$/;
    for (const call of [
      () => cache.attend(0, q),
      () => cache.append(0, ...tokens.slice(300, 400)),
      () => cache.flush(),
      () => kvarn.encode(...tokens.slice(0, 64), shape),
    ]) {
      await expectError(call, "thread-lost", message);
    }
    expect(cache.length(0)).toBe(300);
    expectSame(await cache.serialize(), saved);
    const other = await open(2);
    const moved = await kvarn.migrate(cache, other);
    expect(relativeError(await moved.attend(0, q), before)).toBeLessThan(1e-5);
    kvarn.dispose();
    other.dispose();
  });

  it("in the middle of a call, which then has changed nothing", async () => {
    const { kvarn } = await openWatched(2);
    const tokens = makeTokens(shape, 700, 1);
    const cache = await filledCache(kvarn, shape, tokens.of(600));
    for (const call of [() => cache.flush(), () => cache.append(0, ...tokens.slice(600, 700))]) {
      vi.spyOn(Atomics, "notify").mockImplementationOnce(() => {
        throw new KvarnError("thread-lost", "in a test");
      });
      await expectRefused(cache, call, "thread-lost", /^in a test$/);
    }
    kvarn.dispose();
  });

  it("when a kernel fails on one of them, or on the caller's", async () => {
    for (const where of ["thread", "caller"]) {
      const { tasks } = await openThreads("strict", 2);
      const never = (): never => expect.unreachable();
      if (where === "thread") tasks.begin(1e9);
      tasks.writeTokens(never, tasks.stage(), false, 1, 1, 64, 0xfff00000, 0);
      if (where === "thread") block(100);
      const message = where === "thread" ? /^a thread has failed; / : /^a kernel has failed; /;
      const error = await expectError(() => tasks.finish(), "thread-lost", message);
      expect(error.cause instanceof WebAssembly.RuntimeError).toBe(where === "caller");
      await expectError(() => tasks.checkAlive(), "thread-lost", message);
      await expectError(() => tasks.finish(), "thread-lost", message);
    }
  });

  it("when one of them does not answer", async () => {
    const { tasks } = await openThreads("strict", 2);
    const never = (): never => expect.unreachable();
    tasks.begin(1e9);
    // Tokens without channels, for minutes.
    tasks.writeTokens(never, tasks.stage(), false, 0x7fffffff, 64, 0, 0, 0);
    block(100);
    const nap = vi.spyOn(Atomics, "wait").mockReturnValue("timed-out");
    let now = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (now += 60));
    await expectError(() => tasks.finish(), "thread-lost", /^a thread does not answer; /);
    expect(nap.mock.calls.length).toBeGreaterThan(400);
  });
});

describe("openKvarn with threads", () => {
  it.each([0, 65, 1.5, -1, NaN, "2", null, {}])("refuses %j", async (threads) => {
    const openIt = () => openKvarn({ backend: "wasm", threads: threads as number });
    await expectError(openIt, "invalid-argument", /^threads must be an integer from 1 to 64, got /);
  });

  it.each<[OpenOptions, RegExp]>([
    [{ backend: "webgpu" }, /^threads are for the wasm backend, got 2 for "webgpu"$/],
    [{ backend: "reference" }, /^threads are for the wasm backend, got 2 for "reference"$/],
    [{ device: { createBuffer() {} } as unknown as GPUDevice }, /^threads are .* got 2 for "webgpu"$/],
    [{ backend: "wasm", wasm: new Uint8Array(8) }, /^wasm is a module without threads: leave it out$/],
  ])("refuses %o", async (options, message) => {
    await expectError(() => openKvarn({ ...options, threads: 2 }), "invalid-argument", message);
  });

  it("takes 1 for none", async () => {
    const unref = vi.spyOn(Worker.prototype, "unref");
    for (const backend of ["wasm", "reference"] as const) {
      const kvarn = await openKvarn({ backend, threads: 1 });
      expect(kvarn.backend.reason).not.toContain("thread");
      kvarn.dispose();
    }
    expect(unref).not.toHaveBeenCalled();
  });

  it.skipIf(hasHardwareGpu)("takes them where auto takes wasm", async () => {
    const kvarn = await openKvarn({ threads: 2 });
    expect(kvarn.backend.reason).toMatch(/^SIMD.*; 2 threads; not WebGPU: /);
    kvarn.dispose();
  });

  const auto = hasHardwareGpu ? [] : [{}];
  const engines: OpenOptions[] = [{ backend: "wasm" }, ...auto];

  it.each(engines)("says what is lacking without SharedArrayBuffer: %o", async (options) => {
    vi.stubGlobal("SharedArrayBuffer", undefined);
    await expectError(
      () => openKvarn({ ...options, threads: 2 }),
      "backend-unavailable",
      /^threads need SharedArrayBuffer, which pages have only when they are cross-origin isolated, by /,
    );
  });

  it.each(engines)("says what is lacking without workers: %o", async (options) => {
    vi.stubGlobal("process", { ...process, versions: {} });
    vi.stubGlobal("Worker", undefined);
    const message = /^threads do not start here: there are no workers$/;
    await expectError(() => openKvarn({ ...options, threads: 2 }), "backend-unavailable", message);
  });

  it("says why a worker does not start", async () => {
    vi.stubGlobal("process", { ...process, versions: {} });
    const terminated = vi.fn();
    /** What a page's worker has; this one fails in the way given when it is told to start. */
    type Listener = (event: object) => void;
    const fail = (way: (worker: { onerror: Listener; onmessage: Listener }) => void) => () => {
      class FailingWorker {
        declare onerror: Listener;
        declare onmessage: Listener;
        terminate = terminated;
        postMessage(): void {
          way(this);
        }
      }
      vi.stubGlobal("Worker", FailingWorker);
      return open(3);
    };
    const refused = fail((worker) => worker.onerror({ preventDefault() {} }));
    const policy = /^threads do not start here: a policy must have blob: in worker-src$/;
    await expectError(refused, "backend-unavailable", policy);
    const told = fail((worker) => worker.onmessage({ data: { error: "CompileError: no" } }));
    await expectError(told, "backend-unavailable", /^threads do not start here: CompileError: no$/);
    const cloned = fail(() => {
      throw new Error("could not be cloned");
    });
    await expectError(cloned, "backend-unavailable", /^threads do not start here: could not be cloned$/);
    expect(terminated).toHaveBeenCalledTimes(6);
  });

  it("sets less memory aside where not all of it can be", async () => {
    const asked: number[] = [];
    const { Memory } = WebAssembly;
    vi.spyOn(WebAssembly, "Memory").mockImplementation(function (descriptor: WebAssembly.MemoryDescriptor) {
      asked.push(descriptor.maximum!);
      if (descriptor.maximum! > 20_000) throw new RangeError("no room");
      return new Memory(descriptor);
    });
    const kvarn = await open(2);
    expect(asked).toEqual([65536, 32768, 16384]);
    const shape = { layers: 1, queryHeads: 8, kvHeads: 8, headDim: 128 };
    const cache = await filledCache(kvarn, shape, makeTokens(shape, 200, 1));
    const message = /^the WASM engine's memory could not grow to \d+ bytes$/;
    await expectError(
      () => kvarn.createCache({ ...shape, layers: 2, capacity: 800_000 }),
      "out-of-memory",
      message,
    );
    await expectAgrees(kvarn, cache, await readStored(cache), makeQueries(shape, 1));
    kvarn.dispose();

    vi.spyOn(WebAssembly, "Memory").mockImplementation(function () {
      throw new RangeError("no room");
    });
    await expectError(() => open(2), "backend-unavailable", /^this runtime makes no shared memory$/);
  });
});
