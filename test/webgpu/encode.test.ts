import { afterAll, describe, expect, it } from "vitest";
import { findBadScale, type RecordLayout } from "../../src/format.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { quantize, packCodes } from "../../src/reference/pack.js";
import { encodeRecord } from "../../src/reference/record.js";
import { rotate } from "../../src/reference/rotate.js";
import { encode, normalize, pack } from "../../src/webgpu/encode.js";
import { Gpu } from "../../src/webgpu/gpu.js";
import { layoutOf, recordInput } from "../../src/conformance/checks/encode.js";
import { compareRecords, expectConforms, relativeError } from "../../src/conformance/compare.js";
import { decodePlainly } from "../../src/conformance/record.js";
import { expectSame } from "../support/cache.js";
import { goldenCases, goldenRecords } from "../support/golden.js";
import { hasGpu, sharedDevice } from "../support/engines.js";
import { bufferOf, exactBits, layoutFor, makeInput, runOn } from "../support/gpu.js";
import { randomIntegers } from "../support/random.js";
import {
  degenerateTiles,
  extremeTiles,
  imbalance,
  iterates,
  makeTile,
  type Recipe,
  regularTiles,
} from "../support/tiles.js";

let gpu: Gpu;
if (hasGpu) gpu = new Gpu(sharedDevice());
afterAll(() => {
  if (hasGpu) gpu.dispose();
});

interface Shape {
  readonly layout: RecordLayout;
  readonly kvHeads: number;
  readonly iterations: number;
}

/** The records of one tile. */
async function encodeTile(k: Float32Array, v: Float32Array, { layout, kvHeads, iterations }: Shape) {
  const { headDim } = layout;
  const exact = bufferOf(gpu, exactBits(k, v, kvHeads * headDim));
  const records = bufferOf(gpu, new Uint8Array(kvHeads * layout.bytes));
  const shape = { kvHeads, headDim, layout, iterations, encoder: "strict" } as const;
  const result = await runOn(gpu, () => {
    encode(gpu, shape, exact, records, [{ exact: 0, record: 0 }]);
    return gpu.read(records, 0, records.size);
  });
  [exact, records].forEach((buffer) => buffer.destroy());
  return result;
}

/** The records of one tile, of the reference. */
function encodeReference(k: Float32Array, v: Float32Array, { layout, kvHeads, iterations }: Shape) {
  const { headDim, bytes } = layout;
  const records = new Uint8Array(kvHeads * bytes);
  for (let head = 0; head < kvHeads; head++) {
    const ofHead = (x: Float32Array) =>
      x.filter((_, i) => Math.floor(i / headDim) % kvHeads === head).map((x) => fromHalf(toHalf(x)));
    records.set(encodeRecord({ keys: ofHead(k), values: ofHead(v) }, layout, iterations), head * bytes);
  }
  return records;
}

describe.skipIf(!hasGpu)("encode on the GPU", () => {
  it.each(goldenCases.map((golden) => [golden.name, golden] as const))(
    "makes the golden record %s, twice the same",
    async (_, golden) => {
      const { k, v } = recordInput(golden);
      const [layout, { headDim, kvHeads, iterations }] = [layoutOf(golden), golden];
      const rotated = [rotate(k, headDim), rotate(v, headDim)] as const;
      const shape = { layout, kvHeads, iterations };
      const records = await encodeTile(...rotated, shape);
      const expected = goldenRecords(golden);
      for (let from = 0; from < records.length; from += layout.bytes) {
        const to = from + layout.bytes;
        expectConforms(records.subarray(from, to), expected.subarray(from, to), layout);
      }
      expectSame(await encodeTile(...rotated, shape), records);
    },
  );

  // Both groups of every head size, and all widths; where there is one, as a golden record has them.
  it.each([
    [16, 64, 2, 5],
    [16, 128, 5, 3],
    [48, 64, 3, 6],
    [48, 128, 6, 2],
    [64, 64, 3, 3],
    [64, 128, 6, 5],
    [80, 64, 8, 3],
    [80, 128, 3, 5],
    [112, 64, 5, 6],
    [112, 128, 4, 8],
    [128, 64, 2, 2],
    [128, 128, 4, 4],
    [256, 64, 4, 2],
    [256, 128, 4, 2],
    [496, 128, 3, 8],
    [512, 64, 4, 2],
    [512, 128, 2, 3],
  ])("conforms to the reference, D=%i, G=%i, k%iv%i", async (headDim, group, keyBits, valueBits) => {
    const layout = layoutFor(headDim, group, keyBits, valueBits);
    const recipes = Object.entries(regularTiles).slice(0, headDim > 256 ? 3 : undefined);
    for (const iterations of [0, 8]) {
      const shape = { layout, kvHeads: 1, iterations };
      for (const [name, recipe] of recipes) {
        const input = makeInput(recipe, layout, headDim + group);
        const records = await encodeTile(...input, shape);
        const comparison = expectConforms(records, encodeReference(...input, shape), layout, name);
        if (iterations === 0) expect(comparison.codesDiffering, name).toBe(0);
      }
    }
  });

  it.each([
    [16, 128, 5, 3],
    [48, 64, 3, 6],
    [128, 128, 4, 2],
  ])("conforms with tiles in registers, D=%i, G=%i, k%iv%i", async (headDim, group, keyBits, valueBits) => {
    const setting = gpu as { software: boolean };
    const { software } = setting;
    // Devices that compute on the CPU have no use for it, but here they shall do it all the same.
    setting.software = false;
    try {
      const layout = layoutFor(headDim, group, keyBits, valueBits);
      const shape = { layout, kvHeads: 1, iterations: 8 };
      for (const [name, recipe] of Object.entries(regularTiles)) {
        const input = makeInput(recipe, layout, headDim + group);
        const records = await encodeTile(...input, shape);
        expectConforms(records, encodeReference(...input, shape), layout, name);
        expectSame(await encodeTile(...input, shape), records);
      }
    } finally {
      setting.software = software;
    }
  });

  describe.each([
    [64, 128, 4, 2],
    [128, 64, 2, 2],
    [512, 64, 4, 2],
  ])("D=%i, G=%i, k%iv%i", (headDim, group, keyBits, valueBits) => {
    const layout = layoutFor(headDim, group, keyBits, valueBits);
    const shape = { layout, kvHeads: 1, iterations: 8 };

    it.each(Object.entries(extremeTiles))("finds the scales of the reference, %s", async (_, recipe) => {
      const input = makeInput(recipe, layout, 7);
      const difference = compareRecords(
        await encodeTile(...input, shape),
        encodeReference(...input, shape),
        layout,
      );
      expect(difference.worstScaleError).toBeLessThanOrEqual(1);
      expect(difference.maxCodeDifference).toBeLessThanOrEqual(1);
      expect(difference.codesDiffering / difference.codes).toBeLessThan(0.02);
    });

    it.each(Object.entries(degenerateTiles))("loses as little as the reference, %s", async (_, recipe) => {
      const [k, v] = makeInput(recipe, layout, 8);
      const errors = (records: Uint8Array) => {
        expect(findBadScale(records, layout)).toBe(-1);
        const decoded = decodePlainly(records, layout);
        return [relativeError(decoded.k, k), relativeError(decoded.v, v)];
      };
      const expected = errors(encodeReference(k, v, shape));
      errors(await encodeTile(k, v, shape)).forEach((error, i) => {
        // Below the second, what three scales lose in binary16, either choice of scales may be the better one.
        expect(error).toBeLessThanOrEqual(Math.max(1.05 * expected[i], 3 * 2 ** -11));
      });
    });
  });

  it("moves a factor to the columns' scales where zero points exceed binary16", async () => {
    const layout = layoutFor(64, 64, 4, 2);
    const shape = { layout, kvHeads: 1, iterations: 8 };
    const [k, v] = makeInput({ rowFactor: () => 100 }, layout, 1);
    k.fill(-65504, 0, 64);
    v.forEach((_, i) => i % 64 === 5 && (v[i] = 65504));
    const records = await encodeTile(k, v, shape);
    expect(findBadScale(records, layout)).toBe(-1);
    expectConforms(records, encodeReference(k, v, shape), layout);
    const half = (at: number) => fromHalf(records[at] + 256 * records[at + 1]);
    expect(half(layout.kToken)).toBeCloseTo(2 * Math.exp(-0.3), 3);
  });

  it("encodes many tiles at scattered places at once, and touches nothing else", async () => {
    const [headDim, group, kvHeads, iterations] = [48, 64, 2, 4];
    const layout = layoutFor(headDim, group, 3, 6);
    const shape = { layout, kvHeads, iterations };
    const exactBytes = group * 4 * kvHeads * headDim;
    const tiles = [3, 0, 4, 1].map((place, i) => ({
      exact: place * (exactBytes + 48),
      record: (4 - i) * (kvHeads * layout.bytes + 16) + 80,
    }));
    const inputs = tiles.map((_, i) => {
      const make = (seed: number) => makeTile(regularTiles["outlier rows"], group, kvHeads * headDim, seed);
      return [make(i), make(i + 10)] as const;
    });
    const exact = new Uint8Array(5 * (exactBytes + 48)).fill(0x3c);
    const records = new Uint8Array(5 * (kvHeads * layout.bytes + 16) + 96).fill(0xa5);
    const expected = records.slice();
    for (const [i, tile] of tiles.entries()) {
      exact.set(new Uint8Array(exactBits(...inputs[i], kvHeads * headDim).buffer), tile.exact);
      expected.set(await encodeTile(...inputs[i], shape), tile.record);
    }
    const [exactBuffer, recordBuffer] = [bufferOf(gpu, exact), bufferOf(gpu, records)];
    const actual = await runOn(gpu, () => {
      encode(gpu, { ...shape, headDim, encoder: "strict" }, exactBuffer, recordBuffer, tiles);
      return Promise.all([gpu.read(recordBuffer, 0, records.length), gpu.read(exactBuffer, 0, exact.length)]);
    });
    expectSame(actual[0], expected);
    expectSame(actual[1], exact);
  });
});

/** Normalizes tiles, one after another. */
async function normalizeTiles(
  tiles: Float32Array<ArrayBuffer>,
  rows: number,
  columns: number,
  iterations: number,
) {
  const count = tiles.length / rows / columns;
  const source = bufferOf(gpu, tiles);
  const [balanced, rowScale, columnScale] = [tiles.length, count * rows, count * columns].map((length) =>
    bufferOf(gpu, new Float32Array(length)),
  );
  const out = {
    balanced: { buffer: balanced },
    rowScale: { buffer: rowScale },
    columnScale: { buffer: columnScale },
  };
  const results = await runOn(gpu, () => {
    normalize(gpu, { buffer: source }, { rows, columns, count }, iterations, out);
    return Promise.all([balanced, rowScale, columnScale].map((buffer) => gpu.read(buffer, 0, buffer.size)));
  });
  [source, balanced, rowScale, columnScale].forEach((buffer) => buffer.destroy());
  const [a, b, c] = results.map(({ buffer }) => new Float32Array(buffer));
  return { balanced: a, rowScale: b, columnScale: c };
}

describe.skipIf(!hasGpu)("normalize on the GPU", () => {
  describe.each([
    [16, 16],
    [64, 128],
    [80, 48],
    [32, 512],
    [512, 16],
  ])("%i x %i", (rows, columns) => {
    const make = (recipe: Recipe, i: number) => makeTile(recipe, rows, columns, i);
    const join = (tiles: readonly Float32Array[]) => {
      const all = new Float32Array(tiles.length * rows * columns);
      tiles.forEach((tile, i) => all.set(tile, i * tile.length));
      return all;
    };
    const part = (array: Float32Array, i: number, size: number) => array.subarray(i * size, (i + 1) * size);

    it.each([0, 8])("keeps the most even iterate of any tile, %i iterations", async (iterations) => {
      const regular = Object.entries({ ...regularTiles, ...extremeTiles });
      const all = [...regular, ...Object.entries(degenerateTiles)];
      const tiles = all.map(([, recipe], i) => make(recipe, i));
      const result = await normalizeTiles(join(tiles), rows, columns, iterations);
      for (const [i, tile] of tiles.entries()) {
        const [name] = all[i];
        const rowScale = part(result.rowScale, i, rows);
        const columnScale = part(result.columnScale, i, columns);
        const balanced = part(result.balanced, i, rows * columns);
        for (const scale of [...rowScale, ...columnScale]) {
          if (scale < Math.exp(-0.3) * (1 - 1e-6) || scale > Math.exp(10) * (1 + 1e-6)) {
            throw new Error(`${name}: a scale of ${scale}`);
          }
        }
        const product = balanced.map(
          (x, j) => x * rowScale[Math.floor(j / columns)] * columnScale[j % columns],
        );
        expect(relativeError(product, tile), name).toBeLessThan(5e-7);
        if (iterations === 0) expectSame(balanced, tile);
        if (i >= regular.length) continue;
        const imbalances = [...iterates(tile, rows, columns, iterations)].map((scales) =>
          imbalance(tile, scales),
        );
        expect(imbalance(tile, { rowScale, columnScale }), name).toBeLessThan(
          Math.min(...imbalances) * (1 + 1e-4),
        );
      }
      expect(await normalizeTiles(join(tiles), rows, columns, iterations)).toEqual(result);
    });
  });

  it("takes the later of equally even iterates, here at the least scales", async () => {
    const chessboard = Float32Array.from({ length: 256 }, (_, i) =>
      (i + (i >> 4)) % 2 === 0 ? 1e-3 : -1e-3,
    );
    const { rowScale, columnScale } = await normalizeTiles(chessboard, 16, 16, 1);
    for (const scale of [...rowScale, ...columnScale]) expect(scale).toBeCloseTo(Math.exp(-0.3), 6);
  });
});

/** Packs tiles, one after another. */
async function packTiles(tiles: Float32Array<ArrayBuffer>, rows: number, columns: number, bits: number) {
  const count = tiles.length / rows / columns;
  const source = bufferOf(gpu, tiles);
  const codes = bufferOf(gpu, new Uint8Array((tiles.length * bits) / 8));
  const [scale, zero] = [0, 1].map(() => bufferOf(gpu, new Float32Array(count * rows)));
  const out = { codes: { buffer: codes }, scale: { buffer: scale }, zero: { buffer: zero } };
  const results = await runOn(gpu, () => {
    pack(gpu, { buffer: source }, { rows, columns, count }, bits, out);
    return Promise.all([codes, scale, zero].map((buffer) => gpu.read(buffer, 0, buffer.size)));
  });
  [source, codes, scale, zero].forEach((buffer) => buffer.destroy());
  return {
    codes: results[0],
    scale: new Float32Array(results[1].buffer),
    zero: new Float32Array(results[2].buffer),
  };
}

describe.skipIf(!hasGpu)("pack on the GPU", () => {
  it.each([
    [2, 16, 16],
    [2, 128, 512],
    [3, 16, 16],
    [3, 64, 128],
    [4, 48, 80],
    [5, 16, 496],
    [5, 512, 16],
    [6, 48, 80],
    [8, 16, 16],
    [8, 64, 496],
  ])("does what the reference does, %i bits, %i x %i", async (bits, rows, columns) => {
    const pick = randomIntegers(bits);
    // Integers, of which many lie half-way between two codes; numbers; rows of little or no range.
    const tiles = [
      Float32Array.from({ length: rows * columns }, (_, i) => pick(0, 3 + 7 * Math.floor(i / columns))),
      makeTile(regularTiles["outlier rows"], rows, columns, bits),
      Float32Array.from({ length: rows * columns }, (_, i) => (i === 7 ? 4e-10 : 0)),
      new Float32Array(rows * columns).fill(-7.25),
    ];
    const size = rows * columns;
    const all = new Float32Array(4 * size);
    tiles.forEach((tile, i) => all.set(tile, i * size));
    const { codes, scale, zero } = await packTiles(all, rows, columns, bits);
    for (const [i, tile] of tiles.entries()) {
      const expected = quantize(tile, rows, columns, bits);
      const codeBytes = (size * bits) / 8;
      expectSame(scale.subarray(i * rows, (i + 1) * rows), expected.scale);
      expectSame(zero.subarray(i * rows, (i + 1) * rows), expected.zero);
      expectSame(codes.subarray(i * codeBytes, (i + 1) * codeBytes), packCodes(expected.codes, bits));
    }
  });
});
