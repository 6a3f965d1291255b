import { afterAll, describe, expect, it } from "vitest";
import { openKvarn } from "../../src/index.js";
import { rotationBlock } from "../../src/format.js";
import { relativeError } from "../../src/conformance/compare.js";
import { expectSame, halves } from "../support/cache.js";
import { randomArray, randomIntegers } from "../support/random.js";

const reference = await openKvarn({ backend: "reference" });
const wasm = await openKvarn({ backend: "wasm", variant: "strict" });
afterAll(() => [reference, wasm].forEach((engine) => engine.dispose()));

const headDims = Array.from({ length: 32 }, (_, i) => 16 * (i + 1));

/** Sylvester's construction: `[[H, H], [H, -H]]`, not normalized. */
function sylvester(n: number): number[][] {
  if (n === 1) return [[1]];
  const half = sylvester(n / 2);
  return [...half.map((row) => [...row, ...row]), ...half.map((row) => [...row, ...row.map((x) => -x)])];
}

function rotateDensely(x: ArrayLike<number>, headDim: number): Float64Array {
  const n = rotationBlock(headDim);
  const matrix = sylvester(n);
  return Float64Array.from(x, (_, i) => {
    const block = i - (i % n);
    return matrix[i % n].reduce((sum, sign, j) => sum + sign * x[block + j], 0) / Math.sqrt(n);
  });
}

describe.each([
  ["reference", reference],
  ["wasm", wasm],
] as const)("rotate, %s", (_, kvarn) => {
  it.each(headDims)(
    "is the product with the Sylvester matrix, its own inverse and a rotation, D=%i",
    async (headDim) => {
      const x = randomArray(3 * headDim, headDim, 1000);
      const y = await kvarn.rotate(x, { headDim });
      expect(relativeError(y, rotateDensely(x, headDim))).toBeLessThan(1e-6);
      expect(relativeError(await kvarn.rotate(y, { headDim }), x)).toBeLessThan(1e-6);
      for (let row = 0; row < 3; row++) {
        const norm = (z: Float32Array) => Math.hypot(...z.subarray(row * headDim, (row + 1) * headDim));
        expect(norm(y) / norm(x)).toBeCloseTo(1, 6);
      }
    },
  );

  it("knows the smallest matrix by heart", async () => {
    // Channel 6 = 0b0110: a minus where an odd number of the bits 1 and 2 is set.
    const impulse = new Float32Array(16);
    impulse[6] = 4;
    const signs = [1, 1, -1, -1, -1, -1, 1, 1];
    expect([...(await kvarn.rotate(impulse, { headDim: 16 }))]).toEqual([...signs, ...signs]);
  });

  it("rotates heads that are no power of two block by block", async () => {
    const x = new Float32Array(80);
    x[16] = 4;
    const y = await kvarn.rotate(x, { headDim: 80 });
    expect([...y]).toEqual(Array.from(x, (_, i) => (i >= 16 && i < 32 ? 1 : 0)));
  });

  it("takes the longest rows that are finite", async () => {
    const x = new Float32Array(512);
    x[0] = 3e38;
    const y = await kvarn.rotate(x, { headDim: 512 });
    expect(y.every((value) => Math.abs(value / (3e38 / Math.sqrt(512)) - 1) < 1e-6)).toBe(true);
  });

  it("leaves its input alone, and writes to out, which may be the input", async () => {
    const x = randomArray(4 * 64, 1);
    const before = x.slice();
    const y = await kvarn.rotate(x, { headDim: 64 });
    expect(x).toEqual(before);
    const large = new Float32Array(6 * 64).fill(7);
    const out = large.subarray(64, 5 * 64);
    expect(await kvarn.rotate(x, { headDim: 64, out })).toBe(out);
    expect(out).toEqual(y);
    expect([...large.subarray(0, 64), ...large.subarray(5 * 64)].every((value) => value === 7)).toBe(true);
    expect(await kvarn.rotate(x, { headDim: 64, out: x })).toBe(x);
    expect(x).toEqual(y);
  });

  it("takes binary16", async () => {
    const x = randomArray(5 * 96, 2);
    expect(await kvarn.rotate(halves(x), { headDim: 96 })).toEqual(await kvarn.rotate(x, { headDim: 96 }));
  });

  it("takes no rows at all", async () => {
    expect(await kvarn.rotate(new Float32Array(0), { headDim: 128 })).toEqual(new Float32Array(0));
  });
});

describe("rotate, wasm as reference", () => {
  it("gives the same bits, all head sizes", async () => {
    for (const headDim of headDims) {
      const pick = randomIntegers(headDim);
      // Zeros of both signs, denormals, and magnitudes far apart.
      const x = randomArray(20 * headDim, headDim).map((value) => value * 2 ** pick(-130, 100) * pick(0, 9));
      expectSame(await wasm.rotate(x, { headDim }), await reference.rotate(x, { headDim }));
    }
  });

  it.each([48, 64, 496])("gives the same bits where rows are taken in parts, D=%i", async (headDim) => {
    const x = randomArray(Math.ceil(150_000 / headDim) * headDim, 3);
    const expected = await reference.rotate(x, { headDim });
    expectSame(await wasm.rotate(x, { headDim }), expected);
    // In place too, where parts must not run into one another.
    expectSame(await wasm.rotate(x, { headDim, out: x }), expected);
  });
});
