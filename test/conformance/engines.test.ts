/** Every backend here passes the whole suite, and the suite says what it could not see. */
import { afterAll, describe, expect, it } from "vitest";
import {
  adapterOf,
  type ConformanceAdapter,
  runConformance,
  type Subject,
} from "../../src/conformance/index.js";
import { openKvarn } from "../../src/index.js";
import { openEngines } from "../support/engines.js";

const engines = await openEngines();
afterAll(() => engines.forEach((engine) => engine.dispose()));

// With `KVARN_BRIEF` set, as CI has it on Deno, no more than records: GPUs of software take long.
const options = process.env.KVARN_BRIEF ? { subjects: ["encode", "decode"] as const } : {};

describe("the conformance suite", () => {
  it.each(engines.map((engine) => [`${engine.backend.kind} ${engine.backend.variant}`, engine] as const))(
    "is passed by %s, all that is run of it",
    async (_, engine) => {
      const report = await runConformance(adapterOf(engine), options);
      expect(report.checks.filter(({ status }) => status !== "passed")).toEqual([]);
      expect(report.counts).toEqual({ passed: report.checks.length, failed: 0, notCovered: 0 });
      expect(report.passed).toBe(true);
      expect(JSON.parse(JSON.stringify(report))).toEqual(report);
    },
  );
});

describe("a report", () => {
  it("names what an adapter has no function for, and passes without", async () => {
    const kvarn = await openKvarn({ backend: "wasm" });
    const whole = adapterOf(kvarn);
    const report = await runConformance({
      encode: (k, v, options) => whole.encode(k, v, options),
      decode: (records, options) => whole.decode(records, options),
    });
    expect(report.passed).toBe(true);
    const uncovered = report.checks.filter(({ status }) => status === "not covered");
    expect(new Set(uncovered.map(({ subject, detail }) => `${subject}: ${detail}`))).toEqual(
      new Set([
        "rotate: lacking: rotate",
        "normalize: lacking: normalize",
        "pack: lacking: pack",
        "attend: lacking: attend",
        "cache: lacking: createCache",
      ]),
    );
    expect(report.counts.notCovered).toBe(uncovered.length);
    kvarn.dispose();
  });

  it("names what a cache has no function for", async () => {
    const kvarn = await openKvarn({ backend: "wasm" });
    const whole = adapterOf(kvarn);
    const report = await runConformance({
      ...whole,
      createCache: async (config) => {
        const cache = await whole.createCache!(config);
        return {
          append: (layer, k, v) => cache.append(layer, k, v),
          attend: (layer, q) => cache.attend(layer, q),
          length: (layer) => cache.length(layer),
          flush: () => cache.flush!(),
        };
      },
    });
    const lives = report.checks.filter(({ subject }) => subject === "cache");
    expect(lives.find(({ name }) => name === "a sliding window as the cache grows")!.status).toBe("passed");
    const details = lives.filter(({ status }) => status === "not covered").map(({ detail }) => detail);
    const lacking = details.flatMap((detail) => detail.replace("lacking: the cache's ", "").split(", "));
    expect(new Set(lacking)).toEqual(new Set(["exportRecords", "truncate", "fork", "serialize"]));
    expect(report.counts.failed).toBe(0);
    kvarn.dispose();
  });

  it("holds the subjects asked for alone, in the order of the method", async () => {
    const kvarn = await openKvarn({ backend: "wasm" });
    const { checks, counts } = await runConformance(adapterOf(kvarn), { subjects: ["pack", "rotate"] });
    expect([...new Set(checks.map(({ subject }) => subject))]).toEqual(["rotate", "pack"]);
    expect(counts).toEqual({ passed: 10, failed: 0, notCovered: 0 });
    for (const subjects of [[], ["rotate", "unpack"]]) {
      await expect(
        runConformance(adapterOf(kvarn), { subjects: subjects as Subject[] }),
      ).rejects.toMatchObject({
        code: "invalid-argument",
      });
    }
    kvarn.dispose();
  });

  it("says of whatever is thrown that it failed", async () => {
    const broken: ConformanceAdapter = {
      encode: () => {
        throw new TypeError("no such thing");
      },
      decode: () => Promise.reject(new Error("nor this")),
      pack: () => ({ codes: new Uint8Array(3), scale: new Float32Array(32), zero: new Float32Array(32) }),
    };
    const report = await runConformance(broken);
    expect(report.passed).toBe(false);
    const failed = report.checks.filter(({ status }) => status === "failed");
    expect(report.counts.failed).toBe(failed.length);
    expect(failed.map(({ detail }) => detail)).toEqual(expect.arrayContaining(["no such thing", "nor this"]));
    expect(failed.find(({ subject }) => subject === "pack")!.detail).toMatch(
      /^codes has 3 elements instead of /,
    );
  });
});
