/** The example's matrix products, for every type of weights, against plain f64. */
import { beforeAll, describe, expect, it } from "vitest";
import { Kernels, type Matrix, wholeFours } from "../../examples/llama/kernels.js";
import { compileKernels } from "../../examples/llama/node.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { randomArray, randomIntegers } from "../support/random.js";

/** One block of each type, by GGUF's number: its size, and what its weights are. */
const types = {
  F32: { number: 0, weights: 1, bytes: 4, read: (view: DataView) => view.getFloat32(0, true) },
  F16: { number: 1, weights: 1, bytes: 2, read: (view: DataView) => half(view, 0) },
  Q4_0: {
    number: 2,
    weights: 32,
    bytes: 18,
    read: (view: DataView, i: number) => half(view, 0) * (nibble(view, 2, i) - 8),
  },
  Q4_1: {
    number: 3,
    weights: 32,
    bytes: 20,
    read: (view: DataView, i: number) => half(view, 0) * nibble(view, 4, i) + half(view, 2),
  },
  Q8_0: {
    number: 8,
    weights: 32,
    bytes: 34,
    read: (view: DataView, i: number) => half(view, 0) * view.getInt8(2 + i),
  },
} as const;

function half(view: DataView, at: number): number {
  return fromHalf(view.getUint16(at, true));
}

/** The ith code of 32 from byte `at` on: the first 16 are low halves of bytes, the others high ones. */
function nibble(view: DataView, at: number, i: number): number {
  return (view.getUint8(at + (i % 16)) >> (i < 16 ? 0 : 4)) & 15;
}

const COLUMNS = 96;

/** Random rows of a type; scales, minima and weights are of any sign and size, small ones too. */
function makeRows(type: keyof typeof types, rows: number): Uint8Array {
  const { weights, bytes } = types[type];
  const blocks = (rows * COLUMNS) / weights;
  const pick = randomIntegers(7);
  const scales = randomArray(2 * blocks, 8, 0.01);
  const data = Uint8Array.from({ length: blocks * bytes }, () => pick(0, 255));
  const view = new DataView(data.buffer);
  for (let block = 0; block < blocks; block++) {
    const at = block * bytes;
    if (type === "F32") view.setFloat32(at, scales[block], true);
    else view.setUint16(at, toHalf(scales[block] * (block % 7 === 0 ? 1e-4 : 1)), true);
    if (type === "Q4_1") view.setUint16(at + 2, toHalf(scales[blocks + block]), true);
  }
  return data;
}

function plainRow(type: keyof typeof types, data: Uint8Array, row: number): number[] {
  const { weights, bytes, read } = types[type];
  return Array.from({ length: COLUMNS }, (_, column) => {
    const block = (row * COLUMNS + column - (column % weights)) / weights;
    return read(new DataView(data.buffer, block * bytes, bytes), column % weights);
  });
}

describe.each(Object.keys(types) as (keyof typeof types)[])("%s", (type) => {
  const rows = 21;
  const data = makeRows(type, rows);
  const plain = Array.from({ length: rows }, (_, row) => plainRow(type, data, row));
  const rowBytes = data.length / rows;
  let kernels: Kernels;
  let matrix: Matrix;

  beforeAll(async () => {
    kernels = await Kernels.open(await compileKernels());
    const address = kernels.reserve(data.length);
    kernels.grow();
    kernels.bytes(address, data.length).set(data);
    matrix = { type: types[type].number, rows, columns: COLUMNS, rowBytes, address };
  });

  it("is dequantized", () => {
    const target = kernels.reserve(COLUMNS * 4);
    kernels.grow();
    for (let row = 0; row < rows; row++) {
      kernels.dequantizeRow(matrix, row, target);
      // Nought of either sign is nought.
      expect(Array.from(kernels.floats(target, COLUMNS), (x) => x + 0)).toEqual(
        plain[row].map((x) => Math.fround(x) + 0),
      );
    }
  });

  it.each([1, 3, 4, 6, 13])("is multiplied with %i tokens", (tokens) => {
    const x = kernels.reserve(wholeFours(tokens) * COLUMNS * 4);
    const y = kernels.reserve(wholeFours(tokens) * rows * 4);
    const scratch = kernels.reserveScratch(COLUMNS, tokens);
    kernels.grow();
    const values = randomArray(tokens * COLUMNS, 9);
    kernels.floats(x, values.length).set(values);
    kernels.multiply(matrix, x, tokens, y, scratch);
    const product = kernels.floats(y, tokens * rows);
    for (let token = 0; token < tokens; token++) {
      const vector = values.subarray(token * COLUMNS, (token + 1) * COLUMNS);
      for (let row = 0; row < rows; row++) {
        const terms = plain[row].map((weight, column) => weight * vector[column]);
        const sum = terms.reduce((a, b) => a + b, 0);
        const size = terms.reduce((a, b) => a + Math.abs(b), 0);
        expect(Math.abs(product[token * rows + row] - sum), `${token}, ${row}`).toBeLessThan(1e-6 * size);
      }
    }
  });
});
