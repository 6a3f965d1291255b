import { parsePreset, recordLayout } from "../../format.js";
import { relativeError } from "../compare.js";
import { namedRecords, type NamedRecords, presetOf, recordCases } from "../data.js";
import { decodeRecords } from "../record.js";
import { type Check, expectArray, expectRefused, expectWithin } from "./check.js";
import { layoutOf, recordInput, smallest } from "./encode.js";

/** Relative L2 error allowed against decoding in f64: K and V may come as binary16. */
const ALLOWED = 1e-3;
/** How far a relative error against the input may lie from the stored one. */
const ERROR_DRIFT = 1e-4;

/** Every record there is, and records whose scales are none. */
export function decodeChecks(): Check[] {
  const inputs = new Map(recordCases().map(({ one }) => [one.name, one]));
  return [
    ...Array.from(namedRecords(), ([name, records]): Check => ({
      subject: "decode",
      name,
      async run(adapter) {
        const expected = decodeExpected(records);
        const { preset, kvHeads, headDim } = records;
        const { k, v } = await adapter.decode(records.records.slice(), { preset, kvHeads, headDim });
        expectArray("k", k, Float32Array, expected.k.length);
        expectArray("v", v, Float32Array, expected.v.length);
        const detail =
          `${expectWithin("K", relativeError(k, expected.k), ALLOWED)}, ` +
          expectWithin("V", relativeError(v, expected.v), ALLOWED);
        const one = inputs.get(name);
        if (!one) return detail;
        // Independent of this suite's own decoder.
        const input = recordInput(one);
        const drift = [
          relativeError(k, input.k) - one.keyRelativeError,
          relativeError(v, input.v) - one.valueRelativeError,
        ];
        expectWithin("error against the input", Math.max(...drift.map(Math.abs)), ERROR_DRIFT);
        return detail;
      },
    })),
    ...(["NaN", "infinite"] as const).map((kind): Check => ({
      subject: "decode",
      name: `refuses a scale that is ${kind}`,
      async run(adapter) {
        const { file, one } = smallest(recordCases());
        const { kScale, vScale, vZero } = layoutOf(one);
        for (const offset of [kScale, vScale, vZero]) {
          const records = file.bytes(one.records);
          new DataView(records.buffer).setUint16(offset, kind === "NaN" ? 0x7e00 : 0xfc00, true);
          const { kvHeads, headDim } = one;
          await expectRefused(`a scale that is ${kind}, at byte ${offset},`, () =>
            adapter.decode(records, { preset: presetOf(one), kvHeads, headDim }),
          );
        }
        return "refused in K and in V";
      },
    })),
  ];
}

function decodeExpected({ preset, headDim, kvHeads, records }: NamedRecords): {
  k: Float64Array;
  v: Float64Array;
} {
  return decodeRecords(records, kvHeads, recordLayout(parsePreset(preset), headDim));
}
