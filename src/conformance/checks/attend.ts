import type { AttendCall, TokenArrays } from "../adapter.js";
import { relativeError } from "../compare.js";
import { type AttendCase, derived, type ExactTokens, namedRecords } from "../data.js";
import { drawArray } from "../input.js";
import { type Check, expectArray, expectSame, expectWithin, expectFunction } from "./check.js";

/** Relative L2 error allowed against f64, by {@link ConformanceAdapter.f32Attention}. */
const ALLOWED = { f32: 1e-5, other: 1e-3 };

/** K and V of exact tokens. */
export function exactTokens({ tokens, keySeed, valueSeed }: ExactTokens, width: number): TokenArrays {
  return { k: drawArray(tokens * width, keySeed), v: drawArray(tokens * width, valueSeed) };
}

/** What an adapter is called with in a case over these records. */
export function attendCall(one: Omit<AttendCase, "output">, records: Uint8Array): AttendCall {
  const { sink, tail, queries, preset, queryHeads, kvHeads, headDim } = one;
  const { slidingWindow, softCap, sinkLogits, softmaxScale } = one;
  const config = {
    ...{ preset, queryHeads, kvHeads, headDim },
    ...{ slidingWindow, softCap, sinkLogits, softmaxScale },
  };
  const width = kvHeads * headDim;
  return {
    ...config,
    sink: exactTokens(sink, width),
    records,
    tail: exactTokens(tail, width),
    q: drawArray(queries.tokens * queryHeads * headDim, queries.seed, queries.scale),
  };
}

/** Attention over stored records against stored results, and a second time the same. */
export function attendChecks(): Check[] {
  const records = namedRecords();
  return derived.cases.attend.map((one) => ({
    subject: "attend",
    name: one.name,
    async run(adapter) {
      expectFunction(adapter, "attend");
      const expected = derived.floats(one.output);
      const call = () => attendCall(one, records.get(one.records)!.records.slice());
      const attend = async (): Promise<Float32Array> =>
        expectArray("the result", await adapter.attend(call()), Float32Array, expected.length);
      const out = await attend();
      const allowed = adapter.f32Attention === true ? ALLOWED.f32 : ALLOWED.other;
      const detail = expectWithin("output", relativeError(out, expected), allowed);
      expectSame("a second run", await attend(), out);
      return `${detail}, the second run is the same`;
    },
  }));
}
