import { relativeError } from "../compare.js";
import { derived, type NormalizeCase } from "../data.js";
import { makeInput } from "../input.js";
import { type Check, expectArray, expectWithin, expectFunction } from "./check.js";

/** Relative error allowed of a scale once the tile's common factor is out. */
const SCALE_ERROR = 1e-4;
/** Relative L2 error allowed of the balanced tile against the input divided by the scales that came with it. */
const BALANCED_ERROR = 1e-5;

/** The tile of a case, `[rows, columns]`. */
export function normalizeInput({ side, kind, seed, scale, rows, columns }: NormalizeCase): Float32Array {
  const [tokens, headDim] = side === "key" ? [columns, rows] : [rows, columns];
  const input = makeInput({ side, kind, seed, tokens, kvHeads: 1, headDim });
  const tile =
    side === "key" ? input.map((_, i) => input[(i % columns) * rows + Math.floor(i / columns)]) : input;
  return tile.map((x) => x * scale);
}

/** The scales against stored ones, and the balanced tile against them. */
export function normalizeChecks(): Check[] {
  return derived.cases.normalize.map((one) => ({
    subject: "normalize",
    name: one.name,
    async run(adapter) {
      expectFunction(adapter, "normalize");
      const { rows, columns, iterations } = one;
      const tile = normalizeInput(one);
      const result = await adapter.normalize(tile.slice(), { rows, columns, iterations });
      const rowScale = expectArray("rowScale", result.rowScale, Float32Array, rows);
      const columnScale = expectArray("columnScale", result.columnScale, Float32Array, columns);
      const balanced = expectArray("balanced", result.balanced, Float32Array, rows * columns);

      const expected = { row: derived.floats(one.rowScale), column: derived.floats(one.columnScale) };
      const ratios = columnScale.map((scale, i) => expected.column[i] / scale).sort();
      const common = ratios[ratios.length >> 1];
      const worst = Math.max(
        ...Array.from(columnScale, (scale, i) => Math.abs((scale * common) / expected.column[i] - 1)),
        ...Array.from(rowScale, (scale, i) => Math.abs(scale / common / expected.row[i] - 1)),
      );
      const scales = expectWithin("scales", worst, SCALE_ERROR);
      const quotient = Float64Array.from(
        tile,
        (x, i) => x / rowScale[Math.floor(i / columns)] / columnScale[i % columns],
      );
      return `${scales}, ${expectWithin("balanced tile", relativeError(balanced, quotient), BALANCED_ERROR)}`;
    },
  }));
}
