import { beforeAll, describe, expect, it } from "vitest";
import type { Backend, Block, Store } from "../src/backend.js";
import { parsePreset, recordLayout } from "../src/format.js";
import { fromHalf, HALF_MAX, roundHalfEven, toHalf } from "../src/half.js";
import { Kvarn } from "../src/kvarn.js";
import { referenceBackend } from "../src/reference/index.js";
import { openWasmBackend } from "../src/wasm/index.js";
import { expectError } from "./support/cache.js";

/** Bits of infinity: one above those of the largest finite number. */
const INFINITY = 0x7c00;
const SIGN = 0x8000;

/** What the standard says of finite bits without a sign, but of infinity's what its place in the row would mean. */
function valueOf(bits: number): number {
  const [exponent, fraction] = [bits >> 10, bits & 1023];
  return exponent === 0 ? fraction / 2 ** 24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** All finite numbers from 0 up, then 65536. */
const values = Float64Array.from({ length: INFINITY + 1 }, (_, bits) => valueOf(bits));

/** The f64 numbers next to `x`, below and above; `x` is above 0. */
function neighbours(x: number): [below: number, above: number] {
  const scratch = new DataView(new ArrayBuffer(8));
  const next = (step: bigint) => {
    scratch.setFloat64(0, x);
    scratch.setBigInt64(0, scratch.getBigInt64(0) + step);
    return scratch.getFloat64(0);
  };
  return [next(-1n), next(1n)];
}

/** The same in f32. */
function neighbours32(x: number): [below: number, above: number] {
  const value = Float32Array.of(x);
  const bits = new Int32Array(value.buffer);
  const next = (step: number) => {
    bits[0] += step;
    return value[0];
  };
  return [next(-1), next(2)];
}

/**
 * Inputs and the bits that they must become: every value, what lies half-way to the next (which becomes the even of the
 * two), and what lies next to the middle.
 */
function* roundings(around: (x: number) => [number, number]): Generator<readonly [x: number, bits: number]> {
  for (let bits = 0; bits < INFINITY; bits++) {
    const middle = (values[bits] + values[bits + 1]) / 2;
    const [below, above] = around(middle);
    yield [values[bits], bits];
    yield [below, bits];
    yield [middle, bits + (bits & 1)];
    yield [above, bits + 1];
  }
}

/** Inputs for which `actual` does not give the bits expected, and the bits. A loop of `expect` would take minutes. */
function mistakes(
  cases: Iterable<readonly [x: number, bits: number]>,
  actual: (x: number, index: number) => number,
): { x: number; actual: string; expected: string }[] {
  const found = [];
  let index = 0;
  for (const [x, bits] of cases) {
    const got = actual(x, index++);
    if (got !== bits) found.push({ x, actual: got.toString(16), expected: bits.toString(16) });
  }
  return found.slice(0, 10);
}

describe("fromHalf", () => {
  it("gives every finite number", () => {
    const bits = Array.from({ length: INFINITY }, (_, i) => i);
    expect(bits.filter((i) => fromHalf(i) !== values[i])).toEqual([]);
    expect(bits.filter((i) => fromHalf(i | SIGN) !== -values[i])).toEqual([]);
    expect(fromHalf(SIGN)).toBe(-0);
  });

  it("gives infinities and NaN", () => {
    expect(fromHalf(INFINITY)).toBe(Infinity);
    expect(fromHalf(INFINITY | SIGN)).toBe(-Infinity);
    for (let fraction = 1; fraction < 1024; fraction++) {
      expect(fromHalf(INFINITY + fraction)).toBeNaN();
      expect(fromHalf((INFINITY + fraction) | SIGN)).toBeNaN();
    }
  });
});

describe("toHalf", () => {
  it("takes every number to the nearest, ties to the even one, of either sign", () => {
    expect(mistakes(roundings(neighbours), toHalf)).toEqual([]);
    expect(mistakes(roundings(neighbours), (x) => toHalf(-x) ^ SIGN)).toEqual([]);
  });

  it("overflows from 65520 on", () => {
    expect(HALF_MAX).toBe(values[INFINITY - 1]);
    for (const x of [65520, 65536, 1e6, 1e300, Infinity]) {
      expect(toHalf(x)).toBe(INFINITY);
      expect(toHalf(-x)).toBe(INFINITY | SIGN);
    }
    expect(toHalf(neighbours(65520)[0])).toBe(INFINITY - 1);
  });

  it("keeps the sign of zero and of what rounds to it", () => {
    expect(toHalf(-0)).toBe(SIGN);
    expect(toHalf(-(2 ** -25))).toBe(SIGN);
    expect(toHalf(2 ** -25)).toBe(0);
    expect(toHalf(5e-324)).toBe(0);
  });

  it("makes a NaN of NaN", () => expect(fromHalf(toHalf(NaN))).toBeNaN());
});

describe("roundHalfEven", () => {
  it("takes halves to the even integer", () => {
    const halves = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 254.5];
    expect(halves.map(roundHalfEven)).toEqual([-2, -2, 0, 0, 2, 2, 254]);
    expect([0.49, 0.51, 1.49, 2.51, 7].map(roundHalfEven)).toEqual([0, 1, 1, 3, 7]);
  });
});

const D = 16;
/** Tokens that are stored at once. */
const TOKENS = 4096;
const layout = recordLayout(parsePreset("k2v2_g64"), D);

describe.each([
  ["reference", async () => referenceBackend()],
  ["wasm", async () => (await openWasmBackend({ variant: "strict" })).engine],
] as const)("binary16 in the %s engine", (_, open) => {
  let backend: Backend;
  let store: Store;
  let block: Block;
  beforeAll(async () => {
    backend = await open();
    store = backend.createStore(
      { kvHeads: 1, headDim: D, layout, encoder: "strict", iterations: 0 },
      () => false,
    );
    block = store.allocateExact(TOKENS);
    return () => backend.dispose();
  });

  /**
   * What the first channel of each row is kept as; K and V take turns. Heads of 16 channels are rotated with factors of
   * 1/4: where only the first channel is set, it becomes a fourth, and where all are the same, it becomes four times
   * that. Both are exact.
   */
  async function keep(rows: Float32Array | Uint16Array): Promise<Uint16Array> {
    const result = new Uint16Array(rows.length / D);
    for (let row = 0; row < result.length; row += 2 * TOKENS) {
      const part = rows.subarray(row * D, (row + 2 * TOKENS) * D);
      const tokens = part.length / D / 2;
      store.write(
        [{ block: block, at: 0, from: 0, tokens: tokens }],
        part.subarray(0, tokens * D),
        part.subarray(tokens * D),
      );
      const data = await store.readExact(block, tokens);
      for (let i = 0; i < 2 * tokens; i++) {
        result[row + i] = data[(i % tokens) * 2 * D + (i < tokens ? 0 : D)];
      }
    }
    return result;
  }

  it("rounds f32 as toHalf does, of either sign", async () => {
    const finite = [...roundings(neighbours32)].filter(([x, bits]) => x > 0 && bits < INFINITY);
    const cases = [...finite, ...finite.map(([x, bits]) => [-x, bits | SIGN] as const)];
    const kept = await keep(impulses(Float32Array.from(cases, ([x]) => 4 * x)));
    expect(mistakes(cases, (_, i) => kept[i])).toEqual([]);
  });

  it("reads every finite binary16, of either sign", async () => {
    const inputs = Uint16Array.from({ length: 2 * INFINITY }, (_, i) => (i >> 1) | (i & 1 ? SIGN : 0));
    const fourths = await keep(impulses(inputs));
    // Only rounding makes a negative zero; sums of zeros of both signs are positive.
    const quarter = (bits: number) => (bits === SIGN ? 0 : toHalf(fromHalf(bits) / 4));
    expect(
      mistakes(
        Array.from(inputs, (bits) => [fromHalf(bits), quarter(bits)]),
        (_, i) => fourths[i],
      ),
    ).toEqual([]);

    // Four times as much, which is exact.
    const small = inputs.filter((bits) => Math.abs(fromHalf(bits)) <= HALF_MAX / 4);
    const rows = new Uint16Array(small.length * D).map((_, i) => small[Math.floor(i / D)]);
    const fourfold = await keep(rows);
    expect(
      mistakes(
        Array.from(small, (bits) => [fromHalf(bits), toHalf(4 * fromHalf(bits))]),
        (_, i) => fourfold[i],
      ),
    ).toEqual([]);
  });

  it("refuses what is not finite or would not be", async () => {
    const refused = async (rows: Float32Array | Uint16Array) =>
      expectError(() => keep(rows), "non-finite", /^k (is|at) .*token 0, head 0/);
    for (let bits = INFINITY; bits < SIGN; bits++) {
      await refused(impulses(Uint16Array.of(bits, 0)));
      await refused(impulses(Uint16Array.of(bits | SIGN, 0)));
    }
    for (const x of [65520, neighbours32(65520)[1], 65536, 1e37, NaN, Infinity]) {
      await refused(impulses(Float32Array.of(4 * x, 0)));
      await refused(impulses(Float32Array.of(-4 * x, 0)));
    }
  });

  it("reads every finite scale of a record", async () => {
    const kvarn = new Kvarn(backend, "for a test");
    const scales = Uint16Array.from({ length: 2 * INFINITY }, (_, i) => (i >> 1) | (i & 1 ? SIGN : 0));
    const records = new Uint8Array((scales.length / layout.group) * layout.bytes);
    const view = new DataView(records.buffer);
    const set = (at: number, value: number) => view.setUint16(at, value, true);
    for (let start = 0, token = 0; start < records.length; start += layout.bytes) {
      // Channel 0: K is 0 * 0 + 1 times the token's scale, V is 1 times the token's scale + 0, times 1.
      records.fill(0x55, start + layout.vCodes, start + layout.vScale);
      set(start + layout.kZero, toHalf(1));
      set(start + layout.vScale, toHalf(1));
      for (let i = 0; i < layout.group; i++, token++) {
        set(start + layout.kToken + 2 * i, scales[token]);
        set(start + layout.vToken + 2 * i, scales[token]);
      }
    }
    const { k, v } = await kvarn.decode(records, { preset: "k2v2_g64", kvHeads: 1, headDim: D });
    const isWrong = (x: number, i: number) => x !== fromHalf(scales[Math.floor(i / D)]) / 4;
    expect([...k].findIndex(isWrong)).toBe(-1);
    expect([...v].findIndex(isWrong)).toBe(-1);
  });
});

/** Rows of zeros but for their first channels. */
function impulses<T extends Float32Array | Uint16Array>(firsts: T): T {
  const rows = new (firsts.constructor as new (length: number) => T)(firsts.length * D);
  firsts.forEach((x, i) => (rows[i * D] = x));
  return rows;
}
