/** The golden records, for tests of any backend. */
import { golden, type RecordCase } from "../../src/conformance/data.js";

export const goldenCases = golden.cases.cases;

/** The records of all KV heads, one after another. */
export function goldenRecords({ records }: RecordCase): Uint8Array {
  return golden.bytes(records);
}
