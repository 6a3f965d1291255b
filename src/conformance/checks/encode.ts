import { parsePreset, recordLayout, type RecordLayout } from "../../format.js";
import { compareRecords, expectConforms } from "../compare.js";
import { presetOf, type RecordCase, recordCases } from "../data.js";
import { makeInput } from "../input.js";
import type { TokenArrays } from "../adapter.js";
import { type Check, expectArray, expectRefused, expectSame, expectThat } from "./check.js";

/** K and V of a case, checked against its sums. */
export function recordInput(one: RecordCase): TokenArrays {
  const k = makeInput({ ...one, side: "key", seed: one.keySeed });
  const v = makeInput({ ...one, side: "value", seed: one.valueSeed });
  const sums = [k, v].map((values) => values.reduce((total, x) => total + x, 0));
  expectThat(
    sums[0] === one.keyChecksum && sums[1] === one.valueChecksum,
    `${one.name}: the suite's own input sums to ${sums[0]} and ${sums[1]}`,
  );
  return { k, v };
}

/** How the records of a case lie. */
export function layoutOf(one: RecordCase): RecordLayout {
  const layout = recordLayout(parsePreset(presetOf(one)), one.headDim);
  expectThat(layout.bytes === one.recordBytes, `${one.name}: records of ${layout.bytes} bytes`);
  return layout;
}

/** Records against stored ones, each by itself; a second time the same; and what no record can hold refused. */
export function encodeChecks(): Check[] {
  const cases = recordCases();
  return [
    ...cases.map(({ file, one }): Check => ({
      subject: "encode",
      name: one.name,
      async run(adapter) {
        const { kvHeads, headDim, iterations } = one;
        const options = { preset: presetOf(one), kvHeads, headDim, iterations };
        const layout = layoutOf(one);
        const expected = file.bytes(one.records);
        const { k, v } = recordInput(one);
        const encode = async (): Promise<Uint8Array> => {
          const records = await adapter.encode(k.slice(), v.slice(), options);
          return expectArray("the result", records, Uint8Array, expected.length);
        };
        const records = await encode();
        for (let start = 0; start < expected.length; start += layout.bytes) {
          const range = [start, start + layout.bytes] as const;
          const name = `record ${start / layout.bytes}`;
          expectConforms(records.subarray(...range), expected.subarray(...range), layout, name);
        }
        expectSame("a second run", await encode(), records);
        const { codesDiffering, codes } = compareRecords(records, expected, layout);
        return `${codesDiffering} of ${codes} codes differ, the second run is the same`;
      },
    })),
    ...REFUSED.map(([name, spoil]): Check => ({
      subject: "encode",
      name: `refuses ${name}`,
      async run(adapter) {
        const { one } = smallest(cases);
        const { kvHeads, headDim, iterations } = one;
        const options = { preset: presetOf(one), kvHeads, headDim, iterations };
        for (const side of ["k", "v"] as const) {
          const input = recordInput(one);
          spoil(input[side], headDim);
          await expectRefused(`${side} with ${name}`, () => adapter.encode(input.k, input.v, options));
        }
        return "refused in K and in V";
      },
    })),
  ];
}

const REFUSED: readonly (readonly [string, (values: Float32Array, headDim: number) => unknown])[] = [
  ["a NaN", (values) => (values[values.length - 1] = NaN)],
  ["an infinity", (values) => (values[5] = -Infinity)],
  // Every element is below 65,504, but the first after rotation is not.
  ["a vector too long for binary16", (values, headDim) => values.fill(60_000, 0, headDim)],
];

/** The case with the fewest bytes. */
export function smallest(cases: ReturnType<typeof recordCases>): (typeof cases)[number] {
  return cases.reduce((a, b) => (b.one.records.bytes < a.one.records.bytes ? b : a));
}
