import { relativeError } from "../compare.js";
import { derived } from "../data.js";
import { drawArray } from "../input.js";
import { type Check, expectArray, expectWithin, expectFunction } from "./check.js";

/** Relative L2 error allowed of a row, and of a row rotated twice. */
const ALLOWED = 1e-5;

/** The rotation against stored results, each row by itself, and against its inverse: itself. */
export function rotateChecks(): Check[] {
  return derived.cases.rotate.map((one) => ({
    subject: "rotate",
    name: one.name,
    async run(adapter) {
      expectFunction(adapter, "rotate");
      const { rows, headDim } = one;
      const x = drawArray(rows * headDim, one.seed);
      const rotate = async (rows: Float32Array): Promise<Float32Array> =>
        expectArray("the result", await adapter.rotate(rows, { headDim }), Float32Array, rows.length);
      const worst = (actual: Float32Array, expected: Float32Array): number => {
        const errors = Array.from({ length: rows }, (_, row) => {
          const [from, to] = [row * headDim, (row + 1) * headDim];
          return relativeError(actual.subarray(from, to), expected.subarray(from, to));
        });
        return Math.max(...errors);
      };
      const y = await rotate(x.slice());
      const there = expectWithin("rows", worst(y, derived.floats(one.output)), ALLOWED);
      const back = expectWithin("rotated twice", worst(await rotate(y.slice()), x), ALLOWED);
      return `${there}, ${back}`;
    },
  }));
}
