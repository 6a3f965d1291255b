import { relativeError } from "../compare.js";
import { derived } from "../data.js";
import { makeGrid } from "../input.js";
import { type Check, expectArray, expectSame, expectWithin, expectFunction } from "./check.js";

/** Relative L2 error allowed of scales and zero points. */
const SCALE_ERROR = 1e-6;

/** Rounding and packing of tiles whose codes are certain: the same bytes. */
export function packChecks(): Check[] {
  return derived.cases.pack.map((one) => ({
    subject: "pack",
    name: one.name,
    async run(adapter) {
      expectFunction(adapter, "pack");
      const { rows, columns, bits } = one;
      const { codes, scale, zero } = await adapter.pack(makeGrid(rows, columns, bits, one.seed), {
        rows,
        columns,
        bits,
      });
      const expected = derived.bytes(one.codes);
      expectSame("codes", expectArray("codes", codes, Uint8Array, expected.length), expected);
      const [scaleError, zeroError] = [
        relativeError(expectArray("scale", scale, Float32Array, rows), derived.floats(one.scale)),
        relativeError(expectArray("zero", zero, Float32Array, rows), derived.floats(one.zero)),
      ];
      return `codes the same, ${expectWithin("scales", scaleError, SCALE_ERROR)}, ${expectWithin("zero points", zeroError, SCALE_ERROR)}`;
    },
  }));
}
