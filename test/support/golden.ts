/** What tests of any backend take of the conformance suite: the golden records, their inputs, and the comparison. */
import { presetOf, golden, type RecordCase } from "../../src/conformance/data.js";
import { layoutOf, recordInput } from "../../src/conformance/checks/encode.js";

export {
  compareRecords,
  type Comparison,
  expectConforms,
  relativeError,
  type SideComparison,
} from "../../src/conformance/compare.js";
export { drawFrom, xorshift32 } from "../../src/conformance/input.js";
export { decodePlainly as decodeGolden } from "../../src/conformance/record.js";

/** One entry of `conformance/data/golden.json`. */
export type GoldenCase = RecordCase;

export const goldenCases = golden.cases.cases;
export const goldenPreset = presetOf;
export const goldenLayout = layoutOf;
export const goldenInput = recordInput;

/** The records of all KV heads, one after another. */
export function goldenRecords({ records }: GoldenCase): Uint8Array {
  return golden.bytes(records);
}
