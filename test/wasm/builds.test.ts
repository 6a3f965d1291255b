/** How the package carries the relaxed builds: as edits of the strict ones. */
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { expect, it } from "vitest";
import { makeEdits } from "../../scripts/edits.mjs";
import { readBuild } from "../../src/wasm/builds.js";
import * as inlined from "../../src/wasm/inlined.js";
import * as threads from "../../src/wasm/threads-inlined.js";

it.each([
  ["kvarn", inlined, "strict"],
  ["kvarn-relaxed", inlined, "relaxed"],
  ["kvarn-threads", threads, "strict"],
  ["kvarn-relaxed-threads", threads, "relaxed"],
] as const)("has %s.wasm as it was compiled", (name, builds, build) => {
  expect(Buffer.from(readBuild(builds, build)).equals(readFileSync(`build/${name}.wasm`))).toBe(true);
});

it("makes any bytes of any others by edits", () => {
  const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
  // Two values are enough for much to be the same, and long enough runs for numbers of two bytes.
  const bytes = fc.uint8Array({ max: 1, maxLength: 150 });
  fc.assert(
    fc.property(bytes, bytes, bytes, (start, end, other) => {
      for (const [from, to] of [
        [start, end],
        [Uint8Array.of(...start, ...end), Uint8Array.of(...start, ...other, ...end)],
        [Uint8Array.of(...start, ...other, ...end), Uint8Array.of(...start, ...end)],
      ]) {
        const builds = { strictWasm: hex(from), relaxedEdits: hex(makeEdits(from, to)) };
        expect(readBuild(builds, "relaxed")).toEqual(to);
      }
    }),
  );
});
