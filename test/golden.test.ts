import { describe, expect, it } from "vitest";
import {
  expectConforms,
  goldenCases,
  goldenInput,
  goldenLayout,
  goldenPreset,
  goldenRecords,
  relativeError,
} from "./support/golden.js";
import { openEngines } from "./support/engines.js";

const engines = await openEngines();

describe.each(engines.map((engine) => [`${engine.backend.kind} ${engine.backend.variant}`, engine] as const))(
  "golden records on %s",
  (_, kvarn) => {
    it.each(goldenCases.map((golden) => [golden.name, golden] as const))("encodes %s", async (_, golden) => {
      const { k, v } = goldenInput(golden);
      const { kvHeads, headDim, iterations } = golden;
      const options = { preset: goldenPreset(golden), kvHeads, headDim };
      const records = await kvarn.encode(k, v, { ...options, iterations });
      const expected = goldenRecords(golden);
      const { bytes } = goldenLayout(golden);
      for (let head = 0; head < kvHeads; head++) {
        const from = head * bytes;
        expectConforms(
          records.subarray(from, from + bytes),
          expected.subarray(from, from + bytes),
          goldenLayout(golden),
        );
      }
      expect(await kvarn.encode(k, v, { ...options, iterations })).toEqual(records);

      const decoded = await kvarn.decode(records, options);
      expect(relativeError(decoded.k, k)).toBeCloseTo(golden.keyRelativeError, 3);
      expect(relativeError(decoded.v, v)).toBeCloseTo(golden.valueRelativeError, 3);
    });
  },
);
