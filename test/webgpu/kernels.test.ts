/** The single kernels as an engine offers them, among them more tiles and rows than one call or one grid takes. */
import { afterAll, describe, expect, it } from "vitest";
import { openKvarn } from "../../src/index.js";
import { BIT_WIDTHS } from "../../src/format.js";
import { relativeError } from "../../src/conformance/compare.js";
import { expectSame } from "../support/cache.js";
import { hasGpu } from "../support/engines.js";
import { randomArray, randomIntegers } from "../support/random.js";

describe.skipIf(!hasGpu)("kernels on a GPU", async () => {
  if (!hasGpu) return;
  const kvarn = await openKvarn({ backend: "webgpu", allowSoftwareAdapter: true });
  const reference = await openKvarn({ backend: "reference" });
  afterAll(() => [kvarn, reference].forEach((engine) => engine.dispose()));

  /** Numbers over and over, each time others by a little: many, and no part like another. */
  function manyNumbers(length: number): Float32Array {
    const few = randomArray(8191, 5);
    return Float32Array.from({ length }, (_, i) => few[i % few.length] + Math.floor(i / few.length) / 64);
  }

  function randomBytes(length: number, seed: number): Uint8Array {
    const pick = randomIntegers(seed);
    return Uint8Array.from({ length }, () => pick(0, 255));
  }

  it.each([
    [16, 3],
    [80, 5],
    [512, 2],
    // More rows than one dimension of a grid has workgroups.
    [16, 33_000],
    // More than are uploaded at a time.
    [512, 8200],
  ])("rotates as the reference does, D=%i, %i rows", async (headDim, rows) => {
    const x = manyNumbers(rows * headDim);
    expectSame(await kvarn.rotate(x, { headDim }), await reference.rotate(x, { headDim }));
  });

  it("normalizes more tiles than are uploaded at a time as one by one", async () => {
    const [rows, columns, count] = [128, 256, 130];
    const size = rows * columns;
    const shape = { rows, columns, iterations: 1 };
    const tiles = manyNumbers(count * size);
    const all = await kvarn.normalize(tiles, shape);
    for (const i of [0, 127, 128, 129]) {
      const one = await kvarn.normalize(tiles.subarray(i * size, (i + 1) * size), shape);
      expectSame(all.balanced.subarray(i * size, (i + 1) * size), one.balanced);
      expectSame(all.rowScale.subarray(i * rows, (i + 1) * rows), one.rowScale);
      expectSame(all.columnScale.subarray(i * columns, (i + 1) * columns), one.columnScale);
    }
    const first = tiles.subarray(0, size);
    const [actual, expected] = [await kvarn.normalize(first, shape), await reference.normalize(first, shape)];
    expect(relativeError(actual.rowScale, expected.rowScale)).toBeLessThan(1e-5);
    expect(relativeError(actual.columnScale, expected.columnScale)).toBeLessThan(1e-5);
    expect(relativeError(actual.balanced, expected.balanced)).toBeLessThan(1e-5);
  });

  it("packs more tiles than are uploaded at a time, and unpacks them", async () => {
    const [rows, columns, count, bits] = [128, 256, 130, 3];
    const shape = { rows, columns, bits };
    const tiles = manyNumbers(count * rows * columns);
    const [actual, expected] = [await kvarn.pack(tiles, shape), await reference.pack(tiles, shape)];
    expectSame(actual.codes, expected.codes);
    expectSame(actual.scale, expected.scale);
    expectSame(actual.zero, expected.zero);
    expect(
      relativeError(await kvarn.unpack(actual, shape), await reference.unpack(actual, shape)),
    ).toBeLessThan(1e-6);
  });

  it.each(BIT_WIDTHS)("unpacks %i bits as the reference does", async (bits) => {
    const [rows, columns] = [32, 48];
    const shape = { rows, columns, bits };
    const codes = randomBytes((3 * rows * columns * bits) / 8, bits);
    const packed = { codes, scale: randomArray(3 * rows, 1), zero: randomArray(3 * rows, 2, 16) };
    expect(
      relativeError(await kvarn.unpack(packed, shape), await reference.unpack(packed, shape)),
    ).toBeLessThan(1e-6);
    expectSame(
      await kvarn.unpack({ codes }, { ...shape, raw: true }),
      await reference.unpack({ codes }, { ...shape, raw: true }),
    );
  });

  it("unpacks more codes than are read back at a time", async () => {
    const shape = { rows: 256, columns: 256, bits: 2, raw: true } as const;
    const codes = randomBytes((257 * 65_536) / 4, 1);
    expectSame(await kvarn.unpack({ codes }, shape), await reference.unpack({ codes }, shape));
  });
});
