/** What comes of a run. */

/** The parts of the method that are checked. */
export const SUBJECTS = ["rotate", "normalize", "pack", "encode", "decode", "attend", "cache"] as const;
/** The name of a part of the method. */
export type Subject = (typeof SUBJECTS)[number];

/** What came of one check. */
export interface CheckResult {
  /** What it is about. */
  readonly subject: Subject;
  /** Its name, once only within a subject. */
  readonly name: string;
  /** `"not covered"`: the adapter lacks a function that the check needs. */
  readonly status: "passed" | "failed" | "not covered";
  /** How well it passed, what failed, or what is lacking. */
  readonly detail: string;
}

/** What came of all checks; plain data, fit for JSON. */
export interface ConformanceReport {
  /** Whether nothing failed. What was not covered says nothing either way. */
  readonly passed: boolean;
  /** How many checks came to what. */
  readonly counts: {
    /** Those that found what they should. */
    readonly passed: number;
    /** Those that did not, or that threw. */
    readonly failed: number;
    /** Those that lack a function of the adapter. */
    readonly notCovered: number;
  };
  /** In the order in which they ran. */
  readonly checks: readonly CheckResult[];
}

/** Counts results. */
export function summarize(checks: readonly CheckResult[]): ConformanceReport {
  const count = (status: CheckResult["status"]): number =>
    checks.filter((check) => check.status === status).length;
  const counts = { passed: count("passed"), failed: count("failed"), notCovered: count("not covered") };
  return { passed: counts.failed === 0, counts, checks };
}
