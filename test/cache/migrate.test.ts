/** A live cache moves from one engine to another, byte for byte. */
import { describe, expect, it } from "vitest";
import { type KvarnCache, openKvarn } from "../../src/index.js";
import { relativeError } from "../../src/conformance/compare.js";
import {
  appendChunks,
  expectError,
  expectSame,
  filledCache,
  makeQueries,
  makeTokens,
  namedEngines,
} from "../support/cache.js";

const shape = { queryHeads: 2, kvHeads: 1, headDim: 32 };
const config = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 2 };
const tokens = makeTokens(shape, 400);
const q = makeQueries(shape, 2);

describe.each(namedEngines)("migrate from %s", (_, from) => {
  it.each(namedEngines)("to %s", async (_, to) => {
    const cache = await filledCache(from, config, tokens, [200, 50]);
    const saved = await cache.serialize();
    const before = await cache.attend(0, q);
    const moved = await from.migrate(cache, to);
    expectSame(await moved.serialize(), saved);
    expect(relativeError(await moved.attend(0, q), before)).toBeLessThan(1e-3);
    await expectError(() => cache.length(0), "disposed");
    await appendChunks(moved, tokens, [100], { from: 250 });
    expect(moved.length(0)).toBe(350);
    moved.dispose();
  });

  it("refuses what is no cache of its own, and what is no engine", async () => {
    const cache = await filledCache(from, config, tokens, [70]);
    const other = await openKvarn({ backend: "reference" });
    const stranger = other.createCache(config);
    await expectError(() => from.migrate(stranger, other), "disposed", /no open cache of this engine/);
    await expectError(() => from.migrate({} as KvarnCache, other), "invalid-argument", /^cache must be/);
    await expectError(() => from.migrate(cache, {} as typeof other), "invalid-argument", /^other must be/);
    other.dispose();
    await expectError(() => from.migrate(cache, other), "disposed");
    expect(cache.length(0)).toBe(70);
    cache.dispose();
  });
});
