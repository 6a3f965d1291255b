/** Runs checks. */
import type { ConformanceAdapter } from "./adapter.js";
import { attendChecks } from "./checks/attend.js";
import { cacheChecks } from "./checks/cache.js";
import { type Check, messageOf, NotCovered } from "./checks/check.js";
import { decodeChecks } from "./checks/decode.js";
import { encodeChecks } from "./checks/encode.js";
import { normalizeChecks } from "./checks/normalize.js";
import { packChecks } from "./checks/pack.js";
import { rotateChecks } from "./checks/rotate.js";
import { type CheckResult, type ConformanceReport, type Subject, SUBJECTS, summarize } from "./report.js";

const CHECKS: Readonly<Record<Subject, () => Check[]>> = {
  rotate: rotateChecks,
  normalize: normalizeChecks,
  pack: packChecks,
  encode: encodeChecks,
  decode: decodeChecks,
  attend: attendChecks,
  cache: cacheChecks,
};

/**
 * Checks an implementation of the method: what it computes against what KVarN's vLLM implementation and this package's
 * reference backend did. Never throws for what the adapter does: that is a failure in the report.
 */
export async function runConformance(adapter: ConformanceAdapter): Promise<ConformanceReport> {
  return runSubjects(adapter, SUBJECTS);
}

/** {@link runConformance} for some subjects. */
export async function runSubjects(
  adapter: ConformanceAdapter,
  subjects: readonly Subject[],
): Promise<ConformanceReport> {
  const results: CheckResult[] = [];
  for (const subject of subjects) {
    // One after another: an implementation may have one device.
    for (const check of CHECKS[subject]()) results.push(await runCheck(check, adapter));
  }
  return summarize(results);
}

async function runCheck(check: Check, adapter: ConformanceAdapter): Promise<CheckResult> {
  const { subject, name } = check;
  try {
    return { subject, name, status: "passed", detail: await check.run(adapter) };
  } catch (error) {
    const status = error instanceof NotCovered ? "not covered" : "failed";
    return { subject, name, status, detail: messageOf(error) };
  }
}
