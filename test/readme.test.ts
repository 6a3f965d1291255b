import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";

const readme = readFileSync("README.md", "utf8");

describe("README", () => {
  it("has an example that runs as written", () => {
    const [, example] = /```js\n([\s\S]*?)```/.exec(readme)!;
    // As a package of its own name: the example imports "kvarn", which is this one.
    const output = execFileSync(process.execPath, ["--input-type=module", "--eval", example], {
      encoding: "utf8",
    });
    expect(output).toMatch(/kind: '(wasm|webgpu)'/);
    expect(output).toMatch(/recordRatio: 4\.49/);
  });

  it("gives sizes that recordLayout gives", async () => {
    const { parsePreset, recordLayout } = await import("../src/index.js");
    const rows = readme.matchAll(/^\| `(k\dv\d_g\d+)` +\| ([\d.]+) +\| ([\d,]+) B +\| ([\d.]+)x/gm);
    const seen = [...rows].map(([, preset, bits, bytes, ratio]) => {
      const layout = recordLayout(parsePreset(preset), 128);
      expect(Number(bytes.replace(",", ""))).toBe(layout.bytes);
      expect(Number(bits)).toBe((layout.bytes * 8) / (2 * 128 * layout.group));
      expect(ratio).toBe((16 / Number(bits)).toFixed(1));
      return preset;
    });
    expect(seen).toContain("k4v2_g128");
  });
});
