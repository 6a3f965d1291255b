/** The build with relaxed SIMD, executed: Node 20 has it behind a flag. */
import { setFlagsFromString } from "node:v8";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Kvarn, openKvarn } from "../../src/index.js";
import { readBuild } from "../../src/wasm/builds.js";
import * as inlined from "../../src/wasm/inlined.js";
import { canRunRelaxed } from "../../src/wasm/probe.js";
import { layoutOf, recordInput } from "../../src/conformance/checks/encode.js";
import { expectConforms, relativeError } from "../../src/conformance/compare.js";
import { presetOf } from "../../src/conformance/data.js";
import { evenChunks, expectSame, filledCache, makeQueries, makeTokens } from "../support/cache.js";
import { goldenCases, goldenRecords } from "../support/golden.js";
import { randomArray } from "../support/random.js";

const needsFlag = !canRunRelaxed();
if (needsFlag) setFlagsFromString("--experimental-wasm-relaxed-simd");
afterAll(() => {
  if (needsFlag) setFlagsFromString("--no-experimental-wasm-relaxed-simd");
});

describe.each(["relaxed", "relaxed-f32"])("the variant %s", (variant) => {
  let kvarn: Kvarn;
  beforeAll(async () => {
    // The bytes themselves, so that nothing else can have been opened.
    const wasm = readBuild(inlined, "relaxed");
    kvarn = await openKvarn({ backend: "wasm", variant, wasm });
    return () => kvarn.dispose();
  });

  it("is open", () => {
    expect(canRunRelaxed()).toBe(true);
    expect(kvarn.backend).toMatchObject({ kind: "wasm", variant });
  });

  it.each(goldenCases.map((golden) => [golden.name, golden] as const))("encodes %s", async (_, golden) => {
    const { k, v } = recordInput(golden);
    const { kvHeads, headDim, iterations } = golden;
    const options = { preset: presetOf(golden), kvHeads, headDim, iterations };
    const records = await kvarn.encode(k, v, options);
    expectConforms(records, goldenRecords(golden), layoutOf(golden));
    expectSame(await kvarn.encode(k, v, options), records);
    const decoded = await kvarn.decode(records, options);
    expect(relativeError(decoded.k, k)).toBeCloseTo(golden.keyRelativeError, 3);
    expect(relativeError(decoded.v, v)).toBeCloseTo(golden.valueRelativeError, 3);
  });

  it("rotates to the same bits as the strict build", async () => {
    const strict = await openKvarn({ backend: "wasm", variant: "strict" });
    for (const headDim of [16, 80, 128, 512]) {
      const x = randomArray(5 * headDim, headDim);
      expectSame(await kvarn.rotate(x, { headDim }), await strict.rotate(x, { headDim }));
    }
    strict.dispose();
  });

  it.each([
    { preset: "k4v2_g64", headDim: 64, queryHeads: 6, kvHeads: 2 },
    { preset: "k3v5_g64", headDim: 80, queryHeads: 4, kvHeads: 1 },
    { preset: "k8v8_g128", headDim: 128, queryHeads: 8, kvHeads: 2, slidingWindow: 200 },
    { preset: "k2v6_g64", headDim: 16, queryHeads: 3, kvHeads: 3, softCap: 3 },
  ])("attends to sink, records and tail: %o", async (shape) => {
    const tokens = makeTokens(shape, 461, 7);
    const cache = await filledCache(
      kvarn,
      { ...shape, layers: 1, iterations: 2 },
      tokens,
      evenChunks(461, 100),
    );
    const q = makeQueries(shape, 5);
    const out = await cache.attend(0, q);
    const reference = await openKvarn({ backend: "reference" });
    const same = await reference.restoreCache(await cache.serialize());
    expect(relativeError(out, await same.attend(0, q))).toBeLessThan(variant.endsWith("-f32") ? 1e-5 : 1e-3);
    reference.dispose();
    cache.dispose();
  });

  it("is picked by name", async () => {
    const named = await openKvarn({ backend: "wasm", variant });
    expect(named.backend).toEqual({ kind: "wasm", variant, reason: "asked for by name" });
    const [k, v] = [randomArray(128 * 64, 1), randomArray(128 * 64, 2)];
    const options = { kvHeads: 1, headDim: 64 };
    expectSame(await named.encode(k, v, options), await kvarn.encode(k, v, options));
    named.dispose();
  });
});
