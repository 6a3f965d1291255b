/** Runs checks. */
import { describe, KvarnError } from "../errors.js";
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

/** What to run of the suite. */
export interface ConformanceOptions {
  /** Run these alone, for work on one part; default: all. They stay in the order of the method. */
  readonly subjects?: readonly Subject[];
}

/**
 * Checks an implementation of the method: what it computes against what KVarN's vLLM implementation and this package's
 * reference backend did. Never throws for what the adapter does: that is a failure in the report.
 * @throws {KvarnError} `invalid-argument` for subjects that there are not
 */
export async function runConformance(
  adapter: ConformanceAdapter,
  { subjects = SUBJECTS }: ConformanceOptions = {},
): Promise<ConformanceReport> {
  const unknown = subjects.find((subject) => !SUBJECTS.includes(subject));
  if (unknown !== undefined || subjects.length === 0) {
    const got = unknown === undefined ? "none" : describe(unknown);
    throw new KvarnError("invalid-argument", `subjects must be some of ${SUBJECTS.join(", ")}, got ${got}`);
  }
  const results: CheckResult[] = [];
  for (const subject of SUBJECTS.filter((one) => subjects.includes(one))) {
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
