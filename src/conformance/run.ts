/** Runs checks. */
import type { ConformanceAdapter } from "./adapter.js";
import { attendChecks } from "./checks/attend.js";
import { cacheChecks } from "./checks/cache.js";
import { type Check, NotCovered } from "./checks/check.js";
import { decodeChecks } from "./checks/decode.js";
import { encodeChecks } from "./checks/encode.js";
import { normalizeChecks } from "./checks/normalize.js";
import { packChecks } from "./checks/pack.js";
import { rotateChecks } from "./checks/rotate.js";
import { type CheckResult, type ConformanceReport, summarize } from "./report.js";

/**
 * Checks an implementation of the method: what it computes against what KVarN's vLLM implementation and this package's
 * reference backend did. Never throws for what the adapter does: that is a failure in the report.
 */
export async function runConformance(adapter: ConformanceAdapter): Promise<ConformanceReport> {
  const checks = [
    ...rotateChecks(),
    ...normalizeChecks(),
    ...packChecks(),
    ...encodeChecks(),
    ...decodeChecks(),
    ...attendChecks(),
    ...cacheChecks(),
  ];
  const results: CheckResult[] = [];
  // One after another: an implementation may have one device.
  for (const check of checks) results.push(await runCheck(check, adapter));
  return summarize(results);
}

async function runCheck(check: Check, adapter: ConformanceAdapter): Promise<CheckResult> {
  const { subject, name } = check;
  try {
    return { subject, name, status: "passed", detail: await check.run(adapter) };
  } catch (error) {
    const status = error instanceof NotCovered ? "not covered" : "failed";
    return { subject, name, status, detail: error instanceof Error ? error.message : String(error) };
  }
}
