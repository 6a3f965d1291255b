import { defineConfig } from "vitest/config";

// Where to write the results as JSON too, for a script that counts them.
const results = process.env.KVARN_TEST_RESULTS;

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    environment: "node",
    // GPUs of software take their time.
    testTimeout: 240_000,
    hookTimeout: 120_000,
    // So do the workers of a page.
    expect: { poll: { timeout: 30_000, interval: 100 } },
    maxWorkers: "100%",
    // So that a worker's test files share a GPU device, and the kernels compiled for it.
    isolate: false,
    reporters: results ? ["default", ["json", { outputFile: results }]] : ["default"],
  },
});
