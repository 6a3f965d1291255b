/** Devices that are lost, that have no memory, or that offer next to nothing. */
import { describe, expect, it } from "vitest";
import { type Kvarn, type KvarnCache, openKvarn } from "../../src/index.js";
import { Kvarn as KvarnOn } from "../../src/kvarn.js";
import { findAdapter, findGpu } from "../../src/webgpu/adapter.js";
import { openWebGpuBackend } from "../../src/webgpu/index.js";
import {
  appendChunks,
  expectError,
  expectRefused,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
} from "../support/cache.js";
import { hasGpu } from "../support/engines.js";

const shape = { queryHeads: 4, kvHeads: 2, headDim: 32 };
const config = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 2 };
const tokens = makeTokens(shape, 600);
const q = makeQueries(shape, 2);

/** A device of the test's own: default limits, no optional feature. */
async function openDevice(): Promise<GPUDevice> {
  const adapter = await findAdapter((await findGpu()).gpu);
  return adapter!.requestDevice();
}

async function openOn(device: GPUDevice, use: (kvarn: Kvarn) => Promise<void>): Promise<void> {
  const kvarn = await openKvarn({ device });
  await use(kvarn);
  kvarn.dispose();
  device.destroy();
}

/** Makes the device refuse the memory of the next call, and then of none. */
function refuseMemory(device: GPUDevice): void {
  const pop = device.popErrorScope.bind(device);
  let popped = 0;
  device.popErrorScope = async () => {
    const error = await pop();
    // Scopes come off last first; that for memory is on top.
    return popped++ === 0 ? { message: "injected by a test" } : error;
  };
}

function refusing<T>(device: GPUDevice, call: () => T): T {
  refuseMemory(device);
  return call();
}

describe.skipIf(!hasGpu)("a lost device", () => {
  const lost = /^the GPU device was lost: /;

  async function expectLost(kvarn: Kvarn, cache: KvarnCache): Promise<void> {
    await expectError(() => cache.append(0, ...tokens.slice(0, 1)), "device-lost", lost);
    await expectError(() => cache.attend(0, q), "device-lost", lost);
    await expectError(() => cache.serialize(), "device-lost", lost);
    await expectError(() => cache.exportRecords(0), "device-lost", lost);
    await expectError(() => cache.flush(), "device-lost", lost);
    await expectError(() => kvarn.rotate(q, { headDim: 32 }), "device-lost", lost);
    await expectError(() => kvarn.encode(...tokens.slice(0, 64), config), "device-lost", lost);
    cache.dispose();
    kvarn.dispose();
  }

  it.each([
    ["append", (cache: KvarnCache) => cache.append(0, ...tokens.slice(300, 600))],
    ["attend", (cache: KvarnCache) => cache.attend(0, q)],
    ["serialize", (cache: KvarnCache) => cache.serialize()],
  ])("in the middle of %s is named, and what was saved lives on", async (name, call) => {
    const device = await openDevice();
    const kvarn = await openKvarn({ device });
    const cache = await filledCache(kvarn, config, tokens, [200, 50]);
    const saved = await cache.serialize();
    const outcome = await cache.attend(0, q);

    const pending = call(cache);
    device.destroy();
    // An append may have got through before.
    if (name === "append")
      await pending.catch((error: unknown) => expect(error).toMatchObject({ code: "device-lost" }));
    else await expectError(() => pending, "device-lost", lost);
    await device.lost;
    await expectLost(kvarn, cache);

    const wasm = await openKvarn({ backend: "wasm", variant: "strict-f32" });
    const onWasm = await wasm.restoreCache(saved);
    expectSame(await onWasm.serialize(), saved);
    await openOn(await openDevice(), async (other) => {
      const restored = await other.restoreCache(saved);
      expectSame(await restored.serialize(), saved);
      expectSame(await restored.attend(0, q), outcome);
      await restored.append(0, ...tokens.slice(250, 400));
      expect(restored.length(0)).toBe(400);
    });
    wasm.dispose();
  });

  it("before the first pipeline is there is named, too", async () => {
    const device = await openDevice();
    const kvarn = await openKvarn({ device });
    const cache = kvarn.createCache(config);
    const pending = [cache.append(0, ...tokens.slice(0, 100)), cache.attend(0, q)];
    device.destroy();
    for (const outcome of await Promise.allSettled(pending)) {
      if (outcome.status === "rejected") expect(outcome.reason).toMatchObject({ code: "device-lost" });
    }
    await device.lost;
    await expectLost(kvarn, cache);
  });
});

describe.skipIf(!hasGpu)("a device without memory", () => {
  const refused = /^the GPU device has no memory: injected by a test$/;

  it.each([
    ["the first tokens", []],
    ["tokens of the second tile", [64]],
    ["tokens when tiles are due", [64, 70]],
    ["tokens when one tile is encoded", [64, 70, 1]],
  ])("refuses %s and keeps what is there", async (_, sizes) => {
    const device = await openDevice();
    await openOn(device, async (kvarn) => {
      const cache = await filledCache(kvarn, config, tokens, sizes);
      const from = cache.length(0);
      const some = tokens.slice(from, from + 200);
      await expectRefused(
        cache,
        () => refusing(device, () => cache.append(0, ...some)),
        "out-of-memory",
        refused,
      );
      await cache.append(0, ...some);
      const expected = await filledCache(kvarn, config, tokens, [...sizes, 200]);
      expect(cache.memory()).toEqual(expected.memory());
      expectSame(await cache.serialize(), await expected.serialize());
      expectSame(await cache.attend(0, q), await expected.attend(0, q));
    });
  });

  it("refuses what was built on a refused call, too", async () => {
    const device = await openDevice();
    await openOn(device, async (kvarn) => {
      const cache = await filledCache(kvarn, config, tokens, [64, 70]);
      const fork = cache.fork();
      const before = await cache.serialize();
      const attended = await cache.attend(0, q);
      refuseMemory(device);
      const pending = [
        cache.append(0, ...tokens.slice(134, 334)),
        cache.append(0, ...tokens.slice(334, 335)),
        cache.attend(0, q),
        cache.append(0, ...tokens.slice(335, 600)),
      ];
      const outcomes = await Promise.allSettled(pending);
      for (const outcome of outcomes) {
        expect(outcome).toMatchObject({ status: "rejected", reason: { code: "out-of-memory" } });
      }
      expectSame(await cache.attend(0, q), attended);
      expectSame(await cache.serialize(), before);
      expectSame(await fork.serialize(), before);
      await appendChunks(cache, tokens, [200, 1, 265], { from: 134 });
      const expected = await filledCache(kvarn, config, tokens, [64, 70, 200, 1, 265]);
      expectSame(await cache.serialize(), await expected.serialize());
    });
  });

  it("fails attention, imports, restoring and kernels, and nothing else", async () => {
    const device = await openDevice();
    await openOn(device, async (kvarn) => {
      const cache = await filledCache(kvarn, config, tokens, [64]);
      await expectRefused(cache, () => refusing(device, () => cache.attend(0, q)), "out-of-memory", refused);
      const records = await kvarn.encode(...tokens.slice(64, 256), config);
      await expectRefused(
        cache,
        () => refusing(device, () => cache.importRecords(0, records)),
        "out-of-memory",
        refused,
      );
      await cache.importRecords(0, records);
      expect(cache.length(0)).toBe(256);
      const saved = await cache.serialize();
      refuseMemory(device);
      await expectError(() => kvarn.restoreCache(saved), "out-of-memory", refused);
      expectSame(await (await kvarn.restoreCache(saved)).serialize(), saved);
    });
  });

  it("refuses to take note of queries, and knows of those before", async () => {
    const device = await openDevice();
    await openOn(device, async (kvarn) => {
      const refined = { ...config, encoder: "refined" } as const;
      const cache = await filledCache(kvarn, refined, tokens, [64, 70]);
      await expectRefused(cache, () => refusing(device, () => cache.attend(0, q)), "out-of-memory", refused);
      expect(cache.memory().queryBytes).toBe(0);
      await cache.attend(0, q);

      const fork = cache.fork();
      await expectRefused(fork, () => refusing(device, () => fork.attend(0, q)), "out-of-memory", refused);
      await fork.attend(0, q);
      const expected = await filledCache(kvarn, refined, tokens, [64, 70]);
      await expected.attend(0, q);
      expectSame(await cache.serialize(), await expected.serialize());
      await expected.attend(0, q);
      expectSame(await fork.serialize(), await expected.serialize());
      for (const one of [cache, fork, expected]) one.dispose();
    });
  });

  it("gets all back of a cache that is disposed of before it refuses", async () => {
    const device = await openDevice();
    const { engine } = await openWebGpuBackend({ device });
    const kvarn = new KvarnOn(engine, "watched by a test");
    const work = async (refuses: boolean) => {
      const cache = await filledCache(kvarn, { ...config, encoder: "refined" }, tokens, [64, 70]);
      const fork = cache.fork();
      if (refuses) refuseMemory(device);
      const pending = [cache.attend(0, q), cache.append(0, ...tokens.slice(134, 334))];
      cache.dispose();
      const outcomes = await Promise.allSettled(pending);
      expect(outcomes.some(({ status }) => status === "rejected")).toBe(refuses);
      fork.dispose();
    };
    const cycle = async () => {
      for (const refuses of [true, false]) await work(refuses);
      return engine.heldBytes();
    };
    await cycle();
    const held = await cycle();
    for (let i = 0; i < 3; i++) expect(await cycle()).toBe(held);
    kvarn.dispose();
    device.destroy();
  });

  it("is not relied on any more once it refuses what needs no new memory", async () => {
    const device = await openDevice();
    await openOn(device, async (kvarn) => {
      const cache = await filledCache(kvarn, config, tokens, [64]);
      await cache.attend(0, q);
      await expectError(() => refusing(device, () => cache.attend(0, q)), "out-of-memory", refused);
      await expectError(() => cache.attend(0, q), "out-of-memory", refused);
      await expectError(() => cache.append(0, ...tokens.slice(64, 65)), "out-of-memory", refused);
    });
  });

  it("says so of what was set aside, when something is first done with it", async () => {
    const device = await openDevice();
    await openOn(device, async (kvarn) => {
      refuseMemory(device);
      const cache = kvarn.createCache({ ...config, capacity: 500 });
      await expectError(() => cache.append(0, ...tokens.slice(0, 10)), "out-of-memory", refused);
    });
  });
});

it.skipIf(!hasGpu)("a process ends by itself after dispose", async () => {
  const { spawnSync } = await import("node:child_process");
  const { existsSync } = await import("node:fs");
  if (!existsSync("dist/index.js")) throw new Error("build first: npm run build");
  const script = `
    import { openKvarn } from "./dist/index.js";
    const kvarn = await openKvarn({ backend: "webgpu", allowSoftwareAdapter: true });
    const cache = kvarn.createCache({ layers: 1, queryHeads: 1, kvHeads: 1, headDim: 16, preset: "k4v2_g64" });
    const x = new Float32Array(16 * 70).fill(1);
    await cache.append(0, x, x);
    await cache.attend(0, x.subarray(0, 16));
    kvarn.dispose();
    console.log("disposed");
  `;
  const arguments_ = "Deno" in globalThis ? ["eval", script] : ["--input-type=module", "--eval", script];
  const { status, stdout } = spawnSync(process.execPath, arguments_, { encoding: "utf8", timeout: 30_000 });
  expect({ status, stdout }).toEqual({ status: 0, stdout: "disposed\n" });
});
