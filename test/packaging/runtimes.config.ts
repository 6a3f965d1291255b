import { defineConfig } from "vitest/config";
import base from "../../vitest.config.js";

export default defineConfig({
  // Two at a time: GPUs of software keep a core busy each.
  test: {
    ...base.test,
    include: ["test/packaging/runtimes.ts", "test/packaging/bench.ts"],
    maxConcurrency: 2,
    testTimeout: 500_000,
  },
});
