/** The benchmarks on a GPU: that they run. */
import { describe, expect, it } from "vitest";
import { runBench } from "../../bench/bench.js";
import { gpuCases } from "../../bench/webgpu/run.js";
import { titleOf } from "../../bench/report.js";
import { hasGpu, hasHardwareGpu } from "../support/engines.js";

describe.skipIf(!hasGpu)("the benchmarks on a GPU", () => {
  it("time ours beside the baseline, and judge no gate on software", async () => {
    let printed = "";
    const stdout = { write: (text: string) => (printed += text) };
    const args = ["--backend", "webgpu", "--quick", "--case", titleOf(gpuCases[0]), "--check", "--matrix"];
    const status = await runBench(args, { stdout, stderr: process.stderr });
    expect(printed).toMatch(/\nattend .* t4196 +webgpu f32 .* x time of our f16 kernel/);
    expect(printed).toMatch(/\n +uncompressed f16 .* 1\.00 {2}x time of our f16 kernel/);
    expect(printed).toMatch(/\nattend bytes .* x time of its bytes at a copy's rate/);
    expect(printed).toContain("Measured elsewhere: one token over 4,096 on an H100");
    if (!hasHardwareGpu) {
      expect(status).toBe(0);
      expect(printed).toContain("gates are not judged");
      expect(printed).not.toMatch(/pass|FAIL/);
    }
  });
});
