/** Calls while the pipelines they need are still being made: they wait, and take effect in order all the same. */
import { expect, it } from "vitest";
import { type Kvarn, type KvarnCache, openKvarn } from "../../src/index.js";
import { floatBits, Gpu } from "../../src/webgpu/gpu.js";
import { expectSame, makeQueries, makeTokens } from "../support/cache.js";
import { hasGpu, sharedDevice } from "../support/engines.js";
import { bufferOf, runOn } from "../support/gpu.js";

const shape = { queryHeads: 2, kvHeads: 1, headDim: 16 };
const config = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 1 };
const tokens = makeTokens(shape, 200);
const queries = makeQueries(shape, 2);

/** Calls that need kernels, and calls that need none. */
function script(cache: KvarnCache): (() => Promise<unknown>)[] {
  // Arrays that change as soon as the call returns.
  const append = (from: number, to: number) => () => {
    const [k, v] = tokens.slice(from, to);
    const pending = cache.append(0, k, v);
    k.fill(NaN);
    v.fill(NaN);
    return pending;
  };
  const attend = () => {
    const q = queries.slice();
    const pending = cache.attend(0, q);
    q.fill(NaN);
    return pending;
  };
  return [
    append(0, 140),
    () => cache.serialize(),
    attend,
    append(140, 200),
    () => cache.serialize(),
    () => cache.exportRecords(0),
    attend,
  ];
}

/** Uses an engine on which no pipeline has been made yet. */
async function withNewEngine(use: (kvarn: Kvarn) => Promise<void>): Promise<void> {
  const kvarn = await openKvarn({ backend: "webgpu", allowSoftwareAdapter: true });
  await use(kvarn);
  kvarn.dispose();
}

/** Expects what the script gives when each call is awaited. */
async function expectAsAwaited(kvarn: Kvarn, results: unknown[]): Promise<void> {
  for (const [i, call] of script(kvarn.createCache(config)).entries()) {
    const expected = await call();
    if (ArrayBuffer.isView(expected)) expectSame(results[i] as Uint8Array, expected as Uint8Array);
    else expect(results[i]).toEqual(expected);
  }
}

it.skipIf(!hasGpu)("calls wait for the first pipelines in order, with what their arrays held", () =>
  withNewEngine(async (kvarn) => {
    const results = await Promise.all(script(kvarn.createCache(config)).map((call) => call()));
    await expectAsAwaited(kvarn, results);
  }),
);

it.skipIf(!hasGpu)("calls that wait for pipelines keep their buffers when the cache is disposed of", () =>
  withNewEngine(async (kvarn) => {
    const [cache, other] = [kvarn.createCache(config), kvarn.createCache(config)];
    const pending = script(cache).map((call) => call());
    const appending = other.append(0, ...tokens.slice(0, 140));
    cache.dispose();
    other.dispose();
    await appending;
    await expectAsAwaited(kvarn, await Promise.all(pending));
  }),
);

it.skipIf(!hasGpu).each(["its own encoder", "a caller's"])(
  "a call of more dispatches than there is room for gives each its own parameters, in %s",
  async (whose) => {
    const device = sharedDevice();
    const gpu = new Gpu(device);
    const count = 1000;
    const buffer = bufferOf(gpu, new Float32Array(count * 64).fill(1));
    const dispatchAll = () => {
      const kernel = gpu.kernel("rotate", { D: 16, BLOCK: 16 });
      for (let i = 0; i < count; i++) {
        const bindings = [{ buffer, offset: i * 256, size: 256 }];
        gpu.dispatch({ kernel, params: [1, floatBits(i)], bindings, groups: [1] });
      }
    };
    if (whose === "its own encoder") {
      await runOn(gpu, dispatchAll);
    } else {
      const encoder = device.createCommandEncoder();
      await gpu.run(dispatchAll, encoder).settled;
      device.queue.submit([encoder.finish()]);
    }
    const data = await runOn(gpu, () => gpu.read(buffer, 0, count * 256));
    // A row of ones rotates to 16 at first and zeros.
    const sums = new Float32Array(data.buffer).filter((_, i) => i % 64 === 0);
    expectSame(
      sums,
      Float32Array.from({ length: count }, (_, i) => 16 * i),
    );
    buffer.destroy();
    gpu.dispose();
    expect(gpu.heldBytes).toBe(0);
  },
);
