/** Contexts as long as they get, on a device with default limits: bindings of 128 MiB. */
import { afterAll, describe, expect, it } from "vitest";
import { openKvarn, parsePreset, recordLayout } from "../../src/index.js";
import { findAdapter, findGpu } from "../../src/webgpu/adapter.js";
import { relativeError } from "../../src/conformance/compare.js";
import { makeQueries, makeTokens } from "../support/cache.js";
import { hasGpu } from "../support/engines.js";

const shape = { queryHeads: 32, kvHeads: 8, headDim: 128 };
const preset = "k4v2_g128";
const { group } = parsePreset(preset);
const layout = recordLayout(parsePreset(preset), shape.headDim);
const MiB = 2 ** 20;

describe.skipIf(!hasGpu)("a long context", async () => {
  if (!hasGpu) return;
  const device = await (await findAdapter((await findGpu()).gpu))!.requestDevice();
  const kvarn = await openKvarn({ device });
  const wasm = await openKvarn({ backend: "wasm", variant: "strict-f32" });
  afterAll(() => {
    kvarn.dispose();
    wasm.dispose();
    device.destroy();
  });

  // A few tiles, over and over, each time with other token scales, so that every tile counts and none is like another.
  const few = await wasm.encode(...makeTokens(shape, 4 * group).slice(0, 4 * group), { ...shape, preset });
  const perTile = shape.kvHeads * layout.bytes;

  function makeRecords(tiles: number): Uint8Array {
    const records = new Uint8Array(tiles * perTile);
    const view = new DataView(records.buffer);
    for (let tile = 0; tile < tiles; tile++) {
      records.set(few.subarray((tile % 4) * perTile, ((tile % 4) + 1) * perTile), tile * perTile);
      for (let head = 0; head < shape.kvHeads; head++) {
        const at = tile * perTile + head * layout.bytes + layout.kToken + 2 * (tile % group);
        // A step or so of binary16 per tile.
        view.setUint16(at, view.getUint16(at, true) + 16 * (1 + (tile % 13)), true);
      }
    }
    return records;
  }

  it.each([
    ["131,072 tokens", 131_072, 1],
    ["more than one binding holds", 163_840, 2],
  ])("of %s is attended as on the CPU", async (_, length, bindings) => {
    const config = { ...shape, preset, layers: 1 };
    const exact = makeTokens(shape, group + 50, 3);
    const q = makeQueries(shape, 1);
    const records = makeRecords(length / group - 1);
    expect(device.limits.maxStorageBufferBindingSize).toBe(128 * MiB);
    expect(Math.ceil(records.length / (128 * MiB))).toBe(bindings);
    const outputs: Float32Array[] = [];
    for (const engine of [kvarn, wasm]) {
      const cache = engine.createCache(config);
      await cache.append(0, ...exact.slice(0, group));
      await cache.importRecords(0, records);
      await cache.append(0, ...exact.slice(group, group + 50));
      expect(cache.length(0)).toBe(length + 50);
      const { recordBytes, reservedBytes, totalBytes } = cache.memory();
      expect(recordBytes).toBe(records.length);
      expect(reservedBytes).toBeLessThanOrEqual(1.25 * totalBytes);
      outputs.push(await cache.attend(0, q));
      cache.dispose();
    }
    expect(relativeError(outputs[0], outputs[1])).toBeLessThan(2e-5);
  });
});
