import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { derived, golden } from "../../src/conformance/data.js";
import { makeDerivedFiles } from "../../tools/conformance-data.js";

describe("the data of the conformance suite", () => {
  it("is what its script makes", async () => {
    const { json, bin } = await makeDerivedFiles();
    expect(readFileSync("conformance/data/derived.json", "utf8")).toBe(json);
    expect(readFileSync("conformance/data/derived.bin").equals(bin)).toBe(true);
  });

  it("is read from the files that ship", () => {
    for (const [name, file] of [
      ["golden", golden],
      ["derived", derived],
    ] as const) {
      const bytes = readFileSync(`conformance/data/${name}.bin`);
      expect(file.cases).toEqual(JSON.parse(readFileSync(`conformance/data/${name}.json`, "utf8")));
      expect(bytes.equals(file.bytes({ offset: 0, bytes: bytes.length }))).toBe(true);
    }
  });
});
